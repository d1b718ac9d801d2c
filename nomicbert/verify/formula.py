"""Hidden states -> vectors in float64 by the formulas of pooling, Dense and Matryoshka.

It reads the files of sentence-transformers independently of the package's own reader.
Source: pooling modules of sentence-transformers; the Matryoshka recipe of nomic-embed-text-v1.5's
card (layer_norm over the full width without weights, slice, L2).
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nomicbert.loading.tensor_files import TensorFiles

# Classes of torch.nn that a Dense module may name; rows are the last dimension.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: getattr(nn, name)(dim=-1) for name in ("Softmax", "LogSoftmax", "Softmin")},
    **{
        name: getattr(nn, name)()
        for name in (
            "CELU", "ELU", "GELU", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh",
            "Identity", "LeakyReLU", "LogSigmoid", "Mish", "ReLU", "ReLU6", "SELU", "Sigmoid",
            "SiLU", "Softplus", "Softshrink", "Softsign", "Tanh", "Tanhshrink",
        )
    },
}  # fmt: skip
# Columns of the old keys of several modes.
ORDER = (
    "cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens",
    "lasttoken",
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """A module after pooling: Dense, LayerNorm or Normalize.

    Attributes:
        kind: its name in sentence-transformers.
        tensors: by their names on disk, in float64.
        activation: of a Dense layer.
        residual: whether a Dense layer adds what it got.
    """

    kind: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    activation: str = "Identity"
    residual: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """One text's (K,) -> (N,), float64."""
        held = {name: tensor.to(x.device) for name, tensor in self.tensors.items()}
        if self.kind == "Normalize":
            return F.normalize(x, dim=0)
        if self.kind == "LayerNorm":
            return F.layer_norm(x, x.shape, held["norm.weight"], held["norm.bias"])
        y = F.linear(x, held["linear.weight"], held.get("linear.bias"))
        y = ACTIVATIONS[self.activation](y)
        if not self.residual:
            return y
        return y + (F.linear(x, held["residual.weight"]) if "residual.weight" in held else x)


@dataclass(frozen=True)
class Steps:
    """The steps after the encoder.

    Attributes:
        modes: of pooling; what several give is concatenated.
        after: the modules after it, in order; Dropout changes nothing and is left out.
    """

    modes: tuple[str, ...] = ("mean",)
    after: tuple[Step, ...] = ()

    def vector(self, hidden: Tensor) -> Tensor:
        """One text's vector, float64, from its hidden states (tokens, hidden)."""
        x = torch.cat([_pool(hidden.double(), mode) for mode in self.modes])
        for step in self.after:
            x = step(x)
        return x


def read_steps(folder: Path) -> Steps:
    """Read modules.json and its modules; a folder without it gets mean pooling."""
    path = folder / "modules.json"
    modes: tuple[str, ...] = ("mean",)
    after: list[Step] = []
    for module in _json(path) if path.is_file() else []:
        place = folder / module["path"]
        kind = module["type"].rpartition(".")[2]
        if kind == "Pooling":
            modes = _modes(_json(place / "config.json"))
        elif kind in ("Dense", "LayerNorm"):
            files, stated = TensorFiles(place), _json(place / "config.json")
            tensors = {name: files.read(name).double() for name in files.names()}
            name = stated.get("activation_function", "Tanh").rpartition(".")[2]
            after.append(Step(kind, tensors, name, bool(stated.get("use_residual"))))
        elif kind == "Normalize":
            after.append(Step(kind))
    return Steps(modes, tuple(after))


def matryoshka(vectors: Tensor, dim: int) -> Tensor:
    """The card's recipe on full vectors (n, width), before any L2: unit vectors (n, dim)."""
    normed = F.layer_norm(vectors, vectors.shape[-1:])
    return F.normalize(normed[:, :dim], dim=-1)


def _pool(hidden: Tensor, mode: str) -> Tensor:
    count = len(hidden)
    if mode == "cls":
        return hidden[0]
    if mode == "lasttoken":
        return hidden[-1]
    if mode == "max":
        return hidden.amax(0)
    if mode == "weightedmean":
        ranks = torch.arange(1, count + 1, dtype=hidden.dtype, device=hidden.device)
        return (hidden * ranks[:, None]).sum(0) / ranks.sum()
    return hidden.sum(0) / (count**0.5 if mode == "mean_sqrt_len" else count)


def _modes(stated: dict[str, Any]) -> tuple[str, ...]:
    names = stated.get("pooling_mode")
    if names is None:
        names = [f"pooling_mode_{mode}" for mode in ORDER if stated.get(f"pooling_mode_{mode}")]
    names = [names] if isinstance(names, str) else names
    plain = (name.removeprefix("pooling_mode_") for name in names or ["mean"])
    return tuple(name.removesuffix("_tokens").removesuffix("_token") for name in plain)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
