"""The core (all steps after planning) is one graph for torch.compile, forward and backward.

The reference backend is left out: it reads the lengths from the tensor.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nomicbert import NomicBert
from nomicbert.modeling.packing import PackedBatch, pack
from tests.support.checkpoints import build_checkpoint


def _batch(*lengths: int) -> PackedBatch:
    return pack([[(7 * i + n) % 90 + 5 for i in range(n)] for n in lengths])


# every second layer has experts, each of which is a part of the graph of its own
SIZES = {
    "nomic-v1.5": {"num_hidden_layers": 1},
    "nomic-v2-moe": {"num_hidden_layers": 2, "num_experts": 3},
    "e5": {"num_hidden_layers": 2},
}


@pytest.mark.parametrize("variant", SIZES)
def test_the_core_is_one_graph(variant: str, tmp_path: Path) -> None:
    build_checkpoint(tmp_path, variant, **SIZES[variant])
    model = NomicBert.from_pretrained(tmp_path, backend="torch")
    torch.compiler.reset()
    compiled = torch.compile(model.core, fullgraph=True, backend="aot_eager")
    for batch in (_batch(3, 3, 9), _batch(12, 1)):
        ctx = model.context(batch)
        with torch.no_grad():
            wanted = model.core(ctx)
            assert (compiled(ctx) - wanted).abs().max() <= 1e-5
            rows = batch.first_tokens()
            assert (compiled(ctx, rows) - wanted[rows]).abs().max() <= 1e-5
    compiled(ctx).square().sum().backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model.core(ctx).square().sum().backward()
    for name, p in model.named_parameters():
        assert (got[name] - p.grad).abs().max() <= 1e-5 * p.grad.abs().max() + 1e-6
    torch.compiler.reset()
