"""Attention through torch's fused kernel, once for each run of texts of one length.

A run is a dense block of the packed tokens, so nothing is padded, copied or masked, and a text is
computed from its own tokens alone.
"""

import functools
import logging

import torch
import torch.nn.functional as F
from torch import Tensor

from nomicbert_kernels import attention as reference
from nomicbert_kernels.tensors import Plan

logger = logging.getLogger(__name__)


@functools.cache
def say_dropout_is_slow() -> None:
    """Log, once, what attention dropout costs."""
    logger.info("attention dropout is computed by the reference, text by text")


def attention(
    qkv: Tensor,
    cu_seqlens: Tensor,
    plan: Plan,
    scale: float,
    dropout_p: float = 0.0,
    seed: int = 0,
    rows: Tensor | None = None,
) -> Tensor:
    """See `nomicbert_kernels.attention`."""
    if dropout_p > 0.0:
        # the fused kernel has no seed of its own; the reference has
        say_dropout_is_slow()
        return reference.attention(qkv, cu_seqlens, plan, scale, dropout_p, seed, rows)
    reference.check(qkv, cu_seqlens, dropout_p, rows)
    heads, size = qkv.shape[2:]
    out = []
    for text, token, texts, length in plan.runs:
        block = qkv[token : token + texts * length].view(texts, length, 3, heads, size)
        q, k, v = block.permute(2, 0, 3, 1, 4)  # each (texts, h, length, d)
        if rows is not None:
            q = qkv[rows[text : text + texts], 0].unsqueeze(2)
        o = F.scaled_dot_product_attention(q, k, v, scale=scale)
        out.append(o.transpose(1, 2).reshape(-1, heads * size))
    if not out:
        return qkv.new_empty(0, heads * size)
    return out[0] if len(out) == 1 else torch.cat(out)
