"""Gradients of every parameter in eval mode, against transformers or else the oracle.

Ours are fused (query, key and value in one; up and gate in one), so the references' are stacked to
the same shape. Ids start at 1, because transformers gives the padding token's row no gradient and
this package does.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from nomicbert import NomicBert
from tests.parity.bounds import BACKENDS, GRADIENT, HALF
from tests.parity.gradients import BERT, HUB, NOMIC, Gradients, compare, stacked
from tests.parity.report import held, within
from tests.parity.support import Batch, Case, clear_tokens, ours, theirs
from tests.support.checkpoints import read_config, read_tensors
from tests.support.oracle import oracle_forward


def loss_of(last: Tensor, batch: Batch) -> Tensor:
    """A weighted sum of the kept hidden states, the same for both sides."""
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(last.shape, generator=generator, dtype=torch.float64).to(last.dtype)
    return (last * weight * batch["attention_mask"][..., None]).sum()


def gradients(model: torch.nn.Module, batch: Batch) -> Gradients:
    assert not model.training
    loss_of(model(**batch).last_hidden_state, batch).backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None for gradient in found.values())
    return found


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", ["nomic-v1.5", "bge-en"])
def test_gradients_equal_transformers(
    variant: str, attention: str, backend: str, case: Case
) -> None:
    folder = case.build_native(variant)
    rotary = variant.startswith("nomic")
    batch = case.batch(folder, least=1)
    reference = gradients(theirs(folder, attention), batch)
    mine = gradients(ours(folder, backend), batch)
    table, layers = (NOMIC, "layers.") if rotary else (BERT, "encoder.layer.")
    for name, gradient in mine.items():
        compare(name, gradient, stacked(name, reference, table, layers), rotary)
    assert sum(g.numel() for g in mine.values()) == sum(g.numel() for g in reference.values())


@pytest.mark.parametrize("variant", ["nomic-v1.5", "bge-en"])
def test_autocast_error_is_no_worse_than_transformers(variant: str, case: Case) -> None:
    """bf16 autocast: the error of all gradients together, against each side's own in float32.

    Only for backend torch, which is used for training: reference rounds after each step.
    """
    # wide enough for a stable ratio of errors
    folder = case.build_native(variant, hidden_size=256, intermediate_size=384)
    batch = case.batch(folder, least=1)

    def lost(model: torch.nn.Module) -> float:
        truth = gradients(model, batch)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            found = gradients(model, batch)
        assert all(gradient.dtype == torch.float32 for gradient in found.values())
        wrong = sum(float((found[name] - truth[name]).square().sum()) for name in truth)
        return (wrong / sum(float(g.square().sum()) for g in truth.values())) ** 0.5

    reference = lost(theirs(folder))
    assert reference > 1e-3  # below it, bf16 was not used
    mine = lost(ours(folder, "torch"))
    assert mine > 1e-3
    what = "autocast to bf16: rms error of gradients, of transformers' own"
    within(what, mine / reference, HALF[0].rms, variant)


def oracle_gradients(folder: Path, batch: Batch) -> Gradients:
    """The oracle's gradients in float64, of every encoder tensor in the file."""
    tensors = {
        name: tensor.double().requires_grad_() for name, tensor in read_tensors(folder).items()
    }
    last = oracle_forward(read_config(folder), tensors, **batch)[-1]
    loss_of(last, batch).backward()
    return {name: t.grad for name, t in tensors.items() if t.grad is not None}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("variant", "changes"),
    [
        ("nomic-v1.5", {"rotary_emb_interleaved": True, "rotary_emb_fraction": 0.5}),
        ("nomic-v2-moe", {"moe_every_n_layers": 0}),
        ("nomic-v2-moe", {"moe_top_k": 8}),
        ("nomic-v2-moe", {}),
    ],
    ids=["interleaved", "plain-gelu", "all-experts", "experts"],
)
def test_gradients_equal_the_oracle(
    variant: str, changes: dict[str, int], backend: str, case: Case
) -> None:
    folder = case.build(variant, **changes)
    batch = case.batch(folder, lengths=(5, 9, 3))
    if variant == "nomic-v2-moe" and not changes:  # routed alike: tokens in doubt are masked
        for _ in range(20):
            doubtful = batch["attention_mask"].bool() & ~clear_tokens(folder, batch, least=0.0)
            if not doubtful.any():
                break
            batch["attention_mask"][doubtful] = 0
        assert batch["attention_mask"].sum() >= 8
    reference = oracle_gradients(folder, batch)
    mine = gradients(ours(folder, backend), batch)
    for name, gradient in mine.items():
        if "experts" in name or name.endswith("mlp.bias"):
            number = name.split(".")[1]
            at = f"encoder.layers.{number}.mlp.experts."
            hub = {"experts_up": "mlp.w1", "experts_down": "mlp.w2", "bias": "bias"}
            wanted = reference[at + hub[name.rpartition(".")[2]]]
            if name.endswith("down"):  # stored as (experts inner, hidden)
                gradient = gradient.transpose(1, 2)
            wanted = wanted.view_as(gradient)
        else:
            wanted = stacked(name, reference, HUB, "encoder.layers.")
        compare(name, gradient, wanted, rotary=True)
    assert sum(g.numel() for g in mine.values()) == sum(g.numel() for g in reference.values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_reach_the_word_vectors(backend: str, case: Case) -> None:
    folder = case.build_native("nomic-v1.5")
    batch = case.batch(folder, side="left")
    words = 0.05 * torch.randn(*batch.pop("input_ids").shape, 64)
    found = []
    for model in (ours(folder, backend), theirs(folder)):
        leaf = words.clone().requires_grad_()
        last = model(**batch, inputs_embeds=leaf).last_hidden_state
        loss_of(last, batch).backward()
        found.append(leaf.grad * batch["attention_mask"][..., None])
    mine, reference = found
    scale = reference.abs().max()
    held("gradient", mine / scale, reference / scale, GRADIENT)


@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_gradients_are_detected(backend: str, case: Case) -> None:
    """Faults: up and gate stacked in reverse order, and keys in place of values."""
    folder = case.build_native("nomic-v1.5")
    batch = case.batch(folder, least=1)
    reference = gradients(theirs(folder), batch)
    model: NomicBert = ours(folder, backend)
    mine = gradients(model, batch)
    for name in ("layers.0.mlp.up_gate.weight", "layers.1.attention.qkv.weight"):
        table = {key: parts[::-1] for key, parts in NOMIC.items()}
        with pytest.raises(AssertionError, match=name):
            compare(name, mine[name], stacked(name, reference, table, "layers."), rotary=True)
