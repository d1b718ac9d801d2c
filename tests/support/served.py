"""What the tests of the server share: a tiny checkpoint, its name, and bodies as bytes."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nomicbert import Embedder
from nomicbert.serve.engine.compute import Replica
from tests.support.checkpoints import build_checkpoint
from tests.support.sameness import HAS_ONEDNN, nearly_equal
from tests.support.serving import InThread

# The name under which a checkpoint of `tiny` is served: its folder's.
MODEL = "tiny-v1.5"
WIDTH = 64
JSON = {"content-type": "application/json"}
NDJSON = "application/x-ndjson"
# 102 tokens with [CLS] and [SEP]: the tiny vocabulary has a token per character.
LONG = "a" * 100


def tiny(folder: Path, name: str = MODEL, **settings: Any) -> Path:
    """A nomic v1.5 checkpoint of one layer."""
    settings.setdefault("num_hidden_layers", 1)
    return build_checkpoint(folder / name, "nomic-v1.5", **settings)


def embedder_of(server: InThread) -> Embedder:
    """An embedder of its own with the server's weights and limit."""
    served = server.service.models[0]
    found = Embedder(str(server.service.settings.models[0]), device="cpu")
    found.max_seq_length = served.max_length
    return found


class Bits:
    """The bytes of fp32 vectors: equal if all bits are.

    Without oneDNN bits depend on the batch: there they are equal up to a few roundings.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __eq__(self, other: object) -> bool:
        content = other.content if isinstance(other, Bits) else other
        assert isinstance(content, bytes)
        if HAS_ONEDNN or len(content) != len(self.content):
            return content == self.content
        a, b = (np.frombuffer(each, "<f4") for each in (content, self.content))
        return nearly_equal(a, b)


def bits(vectors: Any) -> Bits:
    """The bits of fp32 vectors."""
    return Bits(vectors.astype("<f4").tobytes())


def same_quantised(found: Any, wanted: np.ndarray, precision: str) -> bool:
    """Whether quantised vectors are those of `encode`: equal, and as many.

    Without oneDNN bits depend on the batch: there a value may be on the other side of an edge.
    """
    got = np.array(found).astype(wanted.dtype)
    if got.shape != wanted.shape or not np.array_equal(got, found):
        return False
    if HAS_ONEDNN:
        return np.array_equal(got, wanted)
    if precision in ("int8", "uint8"):
        return int(np.abs(got.astype(int) - wanted.astype(int)).max(initial=0)) <= 1
    differ = np.unpackbits(got.view(np.uint8) ^ wanted.view(np.uint8))
    return bool(differ.mean() <= 0.01)


def lines(server: InThread) -> dict[str, float]:
    """Every series of /metrics with its value."""
    found = {}
    for line in server.call("/metrics").body.decode().splitlines():
        if not line.startswith("#"):
            series, _, value = line.rpartition(" ")
            found[series] = float(value)
    return found


class Gate:
    """Holds every batch of a server until it is opened; counts batches and texts."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self.batches = 0
        self.texts = 0

    def open(self) -> None:
        self._open.set()

    @classmethod
    @contextlib.contextmanager
    def on(cls, patch: pytest.MonkeyPatch) -> Iterator[Gate]:
        """A closed gate before `Replica.rows`; it is open after the block."""
        gate, rows = cls(), Replica.rows

        def held(replica: Replica, batch: Any) -> Any:
            gate.batches += 1
            gate.texts += len(batch)
            assert gate._open.wait(120)
            return rows(replica, batch)

        with patch.context() as inner:
            inner.setattr(Replica, "rows", held)
            try:
                yield gate
            finally:
                gate.open()


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
