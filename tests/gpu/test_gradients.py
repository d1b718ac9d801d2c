"""Gradients of every op against fp64, tensor by tensor, and of a training step of whole models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from nomicbert import NomicBert
from nomicbert.modeling.packing import pack
from nomicbert_kernels.backend import TORCH
from tests.gpu.calls import CASES, Case, named
from tests.gpu.conftest import Record
from tests.gpu.support import ALL_DTYPES, DEVICE, INTERPRETED, TOKENS, draw, ops
from tests.parity.bounds import GRADIENT, KEY_BIAS
from tests.support.checkpoints import build_checkpoint

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned")]

LENGTHS = (17, 3, 1, 17) if INTERPRETED else (17, 17, 32, 3, 1, 130, 64)
# The gradient of a table is summed over tokens; in a small table each row gets many.
WORDS = 50


def rms(x: Tensor) -> float:
    return x.double().square().mean().sqrt().item()


@named(CASES)
@ALL_DTYPES
def test_ops(case: Case, dtype: torch.dtype, seed: int, record: Record) -> None:
    """fp32: share of the largest gradient. 16 bits: twice torch's rms error plus one eps."""
    if case.op == "embed":
        case = Case(case.op, case.model, case.make, case.variant, {"vocabulary": WORDS})
    problem = case.problem(draw(dtype, seed), TOKENS)
    truth = problem.truth()
    upstream = draw(dtype, seed + 1)(*truth.shape)
    got = problem.gradients(ops(), upstream)
    wanted = problem.true_gradients(upstream)
    plain = problem.gradients(TORCH, upstream)
    for name, exact in wanted.items():
        assert got[name].shape == exact.shape
        assert exact.abs().max() > 0
        wrong = got[name].double() - exact
        if dtype == torch.float32:
            figures = (wrong.abs().max() / exact.abs().max()).item(), GRADIENT
        else:
            eps = torch.finfo(dtype).eps
            figures = rms(wrong), 2 * rms(plain[name].double() - exact) + eps * rms(exact)
        labels = {"op": f"{case.name} d{name}", "dtype": dtype}
        record(*figures, check="gradient" if dtype == torch.float32 else "gradient, rms", **labels)


def gradients(model: NomicBert, weight: Tensor) -> dict[str, Tensor]:
    """Gradients of a weighted sum of the hidden states of packed texts."""
    generator = torch.Generator().manual_seed(3)
    limit = model.config.vocab_size
    texts = [torch.randint(1, limit, (n,), generator=generator).tolist() for n in LENGTHS]
    hidden = model.encode_packed(pack(texts, device=model.device))
    (hidden * weight.to(hidden)).sum().backward()
    return {name: p.grad.double().cpu() for name, p in model.named_parameters()}


@pytest.mark.parametrize("variant", ["nomic-v1.5", "bge-en", "nomic-v2-moe"])
def test_training_step(variant: str, tmp_path: Path, seed: int, record: Record) -> None:
    """Against the reference on the CPU, parameter by parameter."""
    folder = build_checkpoint(tmp_path, variant, seed=seed, num_hidden_layers=2)
    weight = torch.randn(sum(LENGTHS), 64, generator=torch.Generator().manual_seed(4))
    model = NomicBert.from_pretrained(folder, backend="triton", device=DEVICE)
    truth = NomicBert.from_pretrained(folder, backend="reference")
    got, wanted = gradients(model, weight), gradients(truth, weight)
    for name, exact in wanted.items():
        mine = got[name]
        labels = {"check": "training step", "op": variant, "dtype": "float32", "tensor": name}
        if name.endswith("qkv.bias") and model.config.rotary_dim == 0:
            # a key bias shifts all logits of a query equally, so its true gradient is 0
            query = mine.chunk(3)[0].abs().max().item()
            key = mine.chunk(3)[1].abs().max().item()
            record(key / query, KEY_BIAS, **labels | {"check": "key bias"})
            mine, exact = (torch.cat(t.chunk(3)[::2]) for t in (mine, exact))
        error = ((mine - exact).abs().max() / exact.abs().max()).item()
        record(error, GRADIENT, **labels)


def test_a_step_moves_every_parameter(tmp_path: Path, seed: int) -> None:
    """An optimizer step lowers the loss, and no prepared copy of an old weight stays in use."""
    folder = build_checkpoint(tmp_path, "nomic-v1.5", seed=seed, num_hidden_layers=1)
    model = NomicBert.from_pretrained(folder, backend="triton", device=DEVICE)
    batch = pack([[5, 6, 7, 8, 9] * 3, [9, 8]], device=DEVICE)
    target = torch.randn(17, 64, generator=torch.Generator().manual_seed(5)).to(DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        loss = (model.encode_packed(batch) - target).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        fresh = NomicBert.from_pretrained(folder, backend="triton", device=DEVICE)
        fresh.load_state_dict(model.state_dict())
        assert torch.equal(fresh.encode_packed(batch), model.encode_packed(batch))
    assert losses[0] > losses[1] > losses[2]
