"""Vectors -> the bytes of an answer, in slices, so that a large answer does not stop the others.

Where in the flow: the last step of a dialect. orjson writes the shortest digits that restore the
float32, so JSON keeps every bit; base64 is that of the little-endian values. `forms` has other
precisions.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import orjson
import pybase64
from torch import Tensor

Header = tuple[bytes, bytes]

# Rows and values that are written at a time, between turns of the event loop.
SLICE = 64
VALUES = 1 << 16
# About the bytes of one value in an answer, for limits.
FLOAT_BYTES = 13.0
BASE64_BYTES = 16 / 3
JSON = b"application/json"
NDJSON = b"application/x-ndjson"


@dataclass(frozen=True)
class Answer:
    """What is sent.

    Attributes:
        content: the body in parts; an iterator is sent as it comes.
        status: of HTTP.
        media: content type, without a charset, which some clients do not accept.
        headers: more headers.
    """

    content: list[bytes] | AsyncIterator[bytes]
    status: int = 200
    media: bytes = JSON
    headers: list[Header] = field(default_factory=list)


def as_json(value: object, status: int = 200) -> Answer:
    """An answer of plain values."""
    return Answer([orjson.dumps(value)], status)


def base64(row: Tensor) -> str:
    """Little-endian values as base64."""
    values = row.numpy()
    little = values.dtype.newbyteorder("<")
    return pybase64.b64encode_as_string(values.astype(little, copy=False).tobytes())


def numbers(row: Tensor) -> np.ndarray:
    """Values for `dumps`."""
    return np.ascontiguousarray(row.numpy())


def dumps(value: object) -> bytes:
    """JSON of values with arrays in them."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


async def listed(
    rows: Sequence[Tensor], item: Callable[[int, Tensor], object], before: bytes, after: bytes
) -> list[bytes]:
    """A JSON list with an item per row, between two pieces of JSON.

    Args:
        rows: of the answer.
        item: index and row -> the item.
        before: the JSON up to the list, its bracket included.
        after: the JSON from the closing bracket on.
    """
    parts = [before]
    size = max(1, min(SLICE, VALUES // max((row.numel() for row in rows), default=1)))
    for start in range(0, len(rows), size):
        if start:
            parts.append(b",")
            await asyncio.sleep(0)
        items = [item(start + i, row) for i, row in enumerate(rows[start : start + size])]
        parts.append(dumps(items)[1:-1])
    parts.append(after)
    return parts
