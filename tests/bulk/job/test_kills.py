"""A few of the kills of `kills`, which takes more with --kills."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.bulk.job import kills


@pytest.mark.slow
def test_one_job(tmp_path: Path, seed: int) -> None:
    killed, _, failures = kills.one_job(tmp_path, 6, random.Random(seed))
    assert (killed, failures) == (6, [])


@pytest.mark.slow
def test_eight_tasks(tmp_path: Path, seed: int) -> None:
    killed, failures = kills.eight_tasks(tmp_path, random.Random(seed))
    assert failures == []
    assert killed > 0
