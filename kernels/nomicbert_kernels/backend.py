"""The one place that decides which form of each op runs.

reference: the specification, short and slow, sums in fp32. torch: fast on whatever torch runs on, a
CPU first. triton: kernels of our own. The choice is made once for a device and dtype, and logged.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from nomicbert_kernels import (
    attention,
    attention_torch,
    embed,
    embed_torch,
    gelu,
    gelu_torch,
    layer_norm,
    layer_norm_torch,
    linear,
    linear_torch,
    moe,
    moe_torch,
    pool,
    pool_torch,
    qkv_rotary,
    qkv_rotary_torch,
    swiglu,
    swiglu_torch,
)
from nomicbert_kernels.tensors import Activation, Plan, Run, Weight, WeightKind

Backend = Literal["auto", "reference", "torch", "triton"]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

logger = logging.getLogger(__name__)


class BackendError(RuntimeError):
    """The backend asked for cannot run here."""


@dataclass(frozen=True)
class Ops:
    """The functions of one backend; each is documented in the file of its name.

    Attributes:
        name: the backend's.
        prepare: (weight, bias or None, kind) -> Weight in the form the other functions like best.
        plan: (lengths, num_heads, head_dim, dtype) -> Plan, once a batch.
    """

    name: str
    prepare: Callable[[Tensor, Tensor | None, WeightKind], Weight]
    plan: Callable[[Sequence[int], int, int, torch.dtype], Plan]
    embed: Callable[..., Tensor]
    linear: Callable[..., Tensor]
    qkv_rotary: Callable[..., Tensor]
    attention: Callable[..., Tensor]
    layer_norm: Callable[..., Tensor | Activation]
    swiglu: Callable[..., Tensor]
    gelu: Callable[..., Tensor]
    moe: Callable[..., Tensor]
    pool: Callable[..., Tensor]


def plan_runs(lengths: Sequence[int], num_heads: int, head_dim: int, dtype: torch.dtype) -> Plan:
    """Join neighbouring texts of one length into runs.

    Args:
        lengths: tokens of each text, on the host.
        num_heads: unused by this backend, as are head_dim and dtype.
        head_dim: size of a head.
        dtype: of the hidden states.
    """
    runs: list[Run] = []
    token = 0
    for text, length in enumerate(lengths):
        if runs and runs[-1].length == length and runs[-1].text + runs[-1].texts == text:
            runs[-1] = runs[-1]._replace(texts=runs[-1].texts + 1)
        elif length:
            runs.append(Run(text, token, 1, length))
        token += length
    return Plan(tuple(runs))


def keep_source(source: Tensor, bias: Tensor | None, kind: WeightKind) -> Weight:
    """The reference works on the parameters as they are."""
    return Weight(source, bias)


REFERENCE = Ops(
    name="reference",
    prepare=keep_source,
    plan=plan_runs,
    embed=embed.embed,
    linear=linear.linear,
    qkv_rotary=qkv_rotary.qkv_rotary,
    attention=attention.attention,
    layer_norm=layer_norm.layer_norm,
    swiglu=swiglu.swiglu,
    gelu=gelu.gelu,
    moe=moe.moe,
    pool=pool.pool,
)

TORCH = Ops(
    name="torch",
    prepare=linear_torch.prepare,
    plan=plan_runs,
    embed=embed_torch.embed,
    linear=linear_torch.linear,
    qkv_rotary=qkv_rotary_torch.qkv_rotary,
    attention=attention_torch.attention,
    layer_norm=layer_norm_torch.layer_norm,
    swiglu=swiglu_torch.swiglu,
    gelu=gelu_torch.gelu,
    moe=moe_torch.moe,
    pool=pool_torch.pool,
)


def select_ops(device: torch.device | str, dtype: torch.dtype, backend: Backend = "auto") -> Ops:
    """Choose the functions for a device and a dtype.

    Args:
        device: where the hidden states live.
        dtype: of the hidden states: fp32, fp16 or bf16 (fp64 for "reference").
        backend: "auto" takes the fastest that can run; any other name is taken or refused.

    Raises:
        ValueError: unknown backend or dtype.
        BackendError: the backend cannot run here.
    """
    device = torch.device(device)
    if backend not in get_args(Backend):
        known = ", ".join(get_args(Backend))
        raise ValueError(f"unknown backend {backend!r}: choose one of {known}")
    if dtype not in DTYPES and not (dtype == torch.float64 and backend == "reference"):
        raise ValueError(
            f"hidden states cannot be {dtype}: choose one of {', '.join(map(str, DTYPES))}"
        )
    if backend == "triton":
        raise BackendError(
            "backend 'triton' is not part of this version: use 'auto', 'torch' or 'reference'"
        )
    ops = REFERENCE if backend == "reference" else TORCH
    if backend == "auto":
        packs = device.type == "cpu" and linear_torch.onednn_packs(dtype)
        why = "oneDNN packs its weights" if packs else "it runs wherever torch does"
        logger.info("backend %s for %s in %s: %s", ops.name, device, dtype, why)
    else:
        logger.info("backend %s for %s in %s: asked for", ops.name, device, dtype)
    return ops
