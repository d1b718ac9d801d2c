"""torch.compile traces the packed core with our kernels as one graph, forward and backward."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nomicbert import NomicBert
from nomicbert.modeling.packing import PackedBatch, pack
from tests.gpu.conftest import Record
from tests.gpu.support import DEVICE, INTERPRETED
from tests.support.checkpoints import build_checkpoint

pytestmark = pytest.mark.gpu

# not on a CPU, where inductor would mostly wait for a C++ compiler
BACKENDS = ("aot_eager",) if INTERPRETED else ("aot_eager", "inductor")


def batch(*lengths: int) -> PackedBatch:
    return pack([[(7 * i + n) % 90 + 5 for i in range(n)] for n in lengths], device=DEVICE)


@pytest.fixture(autouse=True)
def no_graphs_of_others() -> None:
    torch.compiler.reset()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", ["nomic-v1.5", "nomic-v2-moe", "e5"])
def test_the_core_is_one_graph(
    variant: str, backend: str, tmp_path: Path, seed: int, record: Record
) -> None:
    build_checkpoint(tmp_path, variant, seed=seed, num_hidden_layers=2)
    model = NomicBert.from_pretrained(tmp_path, backend="triton", device=DEVICE)
    compiled = torch.compile(model.core, fullgraph=True, backend=backend)
    labels = {"op": f"{variant}, {backend}", "dtype": "float32"}
    for lengths in ((3, 3, 9), (12, 1)):
        ctx = model.context(batch(*lengths))
        rows = ctx.batch.first_tokens()
        with torch.no_grad():
            wanted = model.core(ctx)
            error = (compiled(ctx) - wanted).abs().max().item()
            record(error, 1e-5, check="compiled core", **labels)
            error = (compiled(ctx, rows) - wanted[rows]).abs().max().item()
            record(error, 1e-5, check="compiled core", **labels)
    compiled(ctx).square().sum().backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model.core(ctx).square().sum().backward()
    for name, p in model.named_parameters():
        error = (got[name] - p.grad).abs().max().item()
        bound = 1e-5 * p.grad.abs().max().item() + 1e-6
        record(error, bound, check="compiled gradient", tensor=name, **labels)
