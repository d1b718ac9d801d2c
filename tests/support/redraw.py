"""Random weights that expose faults.

A freshly initialised model hides faults: its biases are zero and its norms identical, so a loader
that drops or swaps them changes nothing. `redraw` gives every tensor values that affect the
output; `tests/support/test_oracle.py` checks that each planted fault is visible.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]


def redraw(
    tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], seed: int = 0
) -> Tensors:
    """Draw values for every tensor, such that each one affects the output.

    LayerNorm weights are 1 +- 0.3, their biases +- 0.1, other biases +- 0.05, and queries and
    keys are scaled for attention logits with a standard deviation of about 3. Embedding rows are
    as small as real ones (0.05), so that a wrong epsilon shows in the embeddings' LayerNorm.

    Args:
        tensors: names and shapes of a checkpoint; their values are not used.
        config: gives the numbers of experts and heads; either family of keys.
        seed: of the generator.
    Returns: new tensors of the same names, shapes, dtypes and order.
    """
    generator = torch.Generator().manual_seed(seed)
    experts = config.get("num_experts") or 1
    # Deep models need smaller logits: errors multiply from layer to layer, and attention that mixes
    # this much makes all tokens alike after about ten layers. Tiny models need more to show faults.
    gain, mixing = (1.0, 1.5) if _width(tensors) < 256 else (0.6, 1.0)

    def normal(shape: torch.Size, std: float) -> torch.Tensor:
        return torch.randn(shape, generator=generator).mul_(std)

    def uniform(shape: torch.Size, half: float, middle: float = 0.0) -> torch.Tensor:
        return torch.rand(shape, generator=generator).mul_(2 * half).add_(middle - half)

    def query_key(shape: torch.Size) -> torch.Tensor:
        # LayerNorm's output has a mean square of 1.1; a logit's std is q's times k's
        return normal(shape, math.sqrt(3.3 / (1.1 * shape[1])))

    def linear(shape: torch.Size, boost: float = 1.0) -> torch.Tensor:
        return normal(shape, gain * boost / math.sqrt(shape[1]))

    def fused(shape: torch.Size) -> torch.Tensor:
        third = torch.Size((shape[0] // 3, shape[1]))
        return torch.cat([query_key(third), query_key(third), linear(third, mixing)])

    # The first pattern found in the name decides. Factors keep a sublayer's output about as large
    # as the residual: silu and gelu scale their input by 0.6, and averages over tokens and
    # weighted experts shrink it too.
    drawers: dict[str, Callable[[torch.Size], torch.Tensor]] = {
        r"position_ids": lambda shape: torch.arange(shape[-1]).expand(shape).clone(),
        r"([Nn]orm\d?|emb_ln)\.(weight|gamma)": lambda shape: uniform(shape, 0.3, 1.0),
        r"([Nn]orm\d?|emb_ln)\.(bias|beta)": lambda shape: uniform(shape, 0.1),
        r"bias$": lambda shape: uniform(shape, 0.05),
        r"token_type_embeddings": lambda shape: normal(shape, 0.025),
        r"embeddings": lambda shape: normal(shape, 0.05),
        r"Wqkv": fused,
        r"(query|key)\.": query_key,
        r"value\.": lambda shape: linear(shape, mixing),
        r"router": lambda shape: normal(shape, 2.0 / math.sqrt(shape[1])),
        r"experts\.mlp\.w2": lambda shape: normal(
            shape, gain * 2.5 / math.sqrt(shape[0] // experts)
        ),
        r"fc2|layer\.\d+\.output\.dense": lambda shape: linear(shape, 1.6),
        # small before its norm, so that a wrong epsilon is visible there too
        r"transform\.dense": lambda shape: linear(shape, 0.05),
        r"": linear,
    }
    drawn: Tensors = {}
    for name, old in tensors.items():
        draw = next(drawer for pattern, drawer in drawers.items() if re.search(pattern, name))
        drawn[name] = draw(old.shape).to(old.dtype)
    if "cls.predictions.decoder.weight" in drawn:  # tied, and stored twice
        words = next(name for name in drawn if name.endswith("word_embeddings.weight"))
        drawn["cls.predictions.decoder.weight"] = drawn[words].clone()
    return drawn


def _width(tensors: Mapping[str, torch.Tensor]) -> int:
    return next(t.shape[1] for name, t in tensors.items() if "word_embeddings" in name)
