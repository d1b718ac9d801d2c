"""gelu against torch's linear layer followed by the activation."""

import pytest
import torch.nn.functional as F

from bench import problems
from bench.aot_cases import Model
from bench.harness import Bench, Peer, models
from bench.problem import Call, Tensors


def linear_and_gelu(t: Tensors) -> Call:
    return lambda: F.gelu(F.linear(t["x"], t["weight"], t.get("bias")))


@pytest.mark.parametrize("model", models("gelu"), ids=lambda model: model.name)
def test_gelu(bench: Bench, model: Model, tokens: int) -> None:
    problem = problems.gelu(model, bench.draw(), tokens)
    peers = {"linear, gelu": Peer(linear_and_gelu, compiled=True)}
    bench.compare(problem, peers, model=model.name)
