"""Hidden states -> one vector per text: the second half of `tests/support/oracle.py`.

Source: the pooling modules of sentence-transformers, and the model card of nomic-embed-text-v1.5.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor


def oracle_pool(
    hidden: Tensor,
    mask: Tensor,
    mode: str,
    *,
    dense: tuple[Tensor, Tensor] | None = None,
    normalize: bool = False,
    faults: Collection[str] = (),
) -> Tensor:
    """One vector per text: (batch, seq_len, hidden) -> (batch, hidden or the dense width).

    Args:
        hidden: last hidden state.
        mask: (batch, seq_len) of 0 and 1.
        mode: "mean", "cls", "max", "mean_sqrt_len", "lasttoken" or "weightedmean".
        dense: weight and bias of a linear layer after pooling.
        normalize: L2, last.
        faults: "dense_skipped" leaves the dense layer out; zeros fill up to its width.
    """
    keep = mask.to(hidden.dtype)[..., None]
    kept = keep.sum(1).clamp(min=1e-9)
    rows, columns = torch.arange(len(mask)), torch.arange(mask.shape[1])
    if mode == "mean":
        pooled = (hidden * keep).sum(1) / kept
    elif mode == "mean_sqrt_len":
        pooled = (hidden * keep).sum(1) / kept.sqrt()
    elif mode == "weightedmean":  # the weight is the rank, from 1 at the first kept column
        first = mask.long().argmax(1, keepdim=True)
        weight = keep * (columns - first + 1)[..., None]
        pooled = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
    elif mode == "max":
        pooled = hidden.masked_fill(keep == 0, -torch.inf).amax(1)
    elif mode == "cls":
        pooled = hidden[rows, mask.long().argmax(1)]
    elif mode == "lasttoken":
        pooled = hidden[rows, (mask.long() * columns).argmax(1)]
    else:
        raise ValueError(f"no such pooling mode: {mode!r}")
    if dense is not None:
        weight, bias = (t.to(hidden.dtype) for t in dense)
        if "dense_skipped" in faults:
            pooled = F.pad(pooled, (0, len(weight) - pooled.shape[1]))
        else:
            pooled = F.linear(pooled, weight, bias)
    return F.normalize(pooled, dim=-1) if normalize else pooled


def oracle_matryoshka(pooled: Tensor, dim: int) -> Tensor:
    """The card's recipe: layer_norm over the full width without affine -> slice -> L2."""
    centred = pooled - pooled.mean(-1, keepdim=True)
    normed = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    return F.normalize(normed[..., :dim], dim=-1)
