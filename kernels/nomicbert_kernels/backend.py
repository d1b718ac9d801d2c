"""The one place that decides which form of each op runs.

reference: the specification, short and slow, sums in fp32. torch: fast on whatever torch runs on, a
CPU first. int8: torch's, with linear layers in bytes, for a CPU. triton: kernels of our own. fp8:
these, with linear layers in e4m3, for the GPUs that multiply it. invariant: those of triton,
launched alike whatever the batch, so that a text's bits do not hang on the texts beside it. The
choice is made once for a device and dtype, and logged. The dtype to compute in is decided here too.
"""

import functools
import importlib.util
import logging
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from nomicbert_kernels import (
    attention,
    attention_torch,
    embed,
    embed_torch,
    fp8,
    gelu,
    gelu_int8,
    gelu_torch,
    launch,
    layer_norm,
    layer_norm_torch,
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
from nomicbert_kernels.tensors import Activation, Plan, Run, Weight, WeightKind

Backend = Literal["auto", "reference", "torch", "int8", "triton", "fp8", "invariant"]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# What torch.cpu.get_capabilities() calls products in bf16: on x86 two of them, on ARM one.
BF16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16")
# Of fp32's time a product in bf16 takes less where bf16 is called the faster one.
WORTH = 0.9
# The least that the kernels are compiled for: sm_80 has bf16 and asynchronous copies.
LEAST_CAPABILITY = (8, 0)
# The first whose tensor cores take e4m3.
FP8_CAPABILITY = (8, 9)

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
    swiglu: Callable[..., Tensor | Activation]
    gelu: Callable[..., Tensor | Activation]
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

# What the kernels of backend "fp8" are measured against.
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
    swiglu=swiglu_int8.swiglu,
    gelu=gelu_int8.gelu,
)


@functools.cache
def triton_ops(device: torch.device) -> Ops:
    """The kernels of this package, launched on `device`.

    Raises: BackendError: triton is missing or too old, or was imported before it was told to
        interpret.
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
            f"backend 'triton' needs triton 3.6 or later ({error}): pip install 'nomicbert[gpu]'"
        ) from error
    if device.type == "cpu" and not gemm_triton.INTERPRETED:
        raise BackendError(
            "TRITON_INTERPRET was set after triton had been imported: set it before the start"
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
    )


@functools.cache
def fp8_ops(device: torch.device) -> Ops:
    """Those of `triton_ops` with linear layers in e4m3; it raises as that does."""
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
    )


@functools.cache
def invariant_ops(device: torch.device) -> Ops:
    """Those of `triton_ops`, launched alike whatever the batch; it raises as that does."""
    ops = triton_ops(device)
    # the others go row by row, or text by text, as they are
    names = ("plan", "linear", "qkv_rotary", "attention", "swiglu", "gelu", "moe")
    return replace(ops, name="invariant", **{name: alike(getattr(ops, name)) for name in names})


def alike(op: Callable[..., Any]) -> Callable[..., Any]:
    """An op within `launch.invariant`."""

    @functools.wraps(op)
    def call(*args: Any, **keywords: Any) -> Any:
        if torch.compiler.is_compiling():
            # a compiled graph would launch outside of it
            raise BackendError("backend 'invariant' cannot be compiled: use backend 'triton'")
        with launch.invariant():
            return op(*args, **keywords)

    return call


def interprets() -> bool:
    """Whether triton is told to run kernels in Python, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def why_not_triton(device: torch.device, dtype: torch.dtype) -> str | None:
    """What keeps the kernels from running here, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install 'nomicbert[gpu]'"
    if device.type == "cpu" and interprets():
        if dtype == torch.bfloat16:
            return "triton's interpreter computes bfloat16 wrongly: take float32 or float16"
        return None
    if device.type != "cuda":
        return (
            f"it needs a CUDA device, not {device.type}; to follow its kernels on a CPU, slowly, "
            "set TRITON_INTERPRET=1 before the start"
        )
    capability = torch.cuda.get_device_capability(device)
    if not torch.version.hip and capability < LEAST_CAPABILITY:
        found, wanted = (".".join(map(str, c)) for c in (capability, LEAST_CAPABILITY))
        return f"compute capability {found} is below {wanted}"
    return None


def why_not_fp8(device: torch.device, dtype: torch.dtype) -> str | None:
    """What keeps e4m3 products from running here, or None."""
    if problem := why_not_triton(device, dtype):
        return problem
    if device.type != "cuda":
        return None
    if torch.version.hip:
        return "its e4m3 is NVIDIA's, which this GPU does not multiply"
    capability = torch.cuda.get_device_capability(device)
    if capability < FP8_CAPABILITY:
        found, wanted = (".".join(map(str, c)) for c in (capability, FP8_CAPABILITY))
        return f"compute capability {found} multiplies no e4m3, {wanted} and later do"
    arch = launch.architecture(device)
    if ("linear", 1) not in launch.table(arch):
        return f"no launch table says how to run it on {arch}"
    return None


def why_not_int8(device: torch.device, dtype: torch.dtype) -> str | None:
    """What keeps int8 products from running here, or None."""
    if device.type != "cpu":
        return f"it is for a CPU, not {device.type}"
    if dtype != torch.float32:
        return f"its hidden states are float32, not {dtype}: take dtype float32 or float16"
    return linear_int8.why_not()


def compute_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The dtype of the hidden states where parameters are stored in `dtype`.

    It is the same one, except on a CPU for fp16, and for bf16 where `has_bf16_instructions` finds
    none: such products take some ten and some four times as long as those in fp32, so the
    parameters stay as narrow in memory and are widened for the arithmetic.
    """
    if device.type != "cpu":
        return dtype
    slow = dtype == torch.float16 or (dtype == torch.bfloat16 and not has_bf16_instructions())
    return torch.float32 if slow else dtype


@functools.cache
def multiplies_bf16(look: Callable[[], Mapping[str, object]]) -> bool:
    """Whether what `look` tells of a CPU has one of the instructions; each is asked once."""
    capabilities = look()
    return any(capabilities.get(name) for name in BF16_INSTRUCTIONS)


def has_bf16_instructions() -> bool:
    """Whether this CPU multiplies in bf16, and torch and oneDNN are there to use that.

    ATEN_CPU_CAPABILITY may keep torch from AVX-512: then its attention refuses bf16 on AMX.
    """
    found = multiplies_bf16(torch.cpu.get_capabilities)
    kept = torch.cpu.get_capabilities().get("avx512_f") and not torch_uses_avx512()
    return found and not kept and linear_torch.onednn_packs(torch.bfloat16)


@functools.cache
def torch_uses_avx512() -> bool:
    """Whether torch's own kernels do."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def fastest_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype that a device computes fastest in, and why it is that one."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if major >= 8:
            return torch.bfloat16, f"compute capability {major}.{minor} multiplies in bfloat16"
        return torch.float16, f"compute capability {major}.{minor} has no bfloat16"
    if device.type != "cpu":
        return torch.float32, "the others have not been measured there"
    if not has_bf16_instructions():
        return torch.float32, "it has no bfloat16 instructions that oneDNN uses"
    share = bf16_share()
    why = f"it has bfloat16 instructions, with which a product takes {share:.2f} of float32's time"
    return torch.bfloat16 if share < WORTH else torch.float32, why


@functools.cache
def bf16_share() -> float:
    """The time of a packed product in bf16 as a share of that in fp32, measured now, in 30 ms.

    Without AMX it may be above 1: 1.3 on an Intel Xeon that is kept from using it.
    """
    weights = [
        linear_torch.prepare(torch.ones(768, 768, dtype=dtype, device="cpu"), None, "linear")
        for dtype in (torch.bfloat16, torch.float32)
    ]
    inputs = [torch.ones(256, 768, dtype=weight.dtype, device="cpu") for weight in weights]
    times: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        for _ in range(7):
            for x, weight, spent in zip(inputs, weights, times, strict=True):
                start = time.perf_counter()
                linear_torch.linear(x, weight)
                spent.append(time.perf_counter() - start)
    narrow, wide = map(statistics.median, times)
    return narrow / wide


def select_ops(device: torch.device | str, dtype: torch.dtype, backend: Backend = "auto") -> Ops:
    """Choose the functions for a device and a dtype, and log why; see `choose_ops`."""
    ops, why = choose_ops(device, dtype, backend)
    logger.info("backend %s for %s in %s: %s", ops.name, device, dtype, why)
    return ops


def choose_ops(
    device: torch.device | str, dtype: torch.dtype, backend: Backend = "auto"
) -> tuple[Ops, str]:
    """The functions for a device and a dtype, and why it is these.

    Args:
        device: where the hidden states live.
        dtype: of the hidden states: fp32, fp16 or bf16 (fp64 for "reference").
        backend: "auto" takes the fastest that can run; any other name is taken or refused.

    Raises:
        ValueError: unknown backend or dtype.
        BackendError: the backend cannot run here.
    """
    device = torch.device(device)
    if str(device) == "cuda" and torch.cuda.is_available():
        # what is kept for a device is kept for this one, whichever is the current one later
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
        return INT8, "asked for"
    if backend == "fp8":
        if problem := why_not_fp8(device, dtype):
            raise BackendError(f"backend 'fp8' cannot run here: {problem}")
        return fp8_ops(device), "asked for"
    problem = why_not_triton(device, dtype)
    if backend in ("triton", "invariant"):
        if problem:
            raise BackendError(f"backend {backend!r} cannot run here: {problem}")
        ops = triton_ops(device) if backend == "triton" else invariant_ops(device)
        return ops, "asked for"
    if backend != "auto":
        return REFERENCE if backend == "reference" else TORCH, "asked for"
    if device.type == "cuda":
        arch = launch.architecture(device)
        if problem is None and launch.proven(arch):
            return triton_ops(device), f"its kernels are proven on {arch}"
        waits = f"the kernels of backend 'triton' have not been run on {arch} yet: ask for them"
        return TORCH, problem or waits
    packs = device.type == "cpu" and linear_torch.onednn_packs(dtype)
    return TORCH, "oneDNN packs its weights" if packs else "it runs wherever torch does"
