"""Comparison of gradients: mapping of the references' parameters to ours, and bounds.

Ours are fused (query, key and value in one; up and gate in one), so the references' are stacked to
the same shape.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tests.parity.bounds import GRADIENT, KEY_BIAS
from tests.parity.report import held

Gradients = dict[str, Tensor]

# ours -> transformers', stacked in this order; {} is the layer's index
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
# the hub's names, used by the oracle
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
    # the references have separate parameters for queries, keys and values: compared separately
    parts = 3 if "qkv" in name and len(mine) % 3 == 0 and rotary else 1
    for part, truth in zip(mine.chunk(parts), wanted.chunk(parts), strict=True):
        scale = truth.abs().max()
        held("gradient", part / scale, truth / scale, GRADIENT, name)
