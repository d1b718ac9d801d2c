"""The oracle: an independent forward pass of NomicBERT and BERT, from the tensors on disk.

It shares only the reading of tensor files with the model under test. Settings, names and arithmetic
are implemented again, slowly and plainly, with attention one text at a time.
Source: Nussbaum et al. 2024, arXiv:2402.01613, and the remote code of nomic-embed-text-v1.5;
Devlin et al. 2018, arXiv:1810.04805; Su et al. 2021, arXiv:2104.09864 (rotary angles).
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nomicbert.loading.tensor_files import TensorFiles

# Activations of BERT by transformers' names; NomicBERT's plain MLP has exact GELU under any name.
ACTS: dict[str, Callable[[Tensor], Tensor]] = {
    **dict.fromkeys(("gelu", "gelu_python"), F.gelu),
    **dict.fromkeys(
        ("gelu_new", "gelu_fast", "gelu_accurate", "gelu_python_tanh", "gelu_pytorch_tanh"),
        functools.partial(F.gelu, approximate="tanh"),
    ),
    **dict.fromkeys(("silu", "swish"), F.silu),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
}
PREFIX = re.compile(r"^((bert|nomic_bert|trunk|model)\.)+")
# BERT's names -> NomicBERT's names; query, key and value are looked up separately.
BERT_NAMES = (
    (r"^encoder\.layer\.", "encoder.layers."),
    (r"attention\.output\.dense", "attn.out_proj"),
    (r"attention\.output\.LayerNorm", "norm1"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"(\d)\.output\.dense", r"\1.mlp.fc2"),
    (r"(\d)\.output\.LayerNorm", r"\1.norm2"),
    (r"^embeddings\.LayerNorm", "emb_ln"),
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
)


@dataclass(frozen=True)
class Meaning:
    """The settings of config.json that define the computation, from either family of keys.

    Attributes:
        gated: SwiGLU; else `act`.
        act: of a plain MLP, by transformers' name.
        rotary_dims: leading dimensions of a head that are rotated; 0 for learned positions.
        factor: of dynamic NTK scaling beyond `trained` tokens; 0 for none.
        top_k: experts per token, in every second layer; 0 for none.
        biased: linear layers have biases.
    """

    layers: int
    heads: int
    width: int
    eps: float
    types: int
    gated: bool = False
    rotary_dims: int = 0
    theta: float = 0.0
    interleaved: bool = False
    factor: float = 0.0
    trained: int = 0
    top_k: int = 0
    biased: bool = True
    act: str = "gelu"


def read_meaning(config: Mapping[str, Any]) -> Meaning:
    """Read config.json; legacy keys (GPT-2's names) take precedence over native ones."""

    def first(*names: str, default: Any = None) -> Any:
        return next((config[name] for name in names if config.get(name) is not None), default)

    layers, width = int(first("n_layer", "num_hidden_layers")), int(first("n_embd", "hidden_size"))
    heads = int(first("n_head", "num_attention_heads"))
    eps = float(first("layer_norm_epsilon", "layer_norm_eps", default=1e-12))
    types = int(first("type_vocab_size", default=2))
    if config["model_type"] == "bert":
        act = first("hidden_act", default="gelu")
        return Meaning(layers, heads, width, eps, types, act=act)
    rope = first("rope_parameters", "rope_scaling", default={})
    part = first("rotary_emb_fraction", "partial_rotary_factor")
    part = rope.get("partial_rotary_factor", 1.0) if part is None else part
    trained = first("max_trained_positions")
    if trained is None:  # native key; in v1 its value 8192 is the serving length, not the trained
        trained = min(first("max_position_embeddings", default=2048), 2048)
        trained = 2048 if "n_embd" in config else trained
    biases = ("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias")
    return Meaning(
        layers,
        heads,
        width,
        eps,
        types,
        gated=first("activation_function", "hidden_act") in ("swiglu", "silu"),
        rotary_dims=int(width // heads * part),
        theta=float(first("rotary_emb_base", default=rope.get("rope_theta"))),
        interleaved=bool(first("rotary_emb_interleaved", default=False)),
        factor=float(first("rotary_scaling_factor", default=rope.get("factor") or 0.0)),
        trained=int(trained),
        top_k=int(first("moe_top_k", default=0)) if first("moe_every_n_layers", default=0) else 0,
        biased=any(first(name, default="n_embd" in config) for name in biases),
    )


class Weights:
    """A folder's tensors under one set of names, read and converted on access."""

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        """Map the names; no tensor is read yet."""
        self.files, self.dtype, self.device = TensorFiles(folder), dtype, device
        self.names: dict[str, str] = {}
        for name in self.files.names():
            plain = PREFIX.sub("", name)
            for pattern, new in BERT_NAMES:
                plain = re.sub(pattern, new, plain)
            self.names[plain] = name

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def __call__(self, name: str) -> Tensor:
        """One tensor in the dtype of the arithmetic."""
        return self.files.read(self.names[name]).to(self.device, self.dtype)

    def rows(self, name: str, ids: Tensor) -> Tensor:
        """Some rows of an embedding table, without converting the whole table."""
        return self.files.read(self.names[name])[ids.cpu()].to(self.device, self.dtype)

    def linear(self, x: Tensor, name: str) -> Tensor:
        """Compute x W^T, + b if there is a bias."""
        bias = self(f"{name}.bias") if f"{name}.bias" in self else None
        return F.linear(x, self(f"{name}.weight"), bias)

    def norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        """LayerNorm over the last dimension."""
        return F.layer_norm(x, x.shape[-1:], self(f"{name}.weight"), self(f"{name}.bias"), eps)


@torch.no_grad()
def oracle(
    folder: Path,
    config: Mapping[str, Any],
    ids: Sequence[Sequence[int]],
    types: Sequence[Sequence[int]] | None = None,
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor | None]:
    """All hidden states of some texts, each computed independently of the others.

    Args:
        folder: of config.json and the weights.
        config: contents of config.json.
        ids: token ids of each text.
        types: token types of each text; None for type 0.
        dtype: of the arithmetic. Rotary angles are fp32, as the references define them.
        device: of the computation.

    Returns: (layers + 1, tokens, hidden) of the texts concatenated, the embeddings' output first;
        and, with experts, (tokens,) routing margins: the probability of the last expert selected
        minus that of the first one not selected, the minimum over the layers.
    """
    m, place = read_meaning(config), torch.device(device)
    w = Weights(folder, dtype, place)
    lengths = [len(text) for text in ids]
    flat = torch.tensor([token for text in ids for token in text])
    kinds = torch.tensor([t for text in types for t in text]) if types else torch.zeros_like(flat)
    x = w.rows("embeddings.word_embeddings.weight", flat)
    x = x + w.rows("embeddings.token_type_embeddings.weight", kinds)
    if not m.rotary_dims:
        positions = torch.cat([torch.arange(n) for n in lengths])
        x = x + w.rows("embeddings.position_embeddings.weight", positions)
    rotations = [_cos_sin(m, n, dtype, place) for n in lengths] if m.rotary_dims else None
    x = w.norm(x, "emb_ln", m.eps)
    states, margins = [x], []
    for i in range(m.layers):
        at = f"encoder.layers.{i}."
        mixed = _attention(m, w, at, x, lengths, rotations)
        x = w.norm(x + w.linear(mixed, at + "attn.out_proj"), at + "norm1", m.eps)
        if at + "mlp.router.layer.weight" in w:
            y, margin = _experts(w, at, x, m.top_k)
            margins.append(margin)
        elif m.gated:
            inner = w.linear(x, at + "mlp.fc11") * F.silu(w.linear(x, at + "mlp.fc12"))
            y = w.linear(inner, at + "mlp.fc2")
        else:
            inner = ACTS[m.act](w.linear(x, at + "mlp.fc1"))
            y = w.linear(inner, at + "mlp.fc2")
        x = w.norm(x + y, at + "norm2", m.eps)
        states.append(x)
    return torch.stack(states), torch.stack(margins).amin(0) if margins else None


def _cos_sin(
    m: Meaning, length: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cos and sin of the rotary angles for a text of this length, (length, 1, rotary dims / 2)."""
    theta, d = m.theta, m.rotary_dims
    if m.factor and length > m.trained and d > 2:
        theta *= (m.factor * length / m.trained - (m.factor - 1)) ** (d / (d - 2))
    frequency = 1.0 / theta ** (torch.arange(0, d, 2).float() / d)
    angle = torch.arange(length).float()[:, None, None] * frequency
    return angle.cos().to(device, dtype), angle.sin().to(device, dtype)


def _rotate(m: Meaning, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate pairs of dimensions of x (tokens, heads, head size): halves, or interleaved."""
    (cos, sin), d = rotation, m.rotary_dims
    if m.interleaved:
        a, b = x[..., 0:d:2], x[..., 1:d:2]
    else:
        a, b = x[..., : d // 2], x[..., d // 2 : d]
    both = torch.stack([a * cos - b * sin, b * cos + a * sin], -1 if m.interleaved else -2)
    return torch.cat([both.flatten(-2), x[..., d:]], -1)


def _attention(
    m: Meaning,
    w: Weights,
    at: str,
    x: Tensor,
    lengths: Sequence[int],
    rotations: Sequence[tuple[Tensor, Tensor]] | None,
) -> Tensor:
    if at + "attn.Wqkv.weight" in w:
        projected = w.linear(x, at + "attn.Wqkv").chunk(3, -1)
    else:
        names = ("query", "key", "value")
        projected = tuple(w.linear(x, f"{at}attention.self.{name}") for name in names)
    split = [t.view(len(x), m.heads, -1) for t in projected]
    texts = zip(*(torch.split(t, list(lengths)) for t in split), strict=True)
    mixed = []
    for number, (query, key, value) in enumerate(texts):
        if rotations is not None:
            query, key = (_rotate(m, t, rotations[number]) for t in (query, key))
        logits = torch.einsum("qhd,khd->hqk", query, key) * query.shape[-1] ** -0.5
        # softmax in fp32 at least, as the references do for 16-bit dtypes
        shares = logits.softmax(-1, torch.promote_types(x.dtype, torch.float32)).to(x.dtype)
        mixed.append(torch.einsum("hqk,khd->qhd", shares, value).flatten(1))
    return torch.cat(mixed)


def _experts(w: Weights, at: str, x: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The top_k experts of each token, weighted by a softmax over all experts; one shared bias.

    The weights of the selected experts are not renormalised.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    shares = w.linear(x, at + "mlp.router.layer").softmax(-1, wide)
    ranked, order = shares.sort(-1, descending=True)
    count = shares.shape[-1]
    up, down = (w(f"{at}mlp.experts.mlp.{name}").chunk(count) for name in ("w1", "w2"))
    out = torch.zeros_like(x)
    for expert in range(count):
        share = shares[:, expert] * (order[:, :top_k] == expert).any(-1)
        out += share[:, None].to(x.dtype) * (F.gelu(x @ up[expert].T) @ down[expert])
    margin = ranked[:, top_k - 1] - ranked[:, top_k] if top_k < count else torch.ones_like(x[:, 0])
    return out + w(at + "mlp.experts.bias"), margin
