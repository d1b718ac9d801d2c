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
    planned = sum(run.texts * run.length for run in plan.runs)
    if planned != qkv.shape[0]:
        raise ValueError(f"the plan is for {planned} tokens, but qkv has {qkv.shape[0]}")
    heads, size = qkv.shape[2:]
    out = []
    # where nothing is recorded, each run writes its own part of the result
    whole = None
    if not qkv.requires_grad and not torch.compiler.is_compiling():
        whole = qkv.new_empty(qkv.shape[0] if rows is None else rows.shape[0], heads, size)
    for text, token, texts, length in plan.runs:
        block = qkv[token : token + texts * length].view(texts, length, 3, heads, size)
        q, k, v = block.permute(2, 0, 3, 1, 4)  # each (texts, h, length, d)
        if rows is not None:
            q = qkv[rows[text : text + texts], 0].unsqueeze(2)
        o = F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)
        if whole is None:
            out.append(o.reshape(-1, heads * size))
        elif rows is None:
            whole[token : token + texts * length].view(o.shape).copy_(o)
        else:
            whole[text : text + texts].copy_(o[:, 0])
    if whole is not None:
        return whole.flatten(1)
    return torch.cat(out) if out else qkv.new_empty(0, heads * size)
