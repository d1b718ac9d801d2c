"""Messages between server and worker: what is sent arrives, and nothing else is accepted."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from nomicbert.serve.engine import wire
from nomicbert.serve.engine.jobs import Group, Job, Piece
from nomicbert.serve.engine.runs import ModelFacts
from nomicbert.vectors.fingerprint import Fingerprint
from nomicbert.vectors.pooling import Finish
from tests.support.guards import guarded

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    a, b = socket.socketpair()
    with a, b:
        a.settimeout(30)
        b.settimeout(30)
        yield a, b


def pieces(group: Group, *texts: tuple[list[int], Finish | None]) -> list[Piece]:
    return [Piece(Job(group, [ids], finish), 0) for ids, finish in texts]


WHOLE, SHORT = Finish(), Finish(matryoshka_dim=8)
BATCH = pieces(
    Group(1, 2), ([5, 2**31 - 1, 0], WHOLE), ([], SHORT), ([7], Finish(None, 5, unnormalized=True)),
    ([9, 9], WHOLE), ([1], None),
)  # fmt: skip


def test_a_batch_arrives(pair: Pair) -> None:
    for batch in (
        BATCH,
        pieces(Group(0, hidden=True), ([3, 4], None)),
        pieces(Group(0), ([], WHOLE)),
        [Piece(Job(Group(1), [[3, 4, 5], [6]], None, splits=[2, 1]), i) for i in range(2)],
    ):
        wire.send(pair[0], *wire.of_batch(batch))
        header, body = wire.receive(pair[1], wire.REQUESTS)
        assert isinstance(header, wire.Batch)
        found = wire.to_batch(header, body, 2)
        assert [(one.job.group, one.ids, one.job.finish, one.split) for one in found] == [
            (one.job.group, one.ids, one.job.finish, one.split) for one in batch
        ]
        assert all(type(one.ids) is list and type(one.job.group) is Group for one in found)


def test_equal_steps_after_pooling_are_sent_once() -> None:
    header, _ = wire.of_batch(BATCH)
    assert len(header.finishes) == 4
    assert [text.finish for text in header.texts] == [0, 1, 2, 0, 3]


def test_rows_arrive(pair: Pair) -> None:
    odd = torch.tensor([0.0, -0.0, float("nan"), float("inf"), 1e-45])
    for rows, shapes in (
        ([odd, torch.arange(3.0), torch.empty(0)], [(None,)] * 3),
        ([torch.randn(3, 4), torch.empty(0, 4)], [(3, None), (0, None)]),
    ):
        wire.send(pair[0], *wire.of_rows(rows))
        header, body = wire.receive(pair[1], wire.ANSWERS)
        assert isinstance(header, wire.Rows)
        found = wire.to_rows(header, body, shapes)
        assert [row.shape for row in found] == [row.shape for row in rows]
        for one, wanted in zip(found, rows, strict=True):
            assert one.numpy().tobytes() == wanted.numpy().tobytes()
            assert one.ndim == 1 or one.untyped_storage().nbytes() == one.nbytes


@pytest.mark.parametrize("columns", [1, 10_000, 16_380, 16_384, 100_000, 3_000_000])
def test_messages_of_any_size(columns: int, pair: Pair, seed: int) -> None:
    """In as many parts as they come."""
    row = torch.randn(columns, generator=torch.Generator().manual_seed(seed))
    thread = threading.Thread(target=wire.send, args=(pair[0], *wire.of_rows([row])))
    thread.start()
    header, body = wire.receive(pair[1], wire.ANSWERS)
    thread.join()
    assert isinstance(header, wire.Rows)
    (found,) = wire.to_rows(header, body, [(None,)])
    assert torch.equal(found, row)
    assert found.data_ptr() % 4 == 0


def test_one_message_after_the_other() -> None:
    content = message(*wire.of_batch(BATCH))
    assert "follow a message" in refused(content + b"x")
    assert "follow a message" in refused(content * 2)


def test_pooled_rows_arrive(pair: Pair) -> None:
    pooled = torch.randn(6, 3).t()  # not contiguous
    wire.send(pair[0], *wire.of_pooled(1, pooled, SHORT))
    header, body = wire.receive(pair[1], wire.REQUESTS)
    assert isinstance(header, wire.Pooled)
    assert (header.model, header.finish) == (1, SHORT)
    assert torch.equal(wire.to_pooled(header, body, 2), pooled)


def test_facts_arrive(pair: Pair) -> None:
    from nomicbert.serve.engine.runs import Runs

    runs = Runs("cpu", "float32", "float32", "torch", True, "an embedder")
    one = ModelFacts(64, 1.5, runs, Fingerprint("abc", 8, True, False), 8)
    wire.send(pair[0], wire.Facts([one]))
    header, _ = wire.receive(pair[1], wire.STARTS)
    assert header == wire.Facts([one])


def test_a_closed_connection(pair: Pair) -> None:
    content = message(*wire.of_batch(BATCH))
    pair[0].sendall(content[:-1])
    pair[0].close()
    with pytest.raises(EOFError):
        wire.receive(pair[1], wire.REQUESTS)


def message(header: Any, body: Any = b"") -> bytes:
    """The bytes of a message."""
    head = header if isinstance(header, bytes) else msgspec.msgpack.encode(header)
    return wire.PREFIX.pack(wire.MAGIC, len(head), len(body)) + bytes(body) + head


def read(connection: socket.socket, decoder: Any) -> None:
    """Read one message, with all checks."""
    header, body = wire.receive(connection, decoder)
    if isinstance(header, wire.Batch):
        wire.to_batch(header, body, 2)
    elif isinstance(header, wire.Pooled):
        wire.to_pooled(header, body, 2)
    elif isinstance(header, wire.Rows):
        wire.to_rows(header, body, [(None,), (2, None)])


def refused(content: bytes, decoder: Any = wire.REQUESTS) -> str:
    a, b = socket.socketpair()
    with a, b:
        b.settimeout(30)
        a.sendall(content)
        a.close()
        with pytest.raises(wire.WireError) as caught, guarded(room=1 << 28):
            read(b, decoder)
    return str(caught.value)


def test_other_bytes_are_refused() -> None:
    assert "begins with" in refused(b"GET / HTTP/1.1\r\n\r\n")
    assert "begins with" in refused(b"nmb2" + message(*wire.of_batch(BATCH))[4:])
    for head, body in ((wire.MOST_HEADER + 1, 0), (0, wire.MOST_BODY + 1), (2**32 - 1, 2**64 - 1)):
        assert "begins with" in refused(struct.pack("=4sIQ", wire.MAGIC, head, body))
    for head in (b"", b"\x80", b"\xc1", b"\xff" * 9, b"\x91" * 5000, b"\x81\xa4type\xa5Batch"):
        assert "header" in refused(message(head))


@pytest.mark.parametrize(
    "header",
    [
        {"type": "Rows", "shapes": []},  # an answer in place of a request
        {"type": "Batch", "group": [0, 0, False], "texts": [[1, 0, None]]},
        {"type": "Batch", "group": [0, 0], "texts": [[1, 0, None]], "finishes": [None], "more": 1},
        {"type": "Batch", "group": ["0"], "texts": [[1, 0, None]], "finishes": [None]},
        {"type": "Batch", "group": [0], "texts": [[1, 0, None, 0]], "finishes": [None]},
        {"type": "Batch", "group": [0], "texts": [[1, 0, None]], "finishes": [{"normalize": 1}]},
        {"type": "Pooled", "model": 0, "rows": 1.5, "finish": {}},
        [1, 2], "text", None,
    ],
    ids=str,
)  # fmt: skip
def test_other_headers_are_refused(header: Any) -> None:
    assert "header" in refused(message(header, bytes(4)))


def batch(
    group: Any = (0,), texts: Any = ((1, 0, None),), finishes: Any = (None,)
) -> dict[str, Any]:
    return {"type": "Batch", "group": group, "texts": texts, "finishes": finishes}


@pytest.mark.parametrize(
    ("header", "size"),
    [
        (batch(texts=[]), 0), (batch(), 0), (batch(), 3), (batch(), 8), (batch(group=(2,)), 4),
        (batch(group=(-1,)), 4), (batch(texts=[(-1, 0, None), (2, 0, None)]), 4),
        (batch(texts=[(1, 1, None)]), 4), (batch(texts=[(1, -1, None)]), 4),
        (batch(texts=[(1, 0, 2)]), 4), (batch(texts=[(1, 0, -1)]), 4),
        (batch(texts=[(2**62, 0, None), (2**62, 0, None)]), 4),
        ({"type": "Pooled", "model": 2, "rows": 1, "finish": {}}, 4),
        ({"type": "Pooled", "model": 0, "rows": 0, "finish": {}}, 0),
        ({"type": "Pooled", "model": 0, "rows": 2, "finish": {}}, 4),
    ],
    ids=str,
)  # fmt: skip
def test_numbers_that_do_not_fit_are_refused(header: Any, size: int) -> None:
    refused(message(header, bytes(size)))


@pytest.mark.parametrize(
    ("shapes", "size"),
    [
        ([], 0), ([[3]], 12), ([[3], [2, 4]], 40), ([[3], [2, 4]], 48), ([[3], [8]], 44),
        ([[3], [3, 4]], 60), ([[3], [2, -4]], 0), ([[1, 3], [2, 4]], 44),
        ([[2**40], [2, 2**40]], 8), ([[-3], [2, 4]], 20),
    ],
    ids=str,
)  # fmt: skip
def test_rows_of_other_shapes_are_refused(shapes: Any, size: int) -> None:
    refused(message({"type": "Rows", "shapes": shapes}, bytes(size)), wire.ANSWERS)


def test_damaged_messages(seed: int) -> None:
    """Of any damage to a message, no other error comes than those of the protocol."""
    rng = np.random.default_rng(seed)
    sound = [
        (message(*wire.of_batch(BATCH)), wire.REQUESTS),
        (message(*wire.of_pooled(0, torch.randn(2, 3), SHORT)), wire.REQUESTS),
        (message(*wire.of_rows([torch.randn(3), torch.randn(2, 4)])), wire.ANSWERS),
    ]
    outcomes = {"refused": 0, "accepted": 0}
    with guarded(seconds=60):
        for _ in range(3000):
            content, decoder = sound[rng.integers(len(sound))]
            damaged = bytearray(content)
            # lengths within the message's, or the end would be waited for and not come
            places = rng.integers(PREFIX_END, len(damaged), int(rng.integers(1, 4)))
            for place in places:
                damaged[place] = rng.integers(256)
            a, b = socket.socketpair()
            with a, b:
                b.settimeout(30)
                a.sendall(damaged)
                try:
                    read(b, decoder)
                    outcomes["accepted"] += 1
                except wire.WireError:
                    outcomes["refused"] += 1
    assert min(outcomes.values()) > 100, outcomes


PREFIX_END = wire.PREFIX.size
