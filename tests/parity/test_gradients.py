"""Gradients of every parameter, in eval mode: against transformers, or the oracle where it lacks.

Ours are fused (query, key and value in one; up and gate in one), so the references' are stacked to
the same shape. Ids start at 1: transformers gives the padding token's row no gradient, ours does.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from nomicbert import NomicBert
from tests.checkpoints import read_config, read_tensors
from tests.oracle import oracle_forward
from tests.parity.bounds import BACKENDS, GRADIENT, KEY_BIAS
from tests.parity.support import Batch, Case, clear_tokens, difference, ours, theirs

Gradients = dict[str, Tensor]

# ours -> transformers', stacked in this order; {} is the layer's number
NOMIC = {
    "attention.qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "attention.out": ["self_attn.o_proj"],
    "attention_norm": ["post_attention_layernorm"],
    "mlp.up_gate": ["mlp.up_proj", "mlp.gate_proj"],
    "mlp.down": ["mlp.down_proj"],
    "mlp_norm": ["post_mlp_layernorm"],
}
BERT = {
    "attention.qkv": [f"attention.self.{name}" for name in ("query", "key", "value")],
    "attention.out": ["attention.output.dense"],
    "attention_norm": ["attention.output.LayerNorm"],
    "mlp.up": ["intermediate.dense"],
    "mlp.down": ["output.dense"],
    "mlp_norm": ["output.LayerNorm"],
}
# the hub's names, for the oracle
HUB = {
    "attention.qkv": ["attn.Wqkv"],
    "attention.out": ["attn.out_proj"],
    "attention_norm": ["norm1"],
    "mlp.up": ["mlp.fc1"],
    "mlp.up_gate": ["mlp.fc11", "mlp.fc12"],
    "mlp.down": ["mlp.fc2"],
    "mlp_norm": ["norm2"],
    "mlp.router": ["mlp.router.layer"],
}
TOP = {"word": "word_embeddings", "token_type": "token_type_embeddings"}
TOP |= {"position": "position_embeddings", "norm": "LayerNorm"}


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


def stacked(name: str, reference: Gradients, table: dict[str, list[str]], layers: str) -> Tensor:
    """The reference's gradient of our parameter."""
    stem, _, kind = name.rpartition(".")
    if stem.startswith("embeddings."):
        part = TOP[stem.removeprefix("embeddings.")]
        if layers == "encoder.layers." and part == "LayerNorm":  # the hub's own name
            return reference[f"emb_ln.{kind}"]
        return reference[f"embeddings.{part}.{kind}"]
    _, number, stem = stem.split(".", 2)
    return torch.cat([reference[f"{layers}{number}.{part}.{kind}"] for part in table[stem]])


def compare(name: str, mine: Tensor, wanted: Tensor, rotary: bool) -> None:
    assert mine.shape == wanted.shape
    assert wanted.abs().max() > 0
    if name.endswith("qkv.bias") and not rotary:
        (query, key, value), (q, k, v) = mine.chunk(3), wanted.chunk(3)
        for ours_key in (key, k):
            assert ours_key.abs().max() <= KEY_BIAS * q.abs().max(), name
        mine, wanted = torch.cat([query, value]), torch.cat([q, v])
    # queries, keys and values are parameters of their own for the references: each by its own
    parts = 3 if "qkv" in name and len(mine) % 3 == 0 and rotary else 1
    for part, truth in zip(mine.chunk(parts), wanted.chunk(parts), strict=True):
        scale = truth.abs().max()
        assert difference(part / scale, truth / scale) <= GRADIENT, name


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


def oracle_gradients(folder: Path, batch: Batch) -> Gradients:
    """In float64, of every encoder tensor in the file."""
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
    assert difference(mine / scale, reference / scale) <= GRADIENT


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_wrong_gradient_is_seen(backend: str, case: Case) -> None:
    """Up and gate stacked the other way round, and keys where the values belong."""
    folder = case.build_native("nomic-v1.5")
    batch = case.batch(folder, least=1)
    reference = gradients(theirs(folder), batch)
    model: NomicBert = ours(folder, backend)
    mine = gradients(model, batch)
    for name in ("layers.0.mlp.up_gate.weight", "layers.1.attention.qkv.weight"):
        table = {key: parts[::-1] for key, parts in NOMIC.items()}
        with pytest.raises(AssertionError, match=name):
            compare(name, mine[name], stacked(name, reference, table, "layers."), rotary=True)
