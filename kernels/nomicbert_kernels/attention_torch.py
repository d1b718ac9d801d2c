"""Attention through torch's fused kernel, once for each run of texts of one length.

A run is a dense block of the packed tokens, so no text is padded to another's length or masked, and
a text is computed from its own tokens alone.

On a CPU the kernel multiplies through MKL, which promises equal bits in its reproducible mode only,
a switch of the whole process. Without it, on AMD processors and in its SSE4.2 kernels, the order of
a sum depends on whether operands start at a multiple of 16 bytes. So everything that reaches it
starts at a multiple of 64, the widest vector: heads, by zeros behind their columns (none for the
usual sizes of 32 and 64); the block of queries, by rows whose results are dropped, because each
thread's scratch memory in the kernel is as many rows long; views that begin or step elsewhere, by a
copy. In bf16 the kernel takes other paths on over 12 threads, by the number of texts.
Source: oneMKL Developer Guide for Linux, "Reproducibility Conditions"; the rest is measured.
"""

import functools
import logging

import torch
import torch.nn.functional as F
from torch import Tensor

from nomicbert_kernels import attention as reference
from nomicbert_kernels.tensors import Plan

# Bytes at whose multiples the operands of a GEMM start.
ALIGNMENT = 64
# The kernel takes the queries of longer texts in blocks of 32, 64 or 256 rows, which are aligned.
SHORT = 32

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
    # with gradients no bits are promised; a compiled graph knows no strides
    align = qkv.device.type == "cpu" and not (qkv.requires_grad or torch.compiler.is_compiling())
    unit = ALIGNMENT // qkv.element_size() if align else 1
    if align:
        qkv = aligned(qkv, unit)
    out = []
    # where nothing is recorded, each run writes its own part of the result
    whole = None
    if not qkv.requires_grad and not torch.compiler.is_compiling():
        whole = qkv.new_empty(qkv.shape[0] if rows is None else rows.shape[0], heads, size)
    for text, token, texts, length in plan.runs:
        block = qkv[token : token + texts * length].view(texts, length, 3, heads, qkv.shape[3])
        q, k, v = block.permute(2, 0, 3, 1, 4)  # each (texts, h, length, d)
        if rows is not None:
            q = qkv[rows[text : text + texts], 0].unsqueeze(2)
        queries = q.shape[2]
        if queries < SHORT and queries % unit:
            q = F.pad(q, (0, 0, 0, -queries % unit))
        o = F.scaled_dot_product_attention(q, k, v, scale=scale)
        o = o[:, :, :queries, :size].transpose(1, 2)
        if whole is None:
            out.append(o.reshape(-1, heads * size))
        elif rows is None:
            whole[token : token + texts * length].view(o.shape).copy_(o)
        else:
            whole[text : text + texts].copy_(o[:, 0])
    if whole is not None:
        return whole.flatten(1)
    return torch.cat(out) if out else qkv.new_empty(0, heads * size)


def aligned(qkv: Tensor, unit: int) -> Tensor:
    """The same (T, 3, h, d) with every head at a multiple of `unit` elements: zeros behind it.

    Torch's own memory begins at a multiple of 64 bytes.
    """
    size = qkv.shape[3]
    places = (qkv.storage_offset(), size, *qkv.stride()[:3])
    if qkv.stride(3) == 1 and not any(place % unit for place in places):
        return qkv
    out = qkv.new_zeros(*qkv.shape[:3], size + -size % unit)
    out[..., :size] = qkv
    return out
