"""layer_norm with its residual, against torch's add and LayerNorm."""

import pytest
import torch.nn.functional as F

from bench import problems
from bench.aot_cases import Model
from bench.harness import Bench, Peer, models
from bench.problem import Call, Tensors


def add_and_norm(t: Tensors) -> Call:
    width = t["x"].shape[1:]
    return lambda: F.layer_norm(t["x"] + t["residual"], width, t["weight"], t["bias"], problems.EPS)


@pytest.mark.parametrize("model", models(), ids=lambda model: model.name)
def test_layer_norm(bench: Bench, model: Model, tokens: int) -> None:
    problem = problems.layer_norm(model, bench.draw(), tokens)
    peers = {"add, layer_norm": Peer(add_and_norm, compiled=True)}
    bench.compare(problem, peers, model=model.name)
