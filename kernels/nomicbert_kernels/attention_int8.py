"""Attention of backend "int8": long texts in bf16, on a CPU with bf16 instructions.

Queries, keys and values were computed from 8-bit operands, so rounding them to bf16 adds little
error: the least cosine of all-MiniLM-L6-v2 to fp32, over 135 docstrings of 300 characters or more,
is 0.9973; with attention in fp32 it is 0.9969. Speed of torch's kernel in bf16, conversions
included, compared with fp32, on two cores of an Intel Xeon with AMX, and in brackets with AVX-512
bf16 instructions only:

| heads x size | 64 tokens | 128 | 300 | 687 | 2048 |
|---|---:|---:|---:|---:|---:|
| 12 x 64 | 0.9 (0.8) | 1.6 (1.2) | 1.9 (1.5) | 2.4 (1.9) | 2.7 (2.2) |
| 12 x 32 | 0.8 | 1.2 | 1.4 | 1.7 | 2.1 |
| 16 x 64 | 0.9 | 2.0 | 2.1 | 2.7 | 2.6 |

Of a batch only the length of a text decides, so it has the same bits in any batch.
"""

import torch
from torch import Tensor

from nomicbert_kernels import attention_torch
from nomicbert_kernels.dtypes import has_bf16_instructions
from nomicbert_kernels.tensors import Plan, Run

# Fewest tokens of a text that is computed in bf16.
LONG = 128
# Most threads with which a text has the same bits in any batch in bf16; see `attention_torch`.
THREADS = 12


def in_bf16() -> bool:
    """Whether long texts are computed in bf16."""
    return torch.get_num_threads() <= THREADS and has_bf16_instructions()


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
    if dropout_p > 0.0 or qkv.requires_grad or torch.compiler.is_compiling():
        return attention_torch.attention(qkv, cu_seqlens, plan, scale, dropout_p, seed, rows)
    attention_torch.check(qkv, cu_seqlens, plan, dropout_p, rows)
    return attend(qkv, plan, scale, rows)


def attend(qkv: Tensor, plan: Plan, scale: float, rows: Tensor | None = None) -> Tensor:
    """`attention` without dropout, gradients and checks."""
    longest = max((run.length for run in plan.runs), default=0)
    # with `rows` only one query of each text is computed, which takes little time
    if rows is not None or longest < LONG or not in_bf16():
        return attention_torch.attend(qkv, plan, scale, rows)
    out = qkv.new_empty(qkv.shape[0], qkv.shape[2] * qkv.shape[3])
    for _, first, texts, length in plan.runs:
        tokens = slice(first, first + texts * length)
        block = qkv[tokens] if length < LONG else qkv[tokens].bfloat16()
        out[tokens] = attention_torch.attend(block, Plan((Run(0, 0, texts, length),)), scale)
    return out
