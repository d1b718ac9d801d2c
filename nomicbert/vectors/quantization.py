"""Precisions of vectors: float32, float16, and quantised ones.

int8, uint8: each column's range in 256 equal levels. binary, ubinary: the sign of each value as a
bit, eight to a byte, first column in the highest bit; binary shifts the byte by -128.
Source: sentence-transformers' `quantize_embeddings`, with the same results.
"""

import logging
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nomicbert.user_warnings import VectorWarning, warn

Precision = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]

# Ranges of fewer vectors than this are a poor estimate for further vectors.
ENOUGH_VECTORS = 100

MOST_FLOAT16 = torch.finfo(torch.float16).max

logger = logging.getLogger(__name__)


def check(precision: str, ranges: Any, width: int) -> Tensor | None:
    """Refuse an unknown precision, or ranges that do not fit.

    Args:
        precision: one of `Precision`.
        ranges: None, or (2, width): smallest and largest value of each column.
        width: columns of a vector.

    Returns: the ranges as fp32, or None.
    Raises: ValueError.
    """
    if precision not in get_args(Precision):
        known = ", ".join(get_args(Precision))
        raise ValueError(f"precision must be one of {known}, not {precision!r}")
    if ranges is None:
        return None
    if not needs_ranges(precision):
        raise ValueError(f"ranges apply to precision 'int8' and 'uint8' only, not to {precision!r}")
    try:
        found = torch.tensor(np.asarray(ranges, dtype=np.float32))
    except (TypeError, ValueError) as error:
        raise ValueError(f"ranges must be an array of shape (2, {width}): {error}") from error
    if found.shape != (2, width):
        raise ValueError(
            f"ranges must be (2, {width}), smallest and largest value of each column, not "
            f"{tuple(found.shape)}"
        )
    sound = found.isfinite().all(0) & (found[0] <= found[1])
    if not bool(sound.all()):
        column = int((~sound).nonzero()[0])
        low, high = found[:, column].tolist()
        raise ValueError(
            f"ranges must be finite and ascending, but column {column} runs from {low} to {high}"
        )
    return found


def needs_ranges(precision: str) -> bool:
    """Whether quantising to this precision needs ranges."""
    return precision in ("int8", "uint8")


def ranges_of(vectors: Tensor, precision: str) -> Tensor:
    """(2, width) fp32: smallest and largest value of each column of (n, width) vectors.

    Raises: ValueError: fewer than two vectors, whose ranges would have zero width.
    """
    if len(vectors) < 2:
        raise ValueError(
            f"precision {precision!r} needs ranges: (2, {vectors.shape[1]}), smallest and largest "
            "value of each column; without them, a call must have at least two texts, and better "
            "thousands, to compute its own"
        )
    if len(vectors) < ENOUGH_VECTORS:
        logger.warning(
            "the ranges of %s were computed from only %d vectors: another call will quantise "
            "differently; pass ranges computed from many vectors",
            precision,
            len(vectors),
        )
    return torch.stack([vectors.amin(0), vectors.amax(0)])


def convert(vectors: Tensor, precision: str, ranges: Tensor | None = None) -> Tensor:
    """Convert vectors to a precision.

    Args:
        vectors: (n, width) fp32.
        precision: one of `Precision`.
        ranges: (2, width) fp32, for int8 and uint8.

    Returns: (n, width) in that dtype; (n, ceil(width / 8)) int8 for binary, uint8 for ubinary.
    """
    if precision == "float16":
        half = vectors.half()
        if half.isinf().any() and vectors.isfinite().all():
            warn(
                f"precision 'float16' holds values up to {MOST_FLOAT16:.0f}, and these vectors are "
                "larger: normalise them, or keep float32",
                VectorWarning,
            )
        return half
    if precision == "float32":
        return vectors
    if needs_ranges(precision):
        assert ranges is not None or not len(vectors)  # computed by the caller
        low, high = vectors.new_zeros(2, 1) if ranges is None else ranges.to(vectors.device)
        steps = (high - low) / 255
        steps = torch.where(steps == 0, 1.0, steps)
        levels: Tensor = ((vectors - low) / steps).floor().clamp(0, 255)
        return levels.to(torch.uint8) if precision == "uint8" else (levels - 128).to(torch.int8)
    bits = F.pad((vectors > 0).to(torch.uint8), (0, -vectors.shape[1] % 8))
    places = 2 ** torch.arange(7, -1, -1, dtype=torch.uint8, device=vectors.device)
    packed = (torch.unflatten(bits, 1, (-1, 8)) * places).sum(2, dtype=torch.uint8)
    shifted: Tensor = packed ^ 0x80
    return packed if precision == "ubinary" else shifted.view(torch.int8)
