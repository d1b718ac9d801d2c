"""A job that dies anywhere goes on exactly: see `exhaust`, which has more points than these."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bulk.job.exhaust import PLANTED

ROOT = Path(__file__).parents[3]


def exhaust(*options: str) -> dict[str, Any]:
    command = [sys.executable, "-W", "error", "-m", "tests.bulk.job.exhaust", "--quick", *options]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "every", "least"),
    [("job", 1, 90), ("hole", 2, 12), ("restart", 5, 30), ("tasks", 3, 22)],
)
def test_resumed_after_a_death_at_every_step(part: str, every: int, least: int) -> None:
    found = exhaust("--only", part, "--sample", str(every))
    assert found["failures"] == []
    assert found["died"] >= least


@pytest.mark.slow
@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found(fault: str) -> None:
    assert exhaust("--only", "job", "--sample", "4", "--planted", fault)["failures"]
