"""Hidden states -> vectors in float64 by the formulas of pooling, Dense and Matryoshka.

It reads the files of sentence-transformers independently of the package's own reader.
Source: pooling modules of sentence-transformers; the Matryoshka recipe of nomic-embed-text-v1.5's
card (layer_norm over the full width without weights, slice, L2).
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nomicbert.loading.tensor_files import TensorFiles

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "Identity": lambda x: x,
    "Tanh": torch.tanh,
    "ReLU": torch.relu,
    "GELU": F.gelu,
    "Sigmoid": torch.sigmoid,
    "SiLU": F.silu,
}


@dataclass(frozen=True)
class Steps:
    """The steps after the encoder.

    Attributes:
        mode: of pooling.
        dense: weight, bias or None, and activation of each Dense layer; in float64.
    """

    mode: str = "mean"
    dense: tuple[tuple[Tensor, Tensor | None, str], ...] = ()

    def vector(self, hidden: Tensor) -> Tensor:
        """One text's vector, float64, from its hidden states (tokens, hidden)."""
        x = _pool(hidden.double(), self.mode)
        for weight, bias, activation in self.dense:
            x = ACTIVATIONS[activation](F.linear(x, weight.to(x.device), _on(bias, x.device)))
        return x


def read_steps(folder: Path) -> Steps:
    """Read modules.json and its modules; a folder without it gets mean pooling."""
    path = folder / "modules.json"
    mode, dense = "mean", []
    for module in _json(path) if path.is_file() else []:
        place = folder / module["path"]
        kind = module["type"].rpartition(".")[2]
        if kind == "Pooling":
            mode = _mode(_json(place / "config.json"))
        elif kind == "Dense":
            files = TensorFiles(place)
            bias = files.read("linear.bias").double() if "linear.bias" in files.names() else None
            stated = _json(place / "config.json").get("activation_function", "Tanh")
            name = stated.rpartition(".")[2]
            dense.append((files.read("linear.weight").double(), bias, name))
    return Steps(mode, tuple(dense))


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


def _mode(stated: dict[str, Any]) -> str:
    if stated.get("pooling_mode") is not None:
        name = stated["pooling_mode"]
        name = name[0] if isinstance(name, list) else name
    else:
        flags = [key for key, value in stated.items() if key.startswith("pooling_mode_") and value]
        name = flags[0].removeprefix("pooling_mode_") if flags else "mean"
    return str(name).removesuffix("_tokens").removesuffix("_token")


def _on(bias: Tensor | None, device: torch.device) -> Tensor | None:
    return None if bias is None else bias.to(device)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
