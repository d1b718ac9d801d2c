"""moe against a loop over the experts' tokens, and all experts on all tokens."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench import problems
from bench.aot_cases import Model
from bench.harness import Bench, Peer, models
from bench.problem import Call, Tensors


def gates(t: Tensors) -> tuple[Tensor, Tensor]:
    """Probabilities and experts of each token."""
    logits = F.linear(t["x"].float(), t["router"].float())
    return logits.softmax(1).topk(problems.TOP_K, dim=1)


def loop(t: Tensors) -> Call:
    def run() -> Tensor:
        probabilities, chosen = gates(t)
        y = torch.zeros_like(t["x"], dtype=torch.float32)
        for expert in range(problems.EXPERTS):
            token, place = (chosen == expert).nonzero(as_tuple=True)
            inner = F.gelu(F.linear(t["x"][token], t["up"][expert]))
            out = F.linear(inner, t["down"][expert])
            y.index_add_(0, token, probabilities[token, place, None] * out)
        return (y + t["bias"]).to(t["x"].dtype)

    return run


def all_experts(t: Tensors) -> Call:
    def run() -> Tensor:
        probabilities, chosen = gates(t)
        share = torch.zeros(
            len(chosen), problems.EXPERTS, device=chosen.device, dtype=torch.float32
        ).scatter(1, chosen, probabilities)
        inner = F.gelu(torch.matmul(t["x"], t["up"].transpose(1, 2)))
        out = torch.matmul(inner, t["down"].transpose(1, 2))
        y = (out * share.T[:, :, None]).sum(0)
        return (y + t["bias"]).to(t["x"].dtype)

    return run


@pytest.mark.parametrize("model", models("moe"), ids=lambda model: model.name)
def test_moe(bench: Bench, model: Model, tokens: int) -> None:
    problem = problems.moe(model, bench.draw(), tokens)
    peers = {"loop over experts": Peer(loop), "all experts": Peer(all_experts, compiled=True)}
    bench.compare(problem, peers, model=model.name)
