"""Names and shapes of the tensors in a checkpoint file, as the hub has them.

Source: the files' own headers. Extras, by name: "pooler", "position_ids" (integers that a
loader must ignore), "mlm_head", "nsp", "nomic_head" (the bias-free head of nomic-bert-2048) and
"gamma_beta" (the old names of LayerNorm's weight and bias).
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import Any

Config = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]
GATED = ("swiglu", "glu", "geglu")


def nomic_layout(s: Config, extras: Set[str] = frozenset(), prefix: str = "") -> Shapes:
    """NomicBERT: fused Wqkv, fc11 and fc12 or fc1 or experts. Sizes come from the settings s."""
    width, inner = s["hidden_size"], s["intermediate_size"]
    shapes = _embeddings(s) | _norm("emb_ln", width)
    for i in range(s["num_hidden_layers"]):
        at = f"encoder.layers.{i}."
        shapes |= _linear(at + "attn.Wqkv", 3 * width, width, s["qkv_proj_bias"])
        shapes |= _linear(at + "attn.out_proj", width, width, s["qkv_proj_bias"])
        if is_moe(s, i):
            count = s["num_experts"]
            shapes[at + "mlp.router.layer.weight"] = (count, width)
            shapes[at + "mlp.experts.mlp.w1"] = (count * inner, width)
            shapes[at + "mlp.experts.mlp.w2"] = (count * inner, width)
            shapes[at + "mlp.experts.bias"] = (width,)
        else:
            gated = s["activation_function"] in GATED
            for name in ("fc11", "fc12") if gated else ("fc1",):
                shapes |= _linear(at + "mlp." + name, inner, width, s["mlp_fc1_bias"])
            shapes |= _linear(at + "mlp.fc2", width, inner, s["mlp_fc2_bias"])
        shapes |= _norm(at + "norm1", width) | _norm(at + "norm2", width)
    shapes = _prefixed(shapes, prefix)
    if "nomic_head" in extras:
        shapes |= _linear("cls.predictions.transform.dense", width, width, bias=False)
        shapes |= _norm("cls.predictions.transform.layer_norm", width)
        shapes["cls.predictions.decoder.weight"] = (s["vocab_size"], width)
    return shapes


def bert_layout(s: Config, extras: Set[str] = frozenset(), prefix: str = "") -> Shapes:
    """BERT: separate query, key and value, learned positions."""
    width, inner = s["hidden_size"], s["intermediate_size"]
    shapes: Shapes = {}
    if "position_ids" in extras:
        shapes["embeddings.position_ids"] = (1, s["max_position_embeddings"])
    shapes |= _embeddings(s)
    shapes["embeddings.position_embeddings.weight"] = (s["max_position_embeddings"], width)
    shapes |= _norm("embeddings.LayerNorm", width)
    for i in range(s["num_hidden_layers"]):
        at = f"encoder.layer.{i}."
        for name in ("query", "key", "value"):
            shapes |= _linear(f"{at}attention.self.{name}", width, width)
        shapes |= _linear(at + "attention.output.dense", width, width)
        shapes |= _norm(at + "attention.output.LayerNorm", width)
        shapes |= _linear(at + "intermediate.dense", inner, width)
        shapes |= _linear(at + "output.dense", width, inner)
        shapes |= _norm(at + "output.LayerNorm", width)
    if "pooler" in extras:
        shapes |= _linear("pooler.dense", width, width)
    shapes = _prefixed(shapes, prefix)
    if "mlm_head" in extras:
        shapes["cls.predictions.bias"] = (s["vocab_size"],)
        shapes |= _linear("cls.predictions.transform.dense", width, width)
        shapes |= _norm("cls.predictions.transform.LayerNorm", width)
        shapes["cls.predictions.decoder.weight"] = (s["vocab_size"], width)
    if "nsp" in extras:
        shapes |= _linear("cls.seq_relationship", 2, width)
    return dict(_old_names(shapes)) if "gamma_beta" in extras else shapes


def is_moe(s: Config, layer: int) -> bool:
    """Whether this layer has experts: every moe_every_n_layers-th, counted from 1."""
    every = s.get("moe_every_n_layers") or 0
    return every > 0 and layer % every == every - 1


def _embeddings(s: Config) -> Shapes:
    return {
        "embeddings.word_embeddings.weight": (s["vocab_size"], s["hidden_size"]),
        "embeddings.token_type_embeddings.weight": (s["type_vocab_size"], s["hidden_size"]),
    }


def _linear(name: str, out: int, into: int, bias: bool = True) -> Shapes:
    return {name + ".weight": (out, into)} | ({name + ".bias": (out,)} if bias else {})


def _norm(name: str, width: int) -> Shapes:
    return {name + ".weight": (width,), name + ".bias": (width,)}


def _prefixed(shapes: Shapes, prefix: str) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}


def _old_names(shapes: Shapes) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, shape in shapes.items():
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        yield old.replace("LayerNorm.bias", "LayerNorm.beta"), shape
