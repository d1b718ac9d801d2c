"""Texts -> windows of vectors with their token counts: what a bulk job needs of an Embedder.

Where in the flow: between `inputs.feed`, whose texts are read ahead, and the outputs. One stream
runs through all parts of a job, so that no device waits at their borders.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy.typing as npt

from nomicbert.runtime.progress import Progress


class Window(NamedTuple):
    """The result of consecutive texts.

    Attributes:
        vectors: (n, width), of the precision that was asked for.
        lengths: tokens of each text.
        cut: indices of the texts that were truncated, ascending.
    """

    vectors: npt.NDArray[Any]
    lengths: list[int]
    cut: list[int]


class Encoder(Protocol):
    """Computes vectors; tests use a stand-in without a model.

    Attributes:
        empty: (0, width), of the dtype of the vectors.
        identity: what decides the values of a vector, by name, as JSON values.
    """

    empty: npt.NDArray[Any]
    identity: dict[str, Any]

    def windows(self, texts: Iterator[str], progress: Progress) -> Iterator[Window]:
        """Windows of vectors, in the order of the texts; texts are read ahead.

        Args:
            texts: any number.
            progress: receives the tokens read and done.

        Raises: TextError: a text that cannot be embedded; its index counts from the first of
            `texts`.
        """
