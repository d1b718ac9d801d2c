"""The forms that an answer can give vectors: precision, and JSON numbers or base64.

Where in the flow: a dialect converts the rows of `service.embed` before it writes them with
`answers`. The values are those of `Embedder.encode` with the same `precision`. int8 and uint8 need
ranges that do not depend on the request; these are fixed, for unit vectors:

    int8 = round(16 sqrt(width) x), limited to -128 to 127;    uint8 = int8 + 128

A vector of length 1 has values of 1 / sqrt(width) on average (root mean square), which become 16.
Values of eight times that average are limited. 0 stays 0, so products of int8 vectors are
proportional to cosines.
"""

import asyncio
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from nomicbert.serve.http.answers import BASE64_BYTES, FLOAT_BYTES, base64, numbers
from nomicbert.serve.http.problems import Problem, Reason
from nomicbert.vectors import quantization
from nomicbert.vectors.quantization import Precision

# What the average value of a unit vector becomes.
AVERAGE = 16
# Values that are converted at a time; torch uses threads from 32,768 on.
VALUES = 1 << 14
# Bytes per column of a vector, in memory, and as JSON numbers with their commas, about.
SIZES: dict[Precision, tuple[float, float]] = {
    "float32": (4, FLOAT_BYTES),
    "float16": (2, FLOAT_BYTES),
    "int8": (1, 4),
    "uint8": (1, 4),
    "binary": (1 / 8, 5 / 8),
    "ubinary": (1 / 8, 4 / 8),
}


def unit_ranges(width: int) -> np.ndarray:
    """The `ranges` of `encode` with which int8 and uint8 have the server's values.

    Args:
        width: columns of a vector.

    Returns: (2, width) fp32: smallest and largest value of each column.
    """
    step = 1 / (AVERAGE * math.sqrt(width))
    # a level begins half a step below its value
    return np.repeat(np.array([[-128.5 * step], [126.5 * step]], np.float32), width, axis=1)


@lru_cache(maxsize=64)
def _ranges(width: int) -> Tensor:
    return torch.from_numpy(unit_ranges(width))


@dataclass(frozen=True)
class Form:
    """How an answer gives vectors.

    Attributes:
        precision: of their values.
        as_base64: base64 of the little-endian values, not a list of numbers.
    """

    precision: Precision = "float32"
    as_base64: bool = False

    @property
    def value_bytes(self) -> float:
        """Bytes per column of a vector in the answer, about."""
        size, as_numbers = SIZES[self.precision]
        return size / 4 * BASE64_BYTES if self.as_base64 else as_numbers

    def check(self, field: str, *, unit: bool) -> None:
        """Refuse vectors of any length in a form for unit vectors.

        Args:
            field: names the precision in the body.
            unit: whether the vectors have length 1.

        Raises: Problem.
        """
        if not unit and quantization.needs_ranges(self.precision):
            raise Problem(
                Reason.INVALID,
                f"`{field}` {self.precision} is for vectors of length 1: not `normalize` false",
                field,
            )

    def convert(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """Rows (width,) fp32 in this precision; the binary ones have ceil(width / 8) columns.

        Raises: Problem: a value is too large for float16.
        """
        if self.precision == "float32":
            return list(rows)
        return [row for part in _slices(rows) for row in self._convert(part)]

    async def convert_in_turns(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """`convert` in slices, between turns of the event loop."""
        if self.precision == "float32":
            return list(rows)
        found: list[Tensor] = []
        for part in _slices(rows):
            found += self._convert(part)
            await asyncio.sleep(0)
        return found

    def _convert(self, rows: Sequence[Tensor]) -> Sequence[Tensor]:
        found = torch.stack(list(rows))
        if self.precision == "float16" and float(found.abs().amax()) > quantization.MOST_FLOAT16:
            raise Problem(
                Reason.INVALID,
                f"a vector has values beyond {quantization.MOST_FLOAT16:.0f}, float16's largest: "
                "ask for float32, or for vectors of length 1",
            )
        needs = quantization.needs_ranges(self.precision)
        ranges = _ranges(found.shape[1]) if needs else None
        return list(quantization.convert(found, self.precision, ranges))

    def value(self, row: Tensor) -> object:
        """A converted row, for `answers.dumps`."""
        return base64(row) if self.as_base64 else numbers(row)


def _slices(rows: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
    """Rows that are converted at a time: so few values that torch starts no threads for them."""
    if not rows:
        return
    size = max(1, VALUES // max(1, rows[0].numel()))
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
