"""What holds for every parity test: uninitialised memory is NaN, so that none of it is an output.

In torch's deterministic mode every new tensor that is not filled is filled with NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.parity.support import Case


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def case(tmp_path: Path, seed: int) -> Case:
    torch.manual_seed(seed)
    return Case(tmp_path, seed)
