"""Whether a model with linear layers in e4m3 gives the vectors that it gives without.

`Embedder` asks at load, with texts of its own: backend "fp8" is refused to a checkpoint that it
does not suit. Both sides run here, on the same device, so what differs is the rounding.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nomicbert.errors import AccuracyError
from nomicbert.modeling.backend_module import Computing
from nomicbert.text.samples import LONG, TEXTS
from nomicbert.user_warnings import TruncationWarning

# Cosines to the vectors without it: the mean over all texts, and the least of one.
MEAN, LEAST = 0.999, 0.995
# The widths that Matryoshka checkpoints are trained for; those below a checkpoint's own count.
WIDTHS = (1024, 768, 512, 256, 128, 64)
SAMPLE = (*TEXTS, *LONG.split(". "))


@dataclass(frozen=True)
class Agreement:
    """How near two sets of vectors are.

    Attributes:
        width: of the vectors.
        mean: of the cosines of each text's two vectors.
        least: the smallest of them.
    """

    width: int
    mean: float
    least: float

    @property
    def holds(self) -> bool:
        """Whether it is near enough; numbers that are not finite are not."""
        return self.mean >= MEAN and self.least >= LEAST


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of (n, width) and (n, width), row by row, in fp64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    found: np.ndarray = (a * b).sum(1) / lengths
    return found


def agreements(
    model: Computing,
    encode: Callable[..., Any],
    width: int,
    texts: Sequence[str] = SAMPLE,
) -> Iterator[Agreement]:
    """Compare the model as it is with itself on backend "auto", at each width.

    Args:
        model: whose backend is changed for the comparison, and put back.
        encode: its `Embedder.encode_document`, or another that takes matryoshka_dim.
        width: of its vectors.
        texts: what is embedded.
    """
    chosen = model.backend
    for size in (width, *(w for w in WIDTHS if w < width)):
        keywords = {} if size == width else {"matryoshka_dim": size}
        with warnings.catch_warnings():
            # both sides cut the same texts at the same place
            warnings.simplefilter("ignore", TruncationWarning)
            narrow = encode(list(texts), **keywords)
            try:
                model.use("auto")
                found = cosines(narrow, encode(list(texts), **keywords))
            finally:
                model.use(chosen)
        yield Agreement(size, float(found.mean()), float(found.min()))


def accept(model: Computing, encode: Callable[..., Any], width: int) -> None:
    """Refuse backend "fp8" to a model whose vectors it moves too far; see `agreements`.

    Raises: AccuracyError: it names the width and the cosines.
    """
    if model.backend != "fp8":
        return
    for found in agreements(model, encode, width):
        if not found.holds:
            raise AccuracyError(
                f"backend 'fp8' moves this checkpoint's vectors too far: at width {found.width} "
                f"their cosine to those without it is {found.mean:.5f} on average and "
                f"{found.least:.5f} at least, where {MEAN} and {LEAST} are wanted: use "
                "backend 'auto'"
            )
