"""Messages between the server and a worker process, on a socket: a batch there, its rows back.

    "nmb1"  bytes of the header (uint32)  bytes of the body (uint64)  body  header

Where in the flow: `process` sends what `isolated` asks for, `worker` answers. A header is msgpack;
the body has numbers as they are in memory, int32 or fp32. Nothing is unpickled or executed. Bytes
that are no message of the kind that is awaited are a WireError: the connection is of no more use.
"""

import math
import socket
import struct
from collections.abc import Sequence
from itertools import accumulate, chain, pairwise
from typing import TypeVar

import msgspec
import numpy as np
import torch
from torch import Tensor

from nomicbert.errors import WorkerError
from nomicbert.serve.engine.jobs import Group, Job, Piece
from nomicbert.serve.engine.runs import ModelFacts
from nomicbert.vectors.pooling import Finish

MAGIC = b"nmb1"
# Native byte order: both ends are on one machine.
PREFIX = struct.Struct("=4sIQ")
# Limits that no message comes near: hidden states of 8,192 tokens with 1,024 columns are 32 MiB.
MOST_HEADER = 1 << 26
MOST_BODY = 1 << 31
NOTHING = memoryview(b"")
# Bytes that are read at once. The body is behind 16 bytes, so its numbers are aligned.
SHORT = 1 << 16
# Of a row; None for any number of columns.
Shape = tuple[int | None, ...]


class WireError(WorkerError):
    """Bytes that are not the message that was awaited."""


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """A header; its class is in it."""


class Text(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One piece of a batch.

    Attributes:
        tokens: number of its ids in the body.
        finish: place of its steps after pooling in `Batch.finishes`.
        split: see `Piece`.
    """

    tokens: int
    finish: int
    split: int | None


class Batch(Message, frozen=True):
    """Compute these texts. Body: their ids end to end, int32.

    Attributes:
        group: as of `jobs`.
        texts: in order.
        finishes: distinct steps after pooling; None for pooled hidden states.
    """

    group: Group
    texts: list[Text]
    finishes: list[Finish | None]


class Pooled(Message, frozen=True):
    """Apply the steps after pooling. Body: (rows, columns) fp32.

    Attributes:
        model: index of the model.
        rows: number of them.
        finish: the steps.
    """

    model: int
    rows: int
    finish: Finish


class Rows(Message, frozen=True):
    """The answer to a Batch or to Pooled. Body: the values of all rows, fp32.

    Attributes:
        shapes: of each row.
    """

    shapes: list[tuple[int, ...]]


class Failed(Message, frozen=True):
    """The answer where the computation has raised an error. No body.

    Attributes:
        kind: class of the error.
        message: of the error.
        trace: its traceback, for the log.
    """

    kind: str
    message: str
    trace: str


class Facts(Message, frozen=True):
    """The worker is ready. Body: the rows of the self-test of all models, fp32."""

    models: list[ModelFacts]


# What a worker is sent, and what it answers.
Request = Batch | Pooled
Answer = Rows | Failed
Start = Facts | Failed
Header = TypeVar("Header")
REQUESTS = msgspec.msgpack.Decoder(Request)
ANSWERS = msgspec.msgpack.Decoder(Answer)
STARTS = msgspec.msgpack.Decoder(Start)


def send(connection: socket.socket, header: Message, body: memoryview = NOTHING) -> None:
    """Send a message.

    Raises: OSError: the other end is gone; TimeoutError: it does not read.
    """
    head = msgspec.msgpack.encode(header)
    connection.sendall(b"".join((PREFIX.pack(MAGIC, len(head), len(body)), body, head)))


def receive(
    connection: socket.socket, decoder: "msgspec.msgpack.Decoder[Header]"
) -> tuple[Header, np.ndarray]:
    """Wait for a message: its header, and its body as uint8.

    Raises: EOFError: the other end has closed. WireError: something else came, or more. OSError.
    """
    # most messages are short, and one call reads them
    found = np.empty(SHORT, np.uint8)
    done = _read(connection, found, 0, PREFIX.size)
    magic, head_size, body_size = PREFIX.unpack(found[: PREFIX.size].data)
    if magic != MAGIC or head_size > MOST_HEADER or body_size > MOST_BODY:
        raise WireError(f"a message begins with {magic!r}, {head_size}, {body_size}")
    size = PREFIX.size + body_size + head_size
    if size > SHORT:
        longer = np.empty(size, np.uint8)
        longer[:done] = found[:done]
        found = longer
    done = _read(connection, found, done, size)
    if done > size:
        raise WireError(f"{done - size} bytes follow a message")
    body, head = found[PREFIX.size : size - head_size], found[size - head_size : size]
    try:
        header = decoder.decode(head.data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"a header cannot be read: {error}") from error
    # rows may be kept for long, and with them the memory that they are views of
    return header, body.copy() if size <= SHORT else body


def _read(connection: socket.socket, found: np.ndarray, done: int, least: int) -> int:
    """Read into `found` from `done` on until there are `least` bytes; return how many there are."""
    view = found.data
    while done < least:
        count = connection.recv_into(view[done:])
        if not count:
            raise EOFError("the connection was closed")
        done += count
    return done


def numbers(body: np.ndarray, kind: type[np.generic], count: int) -> np.ndarray:
    """A body as `count` numbers of 4 bytes.

    Raises: WireError: it has another number of them.
    """
    if len(body) != 4 * count:
        raise WireError(f"a body has {len(body)} bytes, not 4 x {count}")
    return body.view(kind)


def of_batch(batch: Sequence[Piece]) -> tuple[Batch, memoryview]:
    """The message of a batch."""
    places: dict[Finish | None, int] = {}
    texts = [
        Text(len(piece.ids), places.setdefault(piece.job.finish, len(places)), piece.split)
        for piece in batch
    ]
    ids = np.fromiter(chain.from_iterable(piece.ids for piece in batch), np.int32)
    return Batch(batch[0].job.group, texts, list(places)), ids.view(np.uint8).data


def to_batch(header: Batch, body: np.ndarray, models: int) -> list[Piece]:
    """The pieces of a message, for `Replica.rows`.

    Args:
        header: of the message.
        body: of the message.
        models: number of models.

    Raises: WireError: numbers that do not fit each other.
    """
    lengths = [text.tokens for text in header.texts]
    sound = lengths and min(lengths) >= 0 and 0 <= header.group.model < models
    if not sound or not all(
        0 <= text.finish < len(header.finishes) and 0 <= (text.split or 0) <= text.tokens
        for text in header.texts
    ):
        raise WireError("the numbers of a batch do not fit each other")
    ids = numbers(body, np.int32, sum(lengths)).tolist()
    edges = pairwise(accumulate(lengths, initial=0))
    return [
        Piece(
            Job(
                header.group,
                [ids[begin:end]],
                header.finishes[text.finish],
                splits=None if text.split is None else [text.split],
            ),
            0,
        )
        for text, (begin, end) in zip(header.texts, edges, strict=True)
    ]


def of_pooled(model: int, pooled: Tensor, finish: Finish) -> tuple[Pooled, memoryview]:
    """The message of pooled rows (n, columns), fp32 on the CPU."""
    flat = pooled.contiguous().view(-1).numpy()
    return Pooled(model, len(pooled), finish), flat.view(np.uint8).data


def to_pooled(header: Pooled, body: np.ndarray, models: int) -> Tensor:
    """The pooled rows of a message.

    Raises: WireError: numbers that do not fit each other.
    """
    if not (0 <= header.model < models and header.rows > 0 and len(body) % (4 * header.rows) == 0):
        raise WireError("the numbers of pooled rows do not fit each other")
    return torch.from_numpy(body.view(np.float32)).view(header.rows, -1)


def of_rows(rows: Sequence[Tensor]) -> tuple[Rows, memoryview]:
    """The message of rows, fp32 on the CPU."""
    shapes = [tuple(row.shape) for row in rows]
    flat = torch.cat([row.reshape(-1) for row in rows]) if rows else torch.empty(0)
    assert flat.dtype is torch.float32, "rows are fp32"
    return Rows(shapes), flat.numpy().view(np.uint8).data


def to_rows(header: Rows, body: np.ndarray, shapes: Sequence[Shape]) -> list[Tensor]:
    """The rows of a message.

    Args:
        header: of the message.
        body: of the message.
        shapes: that the rows must have; None for any number of columns.

    Raises: WireError: other shapes, or values that do not fit them.
    """
    found = header.shapes
    if len(found) != len(shapes) or not all(map(_fits, found, shapes)):
        raise WireError(f"{len(found)} rows came in place of {len(shapes)}, or of other shapes")
    counts = list(map(math.prod, found))
    values = torch.from_numpy(numbers(body, np.float32, sum(counts)))
    rows = [
        part.view(shape) for part, shape in zip(torch.split(values, counts), found, strict=True)
    ]
    # a view would keep the states of the whole batch in memory
    return [row.clone() if row.ndim > 1 else row for row in rows]


def to_vectors(header: Facts, body: np.ndarray) -> list[Tensor]:
    """The vector of each model's self-test.

    Raises: WireError: values that do not fit the widths.
    """
    shapes: list[tuple[int, ...]] = [(model.width,) for model in header.models]
    return to_rows(Rows(shapes), body, shapes)


def _fits(found: tuple[int, ...], wanted: Shape) -> bool:
    return len(found) == len(wanted) and all(
        size >= 0 and expected in (None, size) for size, expected in zip(found, wanted, strict=True)
    )
