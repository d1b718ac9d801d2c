"""swiglu against torch's linear layer followed by the gate."""

import pytest
import torch.nn.functional as F
from torch import Tensor

from bench import problems
from bench.aot_cases import Model
from bench.harness import Bench, Peer, models
from bench.problem import Call, Tensors


def linear_and_gate(t: Tensors) -> Call:
    def run() -> Tensor:
        up, gate = F.linear(t["x"], t["weight"], t.get("bias")).chunk(2, dim=1)
        return up * F.silu(gate)

    return run


@pytest.mark.parametrize("model", models("swiglu"), ids=lambda model: model.name)
def test_swiglu(bench: Bench, model: Model, tokens: int) -> None:
    problem = problems.swiglu(model, bench.draw(), tokens)
    peers = {"linear, silu * up": Peer(linear_and_gate, compiled=True)}
    bench.compare(problem, peers, model=model.name)
