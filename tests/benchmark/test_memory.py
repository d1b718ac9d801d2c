"""Peak memory of a peer in a process of its own, on a tiny checkpoint, and failures."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nomicbert.benchmark import memory
from nomicbert.benchmark.batching import Batching, by_count
from nomicbert.benchmark.memory import measure_memory
from nomicbert.benchmark.peers import Peer
from nomicbert.benchmark.plan import Checkpoint, Options
from nomicbert.benchmark.workloads import Case
from tests.support.checkpoints import build_checkpoint
from tests.support.command_line import environment


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = build_checkpoint(
        tmp_path_factory.mktemp("memory"), "nomic-v1.5", num_hidden_layers=1, dialect="legacy"
    )
    return Checkpoint.of("m", folder)


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    return Options(
        ["passages"],
        ["float32"],
        families=["transformers-32"],
        tokens=128,
        cache=tmp_path / "exports",
    )


def test_each_peer_has_a_process(checkpoint: Checkpoint, options: Options) -> None:
    """Two peers run; transformers cannot take part, because it misreads the legacy keys."""
    threads = torch.get_num_threads() + 1
    lines = list(measure_memory(checkpoint, replace(options, threads=threads)))
    assert [line["peer"] for line in lines] == ["ours", "ours-texts", "transformers-32"]
    assert [line["status"] for line in lines] == ["measured", "measured", "absent"]
    for line in lines:
        assert (line["model"], line["case"], line["group"]) == ("m", "memory", "memory")
        assert (line["dtype"], line["tokens"]) == ("float32", 128)
        assert line["machine"]["threads"] == threads
        assert "exported" not in line
    # Python with torch alone takes more than 100 MiB, a tiny checkpoint next to nothing
    assert all(100 * 2**20 < line["peak_bytes"] < 2**30 for line in lines[:2])
    assert all(line["reason"] is None for line in lines[:2])
    assert lines[2]["reason"].startswith("transformers misreads its config.json")
    assert "peak_bytes" not in lines[2]


@pytest.mark.parametrize(("peer", "count"), [("ours", 0), ("transformers-32", 32)])
def test_peak_is_read_after_the_work(
    peer: str, count: int, checkpoint: Checkpoint, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the requested case; `main` runs in this process here."""
    order: list[Any] = []

    class Watched:
        def ways(self, case: Case) -> list[Batching]:
            own = by_count(case.lengths, 1)
            return [own, own] if count else [Batching("own", own.parts)]

        def vectors(self, case: Case, way: Batching) -> np.ndarray:
            order.append((case.name, case.tokens, way.count))
            return np.zeros((len(case.texts), 2))

    def peak() -> int:
        order.append("peak")
        return 5

    monkeypatch.setattr(Peer, "load", lambda *_: Watched())
    monkeypatch.setattr(memory, "peak", peak)
    given = {
        "name": "m",
        "folder": str(checkpoint.folder),
        "peer": f"{peer} float32",
        "tokens": 3000,
        "threads": 1,
        "device": "cpu",
        "cache": str(options.cache),
    }
    assert memory.main(given) == {"peak_bytes": 5, "exported": False}
    assert order == [("passages", 3000, count), "peak"]


DEATHS = {
    "raise SystemExit(3)": "failed: exit code 3",
    "import os; os.kill(os.getpid(), 9)": "failed: exit code -9",
    "raise MemoryError('no room for it')": "failed: MemoryError: no room for it",
    "raise MemoryError('x' * 1000)": "failed: " + "x" * memory.LONGEST_REASON,
}


@pytest.mark.parametrize("code", DEATHS)
def test_dead_process_is_reported(
    code: str, checkpoint: Checkpoint, options: Options, tmp_path: Path, monkeypatch: Any
) -> None:
    """Its line has the reason, and the next peer is measured."""
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\n{code}\n")
    python.chmod(0o755)
    monkeypatch.setattr(memory.sys, "executable", os.fspath(python))
    lines = list(measure_memory(checkpoint, options))
    assert [line["peer"] for line in lines] == ["ours", "ours-texts", "transformers-32"]
    assert {(line["status"], line["reason"]) for line in lines} == {("absent", DEATHS[code])}


def test_memory_of_exporting_does_not_count(
    checkpoint: Checkpoint, options: Options, tmp_path: Path, monkeypatch: Any
) -> None:
    """If a process had to export, a second one is measured that finds the export."""
    python, calls = tmp_path / "python", tmp_path / "calls"
    python.write_text(
        f"#!{sys.executable}\nimport json, pathlib\ncalls = pathlib.Path({str(calls)!r})\n"
        "first = not calls.exists()\ncalls.open('a').write('x')\nprint('a library chatters')\n"
        "print(json.dumps({'peak_bytes': 900 if first else 7, 'exported': first}))\n"
    )
    python.chmod(0o755)
    monkeypatch.setattr(memory.sys, "executable", os.fspath(python))
    lines = list(measure_memory(checkpoint, replace(options, families=["ours"])))
    assert [line["peak_bytes"] for line in lines] == [7, 7]
    assert calls.read_text() == "xxx"
    assert all(json.dumps(line) and "exported" not in line for line in lines)


def test_invalid_options(checkpoint: Checkpoint, options: Options) -> None:
    with pytest.raises(ValueError, match="peak memory needs a cache"):
        next(measure_memory(checkpoint, replace(options, cache=None)))
    short = replace(checkpoint, longest=15)
    with pytest.raises(ValueError, match=r"at least 16 tokens: .* have at most 15$"):
        next(measure_memory(short, options))
