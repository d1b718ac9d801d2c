"""Texts -> windows of vectors with their token counts: what bulk needs of an Embedder.

Where in the flow: between `inputs.feed`, whose texts are read ahead, and the outputs. One stream
runs through all parts of a job, so that no device waits at their borders.
"""

import hashlib
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nomicbert.arguments import refuse_unknown
from nomicbert.embedder import Embedder
from nomicbert.runtime.progress import Progress
from nomicbert.runtime.request import Request
from nomicbert.runtime.texts import too_long
from nomicbert.vectors import quantization

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from nomicbert.runtime.encode_keywords import AllEncodeKeywords

NOT_FOR_FILES = {"convert_to_numpy", "convert_to_tensor", "output_value", "show_progress_bar"}


class Window(NamedTuple):
    """The result of consecutive texts.

    Attributes:
        vectors: (n, width), of the precision that was asked for.
        lengths: tokens of each text.
        cut: indices of the texts that were too long, ascending.
        chunks: None; or (start, end) of each text's chunks, each of which has a vector.
    """

    vectors: npt.NDArray[Any]
    lengths: list[int]
    cut: list[int]
    chunks: list[list[tuple[int, int]]] | None = None


class Encoder(Protocol):
    """Computes vectors; tests use a stand-in without a model.

    Attributes:
        empty: (0, width), of the dtype of the vectors.
        refusal: what is wrong with a text that is too long; None: it is cut.
        identity: what decides the values of a vector, by name, as JSON values.
        description: what is known of the model and the call, to explain another identity.
    """

    empty: npt.NDArray[Any]
    refusal: str | None

    @property
    def identity(self) -> dict[str, Any]:
        """See above."""

    @property
    def description(self) -> dict[str, Any]:
        """See above."""

    def windows(self, texts: Iterator[str], progress: Progress) -> Generator[Window, None, None]:
        """Windows of vectors, in the order of the texts; texts are read ahead.

        Args:
            texts: any number.
            progress: receives the tokens read and done.
        """


class EmbedderEncoder:
    """An Encoder around an Embedder and the keywords of a call."""

    def __init__(self, embedder: Embedder, **keywords: "Unpack[AllEncodeKeywords]") -> None:
        """Check the keywords.

        Args:
            embedder: the model.
            **keywords: those of `Embedder.encode_iter`, except NOT_FOR_FILES.

        Raises: TypeError, ValueError: unknown, invalid or not for files; the message names it.
        """
        if other := sorted(keywords.keys() & NOT_FOR_FILES):
            raise TypeError(f"vectors are written to a file as arrays: omit the keyword {other[0]}")
        unknown = sorted(keywords.keys() - Request.__dataclass_fields__)
        refuse_unknown(unknown, embedder.encode_iter, Request)
        self._embedder = embedder
        self._request = Request(**keywords).with_default(embedder.truncate_dim)
        # to refuse a text must not end the stream, which would have to begin anew behind it
        refuses = self._request.truncate == "error"
        streamed = replace(self._request, truncate="end") if refuses else self._request
        self._stream, width = embedder.stream(streamed)
        self.refusal = too_long(self._stream.task.max_length) if refuses else None
        self._ranges = self._request.fixed_ranges(width)
        none = torch.empty(0, width)
        self.empty: npt.NDArray[Any] = self._converted(none)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """See Encoder. Reads all parameters: about a second per 2 GB.

        Raises: ValueError: an adapter or a hook in the model.
        """
        request, ranges = self._request, self._ranges
        return {
            "vectors": self._embedder.fingerprint(
                prompt_name=request.prompt_name,
                prompt=request.prompt,
                matryoshka_dim=request.matryoshka_dim,
                truncate_dim=request.truncate_dim,
                normalize_embeddings=request.finish.normalize,
            ),
            "precision": request.form,
            "ranges": None if ranges is None else _digest(ranges.numpy()),
            "max_length": self._stream.task.max_length,
            "truncate": request.truncate,
        }

    @cached_property
    def description(self) -> dict[str, Any]:
        """See Encoder."""
        encoder, request = self._embedder.model, self._request
        prompt = request.prompt
        return {
            "model": repr(self._embedder),
            "checkpoint": encoder.loaded_from.name,
            "revision": encoder.loaded_from.commit,
            "prompt": self._embedder.prompt_text(request.prompt_name) if prompt is None else prompt,
            "dimension": self.empty.shape[1],
            "dtype": str(encoder.compute_dtype).removeprefix("torch."),
            "backend": encoder.ops.name,
        }

    def windows(self, texts: Iterator[str], progress: Progress) -> Generator[Window, None, None]:
        """See Encoder."""
        run = self._stream.run(texts, progress)
        with closing(cast("Generator[Any, None, None]", run)) as stream:
            for rows, lengths, cut in stream:
                assert isinstance(rows, Tensor)
                yield Window(self._converted(rows), lengths, cut)

    def _converted(self, rows: Tensor) -> npt.NDArray[Any]:
        array: npt.NDArray[Any] = (
            quantization.convert(rows, self._request.form, self._ranges).cpu().numpy()
        )
        return array


def _digest(array: npt.NDArray[np.float32]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]
