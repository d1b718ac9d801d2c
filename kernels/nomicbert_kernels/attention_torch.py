"""Attention through torch's fused kernel, once per run of texts of equal length.

A run is a dense block of the packed tokens, so no text is padded or masked, and a text is computed
from its own tokens alone.

On a CPU the kernel uses MKL GEMMs, which guarantee equal bits only in MKL's reproducible mode, a
process-wide switch. Without it, on AMD processors and in the SSE4.2 kernels, the order of a sum
depends on whether operands start at a multiple of 16 bytes. So all operands are aligned to 64
bytes, the widest vector:

- Heads are padded with zero columns (none for the usual sizes of 32 and 64).
- Few queries are padded with rows whose results are dropped, because the kernel's scratch memory
  per thread has one row per query.
- Views with other offsets or strides are copied.

Long texts in fp32 are computed by `attention_long_torch`, which calls the same kernel.

In bf16 with over 12 threads, the kernel's code path depends on the number of texts.
Source: oneMKL Developer Guide for Linux, "Reproducibility Conditions"; the rest is measured.
"""

import functools
import logging

import torch
import torch.nn.functional as F
from torch import Tensor

from nomicbert_kernels import attention as reference
from nomicbert_kernels import attention_long_torch as long_texts
from nomicbert_kernels.tensors import Plan, Run

# Alignment of GEMM operands in bytes.
ALIGNMENT = 64
# From this many queries on, the kernel uses blocks of 32, 64 or 256 rows, which are aligned.
SHORT = 32

logger = logging.getLogger(__name__)


@functools.cache
def say_dropout_is_slow() -> None:
    """Log once that attention dropout is slow."""
    logger.info("attention dropout is computed by the reference, text by text")


def check(
    qkv: Tensor, cu_seqlens: Tensor, plan: Plan, dropout_p: float, rows: Tensor | None
) -> None:
    """Refuse arguments that do not fit."""
    reference.check(qkv, cu_seqlens, dropout_p, rows)
    planned = sum(run.texts * run.length for run in plan.runs)
    if planned != qkv.shape[0]:
        raise ValueError(f"the plan is for {planned} tokens, but qkv has {qkv.shape[0]}")


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
        # the fused kernel takes no seed; the reference does
        say_dropout_is_slow()
        return reference.attention(qkv, cu_seqlens, plan, scale, dropout_p, seed, rows)
    check(qkv, cu_seqlens, plan, dropout_p, rows)
    if not qkv.requires_grad and not torch.compiler.is_compiling():
        return attend(qkv, plan, scale, rows)
    heads, size = qkv.shape[2:]
    out = [
        of_run(qkv, run, scale, rows).transpose(1, 2).reshape(-1, heads * size) for run in plan.runs
    ]
    return torch.cat(out) if out else qkv.new_empty(0, heads * size)


def attend(qkv: Tensor, plan: Plan, scale: float, rows: Tensor | None = None) -> Tensor:
    """`attention` without dropout, gradients and checks; on a CPU with aligned operands."""
    heads, size = qkv.shape[2:]
    unit, long = 1, []
    if qkv.device.type == "cpu":
        unit = ALIGNMENT // qkv.element_size()
        qkv = aligned(qkv, unit)
        if rows is None:
            long = [run for run in plan.runs if long_texts.is_long(qkv.dtype, run.length)]
    if len(plan.runs) == 1 and not long:  # a single text, mostly: its result need not be copied
        o = of_run(qkv, plan.runs[0], scale, rows, unit).transpose(1, 2)
        return (o if o.shape[3] == size else o[..., :size]).reshape(-1, heads * size)
    # each run writes into the result directly, which saves the concatenation
    out = qkv.new_empty(qkv.shape[0] if rows is None else rows.shape[0], heads, size)
    for run in plan.runs:
        tokens = slice(run.token, run.token + run.texts * run.length)
        if run in long:
            block, into = (t[tokens].view(run.texts, -1, *t.shape[1:]) for t in (qkv, out))
            long_texts.attend(block, into, scale)
            continue
        o = of_run(qkv, run, scale, rows, unit)[..., :size].transpose(1, 2)
        place = tokens if rows is None else slice(run.text, run.text + run.texts)
        out[place].view(o.shape).copy_(o)
    return out.flatten(1)


def of_run(
    qkv: Tensor, run: Run, scale: float, rows: Tensor | None = None, unit: int = 1
) -> Tensor:
    """Attention of one run: (texts, h, queries, d); few queries are padded to units meanwhile."""
    text, token, texts, length = run
    count = texts * length
    block = qkv if count == qkv.shape[0] else qkv[token : token + count]
    blocks = block.view(texts, length, 3, *qkv.shape[2:])
    q, k, v = blocks.permute(2, 0, 3, 1, 4).unbind(0)  # each (texts, h, length, d)
    if rows is not None:
        q = qkv[rows[text : text + texts], 0].unsqueeze(2)
    queries = q.shape[2]
    missing = -queries % unit if queries < SHORT else 0
    if not missing:
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    padded = torch.constant_pad_nd(q, (0, 0, 0, missing))
    return F.scaled_dot_product_attention(padded, k, v, scale=scale).narrow(2, 0, queries)


def aligned(qkv: Tensor, unit: int) -> Tensor:
    """Return qkv (T, 3, h, d) contiguous, every head aligned to `unit` elements by zero-padding.

    Memory that torch allocates starts at a multiple of 64 bytes.
    """
    size = qkv.shape[3]
    if not (size % unit or qkv.storage_offset() % unit) and qkv.is_contiguous():
        return qkv
    out = qkv.new_zeros(*qkv.shape[:3], size + -size % unit)
    out[..., :size] = qkv
    return out
