"""Freed memory is kept by glibc and reused by the next batch."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nomicbert import CrossEncoder, Embedder
from nomicbert.runtime import allocator
from tests.support.checkpoints import build_checkpoint
from tests.support.rerankers import build_reranker

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
FAULTS = """
import resource
import torch
from nomicbert.runtime.allocator import keep_freed_memory

keep_freed_memory(torch.device("cpu"))

def take():
    for _ in range(3):
        torch.ones(4, 1 << 20)
        torch.ones(16, 1 << 20)

for _ in range(3):
    take()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
take()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


class Malloc:
    """Replaces the C library."""

    def __init__(self, *accepted: int) -> None:
        self.accepted, self.calls = accepted, []  # type: ignore[var-annotated]

    def mallopt(self, name: int, value: int) -> int:
        self.calls.append((name, value))
        return int(value in self.accepted)


@pytest.fixture(autouse=True)
def afresh() -> None:
    allocator.tell_glibc.cache_clear()


def faults(**environment: str) -> int:
    """Page faults of a process for memory that it has used before."""
    path = os.pathsep.join(map(str, (ROOT, ROOT / "kernels")))
    own = (allocator.SWITCH, *allocator.OWN, "LD_PRELOAD")
    bare = {name: value for name, value in os.environ.items() if name not in own}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS],
        capture_output=True,
        text=True,
        check=True,
        env=bare | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | environment,
    )
    return int(done.stdout)


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not os.confstr("CS_GNU_LIBC_VERSION"),
    reason="needs glibc",
)
def test_freed_pages_are_reused() -> None:
    page = resource.getpagesize()
    taken = 3 * (4 + 16) * (4 << 20) // page
    assert faults() < 0.05 * taken
    # disabled: each piece is returned and faulted in again
    assert faults(NOMICBERT_KEEP_MEMORY="0") > 0.5 * taken


@pytest.mark.parametrize(
    ("accepted", "succeeds"),
    [
        ((allocator.KEPT, *allocator.PIECES), True),
        ((allocator.KEPT, allocator.PIECES[1]), True),  # an older glibc
        ((allocator.KEPT,), False),
        (allocator.PIECES, False),
        ((), False),
    ],
)
def test_fallback_to_the_smaller_threshold(
    accepted: tuple[int, ...], succeeds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Malloc(*accepted)
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: library)
    assert allocator.tell_glibc() is succeeds
    assert allocator.tell_glibc() is succeeds
    asked = [
        (allocator.M_TRIM_THRESHOLD, allocator.KEPT),
        (allocator.M_MMAP_THRESHOLD, allocator.PIECES[0]),
    ]
    assert library.calls[:2] == asked
    # the smaller size is tried if the larger is rejected, and everything happens once
    assert len(library.calls) == (2 if allocator.PIECES[0] in accepted else 3)


def test_without_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: object())
    assert allocator.tell_glibc() is False


@pytest.mark.parametrize(("device", "switch"), [("meta", "1"), ("cpu", "0")])
def test_setting_is_skipped(device: str, switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library = Malloc()
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: library)
    monkeypatch.setenv("NOMICBERT_KEEP_MEMORY", switch)
    allocator.keep_freed_memory(torch.device(device))
    assert not library.calls
    monkeypatch.setenv("NOMICBERT_KEEP_MEMORY", "1")
    allocator.keep_freed_memory(CPU)
    assert library.calls


def test_first_batch_applies_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []
    monkeypatch.setattr("nomicbert.runtime.stream.keep_freed_memory", asked.append)
    embedder = Embedder(build_checkpoint(tmp_path / "minilm", "minilm", num_hidden_layers=1))
    embedder.encode(["a text"])
    assert asked == [CPU]
    reranker = CrossEncoder(build_reranker(tmp_path / "reranker"))
    reranker.predict([("a question", "an answer")])
    assert asked == [CPU, CPU]
