"""What to compute in: the dtype of the hidden states, and the one that a device is fastest in."""

import functools
import statistics
import time
from collections.abc import Callable, Mapping

import torch

from nomicbert_kernels import linear_torch

# What torch.cpu.get_capabilities() calls products in bf16: on x86 two of them, on ARM one.
BF16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16")
# Of fp32's time a product in bf16 takes less where bf16 is called the faster one.
WORTH = 0.9


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
