"""Signs of vectors as bits, and the number of signs in which two vectors differ.

    bits[w, i]: 64 signs of vector i, from column 64 w on; 1 where the value is above 0

Where in the flow: `mapped` stores them, `scan` compares questions with them. Words of one column
lie side by side, so that a block of rows is compared word by word without a sum over short rows.

Source: Charikar 2002, doi:10.1145/509907.509965: signs that differ estimate the angle.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.uint64]
WORD = 64


def words_of(width: int) -> int:
    """Words per vector."""
    return -(-width // WORD)


def bits_of(vectors: npt.NDArray[np.float32]) -> Bits:
    """The signs of vectors.

    Args:
        vectors: (n, width) float32.

    Returns: (words, n) uint64; the bits behind the last column are 0.
    """
    packed = np.packbits(vectors > 0, axis=1)
    padded = np.zeros((len(vectors), words_of(vectors.shape[1]) * 8), np.uint8)
    padded[:, : packed.shape[1]] = packed
    return np.ascontiguousarray(padded.view(np.uint64).T)


def differing(bits: Bits, question: Bits) -> npt.NDArray[np.uint16]:
    """How many signs differ.

    Args:
        bits: (words, n).
        question: (words,).

    Returns: (n,) uint16.
    """
    found = np.zeros(bits.shape[1], np.uint16)
    for words, word in zip(bits, question, strict=True):
        found += _ones(words ^ word)
    return found


def _ones(words: Bits) -> npt.NDArray[np.uint8]:
    """Bits that are 1, per word; by a table for NumPy before 2.0."""
    count: Any = getattr(np, "bitwise_count", None)
    if count is not None:
        ones: npt.NDArray[np.uint8] = count(words)
        return ones
    quarters = _table()[words.view(np.uint16)].reshape(len(words), 4)
    return np.asarray(quarters.sum(axis=1), np.uint8)


@lru_cache(maxsize=1)
def _table() -> npt.NDArray[np.uint8]:
    numbers = np.arange(1 << 16, dtype=np.uint16).view(np.uint8).reshape(-1, 2)
    return np.asarray(np.unpackbits(numbers, axis=1).sum(axis=1), np.uint8)
