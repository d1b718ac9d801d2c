"""fp32 matmuls do not use TF32, which has 10 mantissa bits; only a GPU can show this."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from bench.problem import error_and_bound
from tests.gpu.calls import ATTENTION, GELU, LINEAR, MOE, QKV, SWIGLU, Case, named
from tests.gpu.conftest import Record
from tests.gpu.support import TOKENS, draw, force_library, ops

pytestmark = pytest.mark.gpu

# The bound has to be below this share of TF32's error, to tell the two apart.
APART = 5
OPERANDS = ("x", "weight", "router", "up", "down", "qkv")


def cut(x: Tensor) -> Tensor:
    """fp32 values rounded to TF32's 10 mantissa bits."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def test_cut() -> None:
    assert cut(torch.tensor([1 + 2.0**-12])).item() == 1.0
    assert cut(torch.tensor([1 + 2.0**-10])).item() == 1 + 2.0**-10
    assert cut(torch.tensor([-(1 + 3 * 2.0**-12)])).item() == -(1 + 2.0**-10)


@named([*LINEAR[:2], QKV[0], *SWIGLU[:1], *GELU[:1], *MOE[:1], *ATTENTION[:2]])
@pytest.mark.parametrize("library", [False, True], ids=["kernel", "library"])
def test_no_tf32(
    case: Case, library: bool, seed: int, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If any operand were rounded to TF32, the error would be far beyond the bound."""
    force_library(monkeypatch, library)
    problem = case.problem(draw(torch.float32, seed), TOKENS)
    truth = problem.truth()
    with torch.no_grad():
        got = problem.run(ops())
    error, bound = error_and_bound(got, truth, problem.plain())
    operands = [name for name in OPERANDS if name in problem.tensors]
    # queries, keys and values are the second dimension of one tensor
    parts = [slice(i, i + 1) for i in range(3)] if case.op == "attention" else [slice(None)]
    for name, part in itertools.product(operands, parts):
        rounded = problem.tensors[name].clone()
        rounded[:, part] = cut(rounded[:, part])
        shift = (problem.truth(**{name: rounded}) - truth).abs().max().item()
        assert shift > APART * bound, f"the bound would not see TF32 in {name}"
    record(error, bound, check="no TF32", op=case.name, dtype="float32")
