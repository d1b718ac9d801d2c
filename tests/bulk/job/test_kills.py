"""A few of the kills of `kills`, which takes more with --kills."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from tests.bulk.job import kills
from tests.bulk.job.truth import build, wrong


@pytest.mark.slow
def test_one_job(tmp_path: Path, seed: int) -> None:
    killed, _, failures = kills.one_job(tmp_path, 8, random.Random(seed))
    assert (killed, failures) == (8, [])


@pytest.mark.slow
def test_eight_tasks(tmp_path: Path, seed: int) -> None:
    killed, failures = kills.eight_tasks(tmp_path, random.Random(seed))
    assert failures == []
    assert killed > 0


def test_an_interrupt(tmp_path: Path) -> None:
    """Ctrl-C leaves whole parts."""
    truth = build(tmp_path / "in")
    output = tmp_path / "out"
    process = kills.start(output, truth, 0.1)
    while not kills.in_parts(output):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate()[0]
    assert not list(output.glob(".*.tmp"))
    assert kills.finish(kills.start(output, truth, 0.0)) == []
    assert wrong(output, truth) == []
