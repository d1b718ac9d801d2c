"""qkv_rotary against torch's linear layer followed by the rotation, as models write it."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench import problems
from bench.aot_cases import Model
from bench.harness import Bench, Peer, models
from bench.problem import Call, Tensors


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """X cos + rotate_half(x) sin, in the dtype of x."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-b, a], dim=-1) * sin


def linear_and_rotation(model: Model) -> Callable[[Tensors], Call]:
    def call(t: Tensors) -> Call:
        if "cos" not in t:
            shape = (-1, 3, model.heads, model.head_dim)
            return lambda: F.linear(t["x"], t["weight"], t.get("bias")).view(shape)
        # outside the timed call: models gather the angles once per batch, not per layer
        row = t["row"].long()
        cos, sin = (t[name][row].repeat(1, 2)[:, None].to(t["x"].dtype) for name in ("cos", "sin"))

        def run() -> Tensor:
            qkv = F.linear(t["x"], t["weight"], t.get("bias"))
            q, k, v = qkv.view(-1, 3, model.heads, model.head_dim).unbind(1)
            return torch.stack([turned(q, cos, sin), turned(k, cos, sin), v], dim=1)

        return run

    return call


@pytest.mark.parametrize("model", models(), ids=lambda model: model.name)
def test_qkv_rotary(bench: Bench, model: Model, tokens: int) -> None:
    problem = problems.qkv_rotary(model, bench.draw(), tokens)
    peers = {"linear, rotation": Peer(linear_and_rotation(model), compiled=True)}
    bench.compare(problem, peers, model=model.name)
