"""embed against gathers, sums and torch's LayerNorm."""

import pytest
import torch.nn.functional as F
from torch import Tensor

from bench import problems
from bench.aot_cases import Model
from bench.harness import Bench, Peer, models
from bench.problem import Call, Tensors


def gathers_and_norm(t: Tensors) -> Call:
    def run() -> Tensor:
        z = F.embedding(t["ids"], t["word"]) + F.embedding(t["types"], t["token_type"])
        if "position" in t:
            z = z + F.embedding(t["positions"], t["position"])
        return F.layer_norm(z, z.shape[1:], t["weight"], t["bias"], problems.EPS)

    return run


@pytest.mark.parametrize("model", models(), ids=lambda model: model.name)
def test_embed(bench: Bench, model: Model, tokens: int) -> None:
    problem = problems.embed(model, bench.draw(), tokens)
    peers = {"gathers, layer_norm": Peer(gathers_and_norm, compiled=True)}
    bench.compare(problem, peers, model=model.name)
