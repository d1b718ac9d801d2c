"""A job that dies anywhere goes on exactly: see `exhaust`, which has more points than these."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.bulk.job.exhaust import PLANTED
from tests.support.warm_python import MODULE, WarmPython

STRICT = "import warnings; warnings.simplefilter('error')"


def exhaust(python: WarmPython, *options: str) -> dict[str, Any]:
    done = python.run(STRICT + MODULE, "tests.bulk.job.exhaust", "--quick", *options)
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "every", "least"),
    [("job", 1, 90), ("hole", 2, 12), ("restart", 5, 30), ("tasks", 3, 22)],
)
def test_resumed_after_a_death_at_every_step(
    part: str, every: int, least: int, warm_python: WarmPython
) -> None:
    found = exhaust(warm_python, "--only", part, "--sample", str(every))
    assert found["failures"] == []
    assert found["died"] >= least


@pytest.mark.slow
@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found(fault: str, warm_python: WarmPython) -> None:
    options = ("--only", "job", "--sample", "4", "--planted", fault)
    assert exhaust(warm_python, *options)["failures"]
