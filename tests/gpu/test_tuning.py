"""Requirements of `nomicbert tune`: poisoned memory, and CUDA event timing."""

from __future__ import annotations

import pytest
import torch

from nomicbert_kernels.tuning import tables, timing
from nomicbert_kernels.tuning.problems import Draw, Model, problems
from nomicbert_kernels.tuning.search import Truth
from tests.gpu.support import ARCHITECTURE, DEVICE, INTERPRETED

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(INTERPRETED, reason="of a GPU's allocator and clock"),
]

GATED = Model("gated", 32, 2, 48, "swiglu", True, True, False)


def test_what_is_not_written_shows() -> None:
    """Reused memory could still hold the correct result of another candidate."""
    rows = tables.shipped_rows(ARCHITECTURE, 4)
    problem = next(p for p in problems([GATED], ["swiglu"], rows) if p.kernel == "swiglu")
    truth = Truth(problem.make(Draw(torch.float32, DEVICE)), torch.float32)
    assert truth.agrees(truth.exact.float())
    truth.poison()
    assert torch.empty_like(truth.exact, dtype=torch.float32).isnan().all()


def test_the_gpu_is_timed() -> None:
    x, y = torch.randn(4096, 4096, device=DEVICE), torch.randn(64, 64, device=DEVICE)
    slow, fast = timing.gpu_timer(DEVICE)([lambda: x @ x, lambda: y @ y], 15)
    assert sorted(slow)[7] > 5 * sorted(fast)[7] > 0
