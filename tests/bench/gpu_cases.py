"""Shared by the tests of the GPU benchmark: a CPU with fake times, and result lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from bench.gpu import race
from bench.gpu.place import Place

CPU = torch.device("cpu")
SECONDS = 0.5
# Fields that every line has.
FIELDS = {
    "part", "model", "case", "group", "peer", "dtype", "status", "reason", "tokens", "repeats",
    "versions", "machine", "commit", "clocks",
}  # fmt: skip


def limits() -> Any:
    """Restore torch.compile's settings after a test."""
    import torch._dynamo

    return torch._dynamo.config.patch(recompile_limit=8, fail_on_recompile_limit_hit=False)


def half_a_second(work: Callable[[], object]) -> float:
    work()
    return SECONDS


@pytest.fixture
def here() -> Place:
    """A CPU with fake times: everything takes half a second."""
    return Place(CPU, torch.float32, "torch", True, half_a_second)


def one(tasks: Iterator[race.Task], model: str, case: str) -> race.Task:
    return next(task for task in tasks if (task.model, task.case) == (model, case))


def by_peer(lines: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    assert all(set(line) >= FIELDS for line in lines)
    return {line["peer"]: line for line in lines}


def line_of(peer: str, case: str, rate: float, **more: Any) -> dict[str, Any]:
    return {
        "part": "models", "model": "nomic-v1.5", "case": case, "group": "bfloat16", "peer": peer,
        "dtype": "bfloat16", "status": "measured", "reason": None, "tokens": 10, "texts": 2,
        "from_texts": "texts" in peer or peer.startswith("sentence"), "batch": "32",
        "tokens_per_second": rate, "texts_per_second": rate / 10, "model_flops": rate * 2e8,
        "median": 10 / rate, "spread": 0.01, "seconds": [10 / rate], "cosine_min": 0.999,
        "commit": None, "versions": {"torch": "2"}, "clocks": {"clocks.sm": 1980.0},
        "machine": {"gpu": "NVIDIA H200", "cpu": "abacus", "threads": 3, "instructions": []},
        **more,
    }  # fmt: skip
