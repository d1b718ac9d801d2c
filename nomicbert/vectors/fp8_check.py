"""Check that linear layers in e4m3 leave a model's vectors nearly unchanged.

`Embedder` runs this at load on built-in sample texts, and refuses backend "fp8" if the vectors
change too much. Both sides run on the same device, so they differ only by rounding.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nomicbert.errors import AccuracyError
from nomicbert.modeling.backend_module import BackendModule
from nomicbert.text.samples import LONG, TEXTS
from nomicbert.user_warnings import TruncationWarning

# Required cosines to the vectors of backend "auto": the mean over all texts, and the lowest.
MEAN, LEAST = 0.999, 0.995
# Widths that Matryoshka checkpoints are trained for; those below the full width are checked.
WIDTHS = (1024, 768, 512, 256, 128, 64)
SAMPLE = (*TEXTS, *LONG.split(". "))


@dataclass(frozen=True)
class Agreement:
    """Agreement of two sets of vectors.

    Attributes:
        width: of the vectors.
        mean: of the cosines between each text's two vectors.
        least: the lowest of them.
    """

    width: int
    mean: float
    least: float

    @property
    def holds(self) -> bool:
        """Whether both bounds are met; NaN meets none."""
        return self.mean >= MEAN and self.least >= LEAST


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row-wise cosines of (n, width) and (n, width), in fp64: (n,)."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    found: np.ndarray = (a * b).sum(1) / lengths
    return found


def agreements(
    model: BackendModule,
    encode: Callable[..., Any],
    width: int,
    texts: Sequence[str] = SAMPLE,
) -> Iterator[Agreement]:
    """Compare the model's current backend with backend "auto", at each width.

    Args:
        model: its backend is switched for the comparison, and restored.
        encode: its `Embedder.encode_document`, or another function that takes matryoshka_dim.
        width: of its vectors.
        texts: to embed.
    """
    chosen = model.backend
    for size in (width, *(w for w in WIDTHS if w < width)):
        keywords = {} if size == width else {"matryoshka_dim": size}
        with warnings.catch_warnings():
            # both sides truncate the same texts at the same length
            warnings.simplefilter("ignore", TruncationWarning)
            narrow = encode(list(texts), **keywords)
            try:
                model.use("auto")
                found = cosines(narrow, encode(list(texts), **keywords))
            finally:
                model.use(chosen)
        yield Agreement(size, float(found.mean()), float(found.min()))


def accept(model: BackendModule, encode: Callable[..., Any], width: int) -> None:
    """Refuse backend "fp8" if it changes the model's vectors too much; see `agreements`.

    Raises: AccuracyError: it names the width and the cosines.
    """
    if model.backend != "fp8":
        return
    for found in agreements(model, encode, width):
        if not found.holds:
            raise AccuracyError(
                f"backend 'fp8' changes this checkpoint's vectors too much: at width {found.width} "
                f"their cosine to those of backend 'auto' is {found.mean:.5f} on average and "
                f"{found.least:.5f} at the lowest, but must be {MEAN} and {LEAST} or more: use "
                "backend 'auto'"
            )
