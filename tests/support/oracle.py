"""An independent forward pass: the published equations on tensors with hub names.

Written from the NomicBERT and BERT reference implementations: slow, plain, padded, in float64 by
default. It shares no code with the package, and `tests/support/test_oracle.py` checks it against
transformers. `faults` plants some of FAULTS on purpose, so that a test can show that its bound
detects them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.oracle_pooling import oracle_matryoshka, oracle_pool

__all__ = [
    "FAULTS",
    "applicable_faults",
    "oracle_forward",
    "oracle_matryoshka",
    "oracle_moe",
    "oracle_pool",
    "router_margins",
]

Config = Mapping[str, Any]
Record = dict[str, list[Tensor]]

FAULTS = (
    "bias_dropped",  # every bias of a linear layer; if there is none, of every norm
    "norms_swapped",
    "gate_swapped",
    "theta_1pct",
    "scale_2pct",
    "eps_1e-5",  # 1e-12 if the checkpoint itself states 1e-5
    "types_ignored",
)
_PREFIXES = re.compile(r"^(bert|nomic_bert|trunk|model)\.")
_GATES = {"swiglu": F.silu, "silu": F.silu, "geglu": F.gelu, "glu": torch.sigmoid}
_NAMES = {  # BERT's names -> NomicBERT's; query, key and value are fused separately
    "attention.output.dense": "attn.out_proj",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "output.LayerNorm": "norm2",
    "embeddings.LayerNorm": "emb_ln",
    "encoder.layer.": "encoder.layers.",
}


def oracle_forward(
    config: Config,
    tensors: Mapping[str, Tensor],
    input_ids: Tensor | None,
    attention_mask: Tensor | None = None,
    *,
    token_type_ids: Tensor | None = None,
    position_ids: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    rotary_scaling_factor: float | None = None,
    dtype: torch.dtype = torch.float64,
    angles: torch.dtype = torch.float32,
    faults: Collection[str] = (),
    record: Record | None = None,
) -> list[Tensor]:
    """All hidden states of a NomicBERT or BERT encoder.

    Args:
        config: of the checkpoint, with either family of keys.
        tensors: of the checkpoint, under any of the hub's names and prefixes.
        input_ids: (batch, seq_len), or None if inputs_embeds is given.
        attention_mask: (batch, seq_len) of 0 and 1.
        token_type_ids: (batch, seq_len), zeros if None.
        position_ids: (batch, seq_len) or (1, seq_len), the column index if None.
        inputs_embeds: (batch, seq_len, hidden) word vectors, before type, position and norm.
        rotary_scaling_factor: of dynamic NTK, overrides the config's own.
        dtype: of the arithmetic.
        angles: float32 computes the rotary angles in the references' order and precision,
            float64 by the formula.
        faults: names out of FAULTS.
        record: filled with "logits" (batch, heads, query, key) of each layer and "router"
            (batch, seq_len, experts) of each layer with experts, if given.
    Returns: embeddings, then every layer's output, (batch, seq_len, hidden); padded rows are 0.
    """
    if unknown := set(faults) - set(FAULTS):
        raise ValueError(f"no such faults: {unknown}")
    weights = _nomic_names(config, tensors, dtype)
    eps = _first(config, "layer_norm_eps", "layer_norm_epsilon")
    if "eps_1e-5" in faults:
        eps = 1e-12 if eps == 1e-5 else 1e-5
    if "bias_dropped" in faults:
        _drop_biases(weights)

    words = weights["embeddings.word_embeddings.weight"]
    x = words[input_ids] if inputs_embeds is None else inputs_embeds.to(dtype)
    batch, length = x.shape[:2]
    mask = torch.ones(batch, length) if attention_mask is None else attention_mask
    keep = mask.bool()
    positions = torch.arange(length)[None] if position_ids is None else position_ids
    types = torch.zeros(batch, length, dtype=torch.long)
    types = types if token_type_ids is None else token_type_ids
    if "types_ignored" not in faults:
        x = x + weights["embeddings.token_type_embeddings.weight"][types]
    table = weights.get("embeddings.position_embeddings.weight")
    turn = None
    if table is not None:
        x = x + table[positions]
    else:
        turn = _rotation(config, positions, rotary_scaling_factor, angles, dtype, faults)

    x = _norm(x, weights, "emb_ln", eps)
    states = [x]
    for i in range(_first(config, "num_hidden_layers", "n_layer")):
        at = f"encoder.layers.{i}."
        layer = {name[len(at) :]: t for name, t in weights.items() if name.startswith(at)}
        before, after = ("norm2", "norm1") if "norms_swapped" in faults else ("norm1", "norm2")
        x = _norm(x + _attention(config, layer, x, keep, turn, faults, record), layer, before, eps)
        x = _norm(x + _mlp(config, layer, x, faults, record), layer, after, eps)
        states.append(x)
    return [state * keep[..., None] for state in states]


def applicable_faults(config: Config, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The faults that this checkpoint can have; those of gate and rotary need such layers."""
    lacking = set()
    if not any("fc11" in name for name in tensors):
        lacking.add("gate_swapped")
    if any("position_embeddings" in name for name in tensors):
        lacking.add("theta_1pct")
    return tuple(fault for fault in FAULTS if fault not in lacking)


def router_margins(
    config: Config, tensors: Mapping[str, Tensor], input_ids: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """Margin of each token's routing: (batch, seq_len), the minimum over the layers.

    The margin is the probability of the last expert chosen minus that of the first one left out.
    Takes the arguments of oracle_forward.
    """
    record: Record = {}
    oracle_forward(config, tensors, input_ids, *args, record=record, **kwargs)
    chosen = config["moe_top_k"]
    ranked = [probabilities.sort(-1, descending=True).values for probabilities in record["router"]]
    return torch.stack([r[..., chosen - 1] - r[..., chosen] for r in ranked]).amin(0)


def oracle_moe(x: Tensor, layer: Mapping[str, Tensor], top_k: int) -> tuple[Tensor, Tensor]:
    """Mixture of experts: (..., hidden) -> the same, and the router's probabilities.

    Softmax over all experts in float32 or better, the top_k without renormalisation,
    expert e in the e-th block of rows of w1 and w2, one shared bias.
    """
    router = layer["mlp.router.layer.weight"]
    scores = F.linear(x, router)
    probabilities = scores.to(torch.promote_types(x.dtype, torch.float32)).softmax(-1).to(x.dtype)
    up = layer["mlp.experts.mlp.w1"].unflatten(0, (len(router), -1))
    down = layer["mlp.experts.mlp.w2"].unflatten(0, (len(router), -1))
    best = probabilities.topk(top_k, dim=-1).indices
    out = torch.zeros_like(x)
    for expert in range(len(router)):
        share = probabilities[..., expert] * (best == expert).any(-1)
        out = out + share[..., None] * (F.gelu(x @ up[expert].T) @ down[expert])
    return out + layer["mlp.experts.bias"], probabilities


def _first(config: Config, *names: str, default: Any = None) -> Any:
    return next((config[name] for name in names if config.get(name) is not None), default)


def _nomic_names(
    config: Config, tensors: Mapping[str, Tensor], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Every encoder tensor under NomicBERT's name, with query, key and value fused."""
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        name = _PREFIXES.sub("", name)
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
        name = name.replace("LayerNorm.beta", "LayerNorm.bias")
        if name.startswith(("embeddings.", "emb_ln.", "encoder.")) and "position_ids" not in name:
            plain[name] = tensor.to(dtype)
    if config["model_type"] != "bert":
        return plain
    fused: dict[str, Tensor] = {}
    for name, tensor in plain.items():
        if ".self.key." in name or ".self.value." in name:
            continue
        if ".self.query." in name:
            parts = [plain[name.replace("query", part)] for part in ("query", "key", "value")]
            name, tensor = name.replace("attention.self.query", "attn.Wqkv"), torch.cat(parts)
        for bert, nomic in _NAMES.items():
            name = name.replace(bert, nomic)
        fused[name] = tensor
    return fused


def _drop_biases(weights: dict[str, Tensor]) -> None:
    biases = [name for name in weights if name.endswith("bias")]
    linear = [name for name in biases if "norm" not in name and "emb_ln" not in name]
    weights |= {name: torch.zeros_like(weights[name]) for name in linear or biases}


def _norm(x: Tensor, weights: Mapping[str, Tensor], name: str, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    return normed * weights[name + ".weight"] + weights[name + ".bias"]


def _rotation(
    config: Config,
    positions: Tensor,
    factor: float | None,
    angles: torch.dtype,
    dtype: torch.dtype,
    faults: Collection[str],
) -> tuple[Tensor, Tensor]:
    """cos and sin, (batch or 1, seq_len, rotary dims / 2)."""
    rope = config.get("rope_parameters") or {}
    heads = _first(config, "num_attention_heads", "n_head")
    size = _first(config, "hidden_size", "n_embd") // heads
    dims = int(size * _first(config, "rotary_emb_fraction", default=1.0))
    theta = _first(config, "rotary_emb_base") or rope["rope_theta"]
    theta *= 1.01 if "theta_1pct" in faults else 1.0
    factor = factor or _first(config, "rotary_scaling_factor") or rope.get("factor")
    trained = _first(config, "max_trained_positions", default=2048)
    length = int(positions.max()) + 1  # the padded length if positions are column indices
    if factor and length > trained:
        theta *= (factor * length / trained - (factor - 1)) ** (dims / (dims - 2))
    inv_freq = 1.0 / theta ** (torch.arange(0, dims, 2).to(angles) / dims)
    angle = positions[..., None].to(angles) * inv_freq
    return angle.cos().to(dtype), angle.sin().to(dtype)


def _rotate(x: Tensor, turn: tuple[Tensor, Tensor], interleaved: bool) -> Tensor:
    """Rotate pairs of the first dims of each head of x (batch, heads, seq_len, head_dim)."""
    cos, sin = (t[:, None] for t in turn)
    dims = 2 * cos.shape[-1]
    rotary, rest = x[..., :dims], x[..., dims:]
    if interleaved:
        a, b = rotary[..., 0::2], rotary[..., 1::2]
        turned = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
    else:
        a, b = rotary.chunk(2, -1)
        turned = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    return torch.cat([turned, rest], -1)


def _attention(
    config: Config,
    layer: Mapping[str, Tensor],
    x: Tensor,
    keep: Tensor,
    turn: tuple[Tensor, Tensor] | None,
    faults: Collection[str],
    record: Record | None,
) -> Tensor:
    heads = _first(config, "num_attention_heads", "n_head")
    qkv = F.linear(x, layer["attn.Wqkv.weight"], layer.get("attn.Wqkv.bias"))
    query, key, value = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    if turn is not None:
        interleaved = bool(config.get("rotary_emb_interleaved"))
        query, key = _rotate(query, turn, interleaved), _rotate(key, turn, interleaved)
    scale = query.shape[-1] ** -0.5 * (1.02 if "scale_2pct" in faults else 1.0)
    logits = query @ key.transpose(-1, -2) * scale
    if record is not None:
        record.setdefault("logits", []).append(logits)
    # the lowest finite value, as in the references: a row of padding only stays finite
    logits = logits.masked_fill(~keep[:, None, None], torch.finfo(logits.dtype).min)
    mixed = (logits.softmax(-1) @ value).transpose(1, 2).flatten(-2)
    return F.linear(mixed, layer["attn.out_proj.weight"], layer.get("attn.out_proj.bias"))


def _mlp(
    config: Config,
    layer: Mapping[str, Tensor],
    x: Tensor,
    faults: Collection[str],
    record: Record | None,
) -> Tensor:
    if "mlp.router.layer.weight" in layer:
        out, probabilities = oracle_moe(x, layer, config["moe_top_k"])
        if record is not None:
            record.setdefault("router", []).append(probabilities)
        return out
    if "mlp.fc11.weight" in layer:
        up, gate = (
            F.linear(x, layer[f"mlp.{name}.weight"], layer.get(f"mlp.{name}.bias"))
            for name in (("fc12", "fc11") if "gate_swapped" in faults else ("fc11", "fc12"))
        )
        middle = up * _GATES[_first(config, "activation_function", "hidden_act")](gate)
    else:
        middle = F.gelu(F.linear(x, layer["mlp.fc1.weight"], layer.get("mlp.fc1.bias")))
    return F.linear(middle, layer["mlp.fc2.weight"], layer.get("mlp.fc2.bias"))
