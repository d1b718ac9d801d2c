"""linear with its residual, against torch's linear layer plus an add, and against addmm."""

import pytest
import torch
import torch.nn.functional as F

from bench import problems
from bench.aot_cases import Model
from bench.harness import Bench, Peer, models
from bench.problem import Call, Tensors


def linear_and_add(t: Tensors) -> Call:
    return lambda: F.linear(t["x"], t["weight"], t.get("bias")) + t["residual"]


def addmm_with_residual(t: Tensors) -> Call:
    """Addmm takes a single addend, so the bias is added to the residual before timing."""
    added = t["residual"] if "bias" not in t else t["residual"] + t["bias"]
    return lambda: torch.addmm(added, t["x"], t["weight"].T)


@pytest.mark.parametrize("model", models(), ids=lambda model: model.name)
@pytest.mark.parametrize("down", [False, True], ids=["out", "down"])
def test_linear(bench: Bench, model: Model, down: bool, tokens: int) -> None:
    problem = problems.linear(model, bench.draw(), tokens, down=down)
    peers = {
        "linear + residual": Peer(linear_and_add, compiled=True),
        "addmm": Peer(addmm_with_residual),
    }
    case = f"{'down' if down else 'out'}, {tokens}"
    bench.compare(problem, peers, model=model.name, case=case)
