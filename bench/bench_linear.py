"""linear, with its residual, against the library's product and what else torch offers."""

import pytest
import torch
import torch.nn.functional as F

from bench import problems
from bench.aot_cases import Model
from bench.harness import Bench, Peer, models
from bench.problem import Call, Tensors


def product_and_sum(t: Tensors) -> Call:
    return lambda: F.linear(t["x"], t["weight"], t.get("bias")) + t["residual"]


def sum_in_the_product(t: Tensors) -> Call:
    """Addmm takes one addend: where there is a bias, it joins the residual beforehand."""
    added = t["residual"] if "bias" not in t else t["residual"] + t["bias"]
    return lambda: torch.addmm(added, t["x"], t["weight"].T)


@pytest.mark.parametrize("model", models(), ids=lambda model: model.name)
@pytest.mark.parametrize("down", [False, True], ids=["out", "down"])
def test_linear(bench: Bench, model: Model, down: bool, tokens: int) -> None:
    problem = problems.linear(model, bench.draw(), tokens, down=down)
    peers = {
        "linear + residual": Peer(product_and_sum, compiled=True),
        "addmm": Peer(sum_in_the_product),
    }
    case = f"{'down' if down else 'out'}, {tokens}"
    bench.compare(problem, peers, model=model.name, case=case)
