"""The ops of each backend, and the choice of a backend.

- reference: the specification, short and slow, with sums in fp32.
- torch: PyTorch ops for any device, optimised for a CPU.
- int8: backend torch with linear layers in int8, and attention over long texts in bf16, for a CPU.
- triton: the Triton kernels of this package.
- fp8: backend triton with linear layers in e4m3, for GPUs whose tensor cores support it.
- invariant: backend triton with launch settings that do not depend on the batch, so a text gets
  bit-identical vectors in any batch.

A backend is chosen only here, once per device and dtype, and the choice is logged. `capabilities`
reports why a backend cannot run.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from nomicbert_kernels import (
    attention,
    attention_int8,
    attention_torch,
    embed,
    embed_torch,
    fp8,
    gelu,
    gelu_int8,
    gelu_torch,
    launch,
    layer_int8,
    layer_norm,
    layer_norm_torch,
    layer_torch,
    linear,
    linear_int8,
    linear_torch,
    moe,
    moe_torch,
    pool,
    pool_torch,
    qkv_rotary,
    qkv_rotary_int8,
    qkv_rotary_torch,
    swiglu,
    swiglu_int8,
    swiglu_torch,
    tiling,
)
from nomicbert_kernels.capabilities import why_not_fp8, why_not_int8, why_not_triton
from nomicbert_kernels.launch import BackendError
from nomicbert_kernels.tensors import Activation, Plan, Run, Weight, WeightKind

Backend = Literal["auto", "reference", "torch", "int8", "triton", "fp8", "invariant"]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

logger = logging.getLogger(__name__)


def fuses_residual(x: Tensor | Activation, weight: Weight) -> bool:
    """`Ops.adds_residual` of backends whose `linear` always does."""
    return True


@dataclass(frozen=True)
class Ops:
    """The functions of one backend; each is documented in the module of its name.

    Attributes:
        name: of the backend.
        prepare: (weight, bias or None, kind) -> Weight, packed or quantised for this backend.
        plan: (lengths, num_heads, head_dim, dtype) -> Plan, made once per batch.
        adds_residual: (x, weight) -> whether `linear` adds a residual without another pass over
            memory.
        layer: a whole layer without gradients, from weights that are all packed; None if the
            backend has no such function.
    """

    name: str
    prepare: Callable[[Tensor, Tensor | None, WeightKind], Weight]
    plan: Callable[[Sequence[int], int, int, torch.dtype], Plan]
    embed: Callable[..., Tensor]
    linear: Callable[..., Tensor]
    qkv_rotary: Callable[..., Tensor]
    attention: Callable[..., Tensor]
    layer_norm: Callable[..., Tensor | Activation]
    swiglu: Callable[..., Tensor | Activation]
    gelu: Callable[..., Tensor | Activation]
    moe: Callable[..., Tensor]
    pool: Callable[..., Tensor]
    adds_residual: Callable[[Tensor | Activation, Weight], bool] = fuses_residual
    layer: Callable[..., Tensor | Activation] | None = None

    def replaced(self, **ops: Any) -> "Ops":
        """These ops with some replaced; a layer then runs them one by one."""
        return replace(self, layer=None, **ops)

    @classmethod
    def names(cls) -> list[str]:
        """Names of the ops: the fields that compute a part of the model."""
        beside = ("name", "prepare", "plan", "adds_residual", "layer")
        return [field.name for field in fields(cls) if field.name not in beside]

    def project(
        self, x: Tensor | Activation, weight: Weight, residual: Tensor | Activation
    ) -> tuple[Tensor, Tensor | Activation | None]:
        """Apply a linear layer whose result and residual are the input of `layer_norm`.

        Args:
            x: (T, K).
            weight: (N, K).
            residual: (T, N).

        Returns: (T, N), and the residual if `layer_norm` has to add it, else None.
        """
        if self.adds_residual(x, weight):
            return self.linear(x, weight, residual), None
        return self.linear(x, weight), residual


def plan_runs(lengths: Sequence[int], num_heads: int, head_dim: int, dtype: torch.dtype) -> Plan:
    """Join neighbouring texts of equal length into runs.

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
    """Use the parameters unchanged, for backends that do not pack or quantise them."""
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

# The reference for texts of one length: it reads no values, so torch.export can record it.
EQUAL_LENGTHS = replace(
    REFERENCE,
    name="equal lengths",
    attention=attention.of_equal_lengths,
    pool=pool.of_equal_lengths,
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
    layer=layer_torch.layer,
)

# The specification that the kernels of backend "fp8" are tested against.
FP8_REFERENCE = replace(
    REFERENCE,
    name="fp8",
    prepare=fp8.prepare,
    linear=fp8.linear_fp8,
    qkv_rotary=fp8.qkv_rotary_fp8,
    layer_norm=fp8.layer_norm_fp8,
    swiglu=fp8.swiglu_fp8,
    gelu=fp8.gelu_fp8,
)

INT8 = replace(
    TORCH,
    name="int8",
    prepare=linear_int8.prepare,
    linear=linear_int8.linear,
    qkv_rotary=qkv_rotary_int8.qkv_rotary,
    attention=attention_int8.attention,
    swiglu=swiglu_int8.swiglu,
    gelu=gelu_int8.gelu,
    layer=layer_int8.layer,
)


@functools.cache
def triton_ops(device: torch.device) -> Ops:
    """The kernels of this package, launched on `device`.

    Raises: BackendError: triton is missing or too old, or was imported before TRITON_INTERPRET was
        set.
    """
    try:
        from nomicbert_kernels import (
            attention_triton,
            embed_triton,
            gelu_triton,
            gemm_triton,
            layer_norm_triton,
            linear_triton,
            moe_triton,
            pool_triton,
            qkv_rotary_triton,
            swiglu_triton,
        )
    except ImportError as error:
        raise BackendError(
            f"backend 'triton' needs triton 3.6 or later ({error}): pip install triton"
        ) from error
    if device.type == "cpu" and not gemm_triton.INTERPRETED:
        raise BackendError(
            "TRITON_INTERPRET was set after triton was imported: set it before starting Python"
        )

    def plan(lengths: Sequence[int], num_heads: int, head_dim: int, dtype: torch.dtype) -> Plan:
        return tiling.plan_tiles(lengths, head_dim, dtype, device)

    return Ops(
        name="triton",
        prepare=keep_source,
        plan=plan,
        embed=embed_triton.embed,
        linear=linear_triton.linear,
        qkv_rotary=qkv_rotary_triton.qkv_rotary,
        attention=attention_triton.attention,
        layer_norm=layer_norm_triton.layer_norm,
        swiglu=swiglu_triton.swiglu,
        gelu=gelu_triton.gelu,
        moe=moe_triton.moe,
        pool=pool_triton.pool,
        adds_residual=linear_triton.adds_residual,
    )


@functools.cache
def fp8_ops(device: torch.device) -> Ops:
    """`triton_ops` with linear layers in e4m3; raises the same errors."""
    ops = triton_ops(device)
    from nomicbert_kernels import fp8_triton

    return replace(
        ops,
        name="fp8",
        prepare=fp8.prepare,
        linear=fp8_triton.linear,
        qkv_rotary=fp8_triton.qkv_rotary,
        layer_norm=fp8_triton.layer_norm,
        swiglu=fp8_triton.swiglu,
        gelu=fp8_triton.gelu,
        adds_residual=fp8_triton.adds_residual,
    )


@functools.cache
def invariant_ops(device: torch.device) -> Ops:
    """`triton_ops` with batch-independent launch settings; raises the same errors."""
    ops = triton_ops(device)
    # the other ops already work row by row or text by text
    names = ("plan", "linear", "adds_residual", "qkv_rotary", "attention", "swiglu", "gelu", "moe")
    return replace(
        ops, name="invariant", **{name: within_invariant(getattr(ops, name)) for name in names}
    )


def within_invariant(op: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap an op so that it runs within `launch.invariant`."""

    @functools.wraps(op)
    def call(*args: Any, **keywords: Any) -> Any:
        if torch.compiler.is_compiling():
            # a compiled graph would launch the kernels after this context has been left
            raise BackendError("backend 'invariant' cannot be compiled: use backend 'triton'")
        with launch.invariant():
            return op(*args, **keywords)

    return call


def select_ops(device: torch.device | str, dtype: torch.dtype, backend: Backend = "auto") -> Ops:
    """Choose the ops for a device and a dtype, and log the reason; see `choose_ops`."""
    ops, why = choose_ops(device, dtype, backend)
    logger.info("backend %s for %s in %s: %s", ops.name, device, dtype, why)
    return ops


def choose_ops(
    device: torch.device | str, dtype: torch.dtype, backend: Backend = "auto"
) -> tuple[Ops, str]:
    """Return the ops for a device and a dtype, and the reason for the choice.

    Args:
        device: of the hidden states.
        dtype: of the hidden states: fp32, fp16 or bf16 (fp64 for "reference").
        backend: "auto" picks the fastest that can run; any other name is used or refused.

    Raises:
        ValueError: unknown backend or dtype.
        BackendError: the backend cannot run here.
    """
    device = torch.device(device)
    if str(device) == "cuda" and torch.cuda.is_available():
        # name the GPU: ops are cached per device, and the current device may change later
        device = torch.device("cuda", torch.cuda.current_device())
    if backend not in get_args(Backend):
        known = ", ".join(get_args(Backend))
        raise ValueError(f"unknown backend {backend!r}: choose one of {known}")
    if dtype not in DTYPES and not (dtype == torch.float64 and backend == "reference"):
        raise ValueError(
            f"hidden states cannot be {dtype}: choose one of {', '.join(map(str, DTYPES))}"
        )
    if backend == "int8":
        if problem := why_not_int8(device, dtype):
            raise BackendError(f"backend 'int8' cannot run here: {problem}")
        return INT8, "requested"
    if backend == "fp8":
        if problem := why_not_fp8(device, dtype):
            raise BackendError(f"backend 'fp8' cannot run here: {problem}")
        return fp8_ops(device), "requested"
    problem = why_not_triton(device, dtype)
    if backend in ("triton", "invariant"):
        if problem:
            raise BackendError(f"backend {backend!r} cannot run here: {problem}")
        ops = triton_ops(device) if backend == "triton" else invariant_ops(device)
        return ops, "requested"
    if backend != "auto":
        return REFERENCE if backend == "reference" else TORCH, "requested"
    if device.type == "cuda":
        arch = launch.architecture(device)
        if problem is None and launch.proven(arch):
            return triton_ops(device), f"its kernels are proven on {arch}"
        unproven = f"backend 'triton' has not been tested on {arch} yet: request it by name"
        return TORCH, problem or unproven
    packs = device.type == "cpu" and linear_torch.onednn_packs(dtype)
    return TORCH, "oneDNN packs its weights" if packs else "it runs on every torch device"
