"""The dtype of the hidden states for a storage dtype, and the fastest dtype of a device."""

import functools
import statistics
import time
from collections.abc import Callable, Mapping

import torch

from nomicbert_kernels import linear_torch

# Names of bf16 matmul instructions in torch.cpu.get_capabilities(): two on x86, one on ARM.
BF16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16")
# bf16 counts as faster if a matmul takes less than this share of its time in fp32.
WORTH = 0.9


def compute_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the hidden states for parameters stored in `dtype`.

    On a CPU this is fp32 for fp16, and for bf16 without `has_bf16_instructions`: matmuls in these
    take about ten and four times as long as in fp32. The parameters stay in 16 bits in memory and
    are cast for the arithmetic.
    """
    if device.type != "cpu":
        return dtype
    slow = dtype == torch.float16 or (dtype == torch.bfloat16 and not has_bf16_instructions())
    return torch.float32 if slow else dtype


@functools.cache
def multiplies_bf16(look: Callable[[], Mapping[str, object]]) -> bool:
    """Whether the capabilities that `look` returns include bf16 instructions; cached per `look`."""
    capabilities = look()
    return any(capabilities.get(name) for name in BF16_INSTRUCTIONS)


def has_bf16_instructions() -> bool:
    """Whether this CPU has bf16 matmul instructions, and torch and oneDNN can use them.

    ATEN_CPU_CAPABILITY may exclude AVX-512: torch's attention then refuses bf16 on AMX.
    """
    found = multiplies_bf16(torch.cpu.get_capabilities)
    kept = torch.cpu.get_capabilities().get("avx512_f") and not torch_uses_avx512()
    return found and not kept and linear_torch.onednn_packs(torch.bfloat16)


@functools.cache
def torch_uses_avx512() -> bool:
    """Whether torch's own kernels use AVX-512."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def fastest_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    """Return the fastest dtype of a device, and the reason."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if major >= 8:
            return torch.bfloat16, f"compute capability {major}.{minor} supports bfloat16"
        return torch.float16, f"compute capability {major}.{minor} has no bfloat16"
    if device.type != "cpu":
        return torch.float32, f"16-bit dtypes have not been measured on {device.type}"
    if not has_bf16_instructions():
        return torch.float32, "it has no bfloat16 instructions that oneDNN uses"
    share = bf16_share()
    why = f"it has bfloat16 instructions: a matmul takes {share:.2f} of its float32 time"
    return torch.bfloat16 if share < WORTH else torch.float32, why


@functools.cache
def bf16_share() -> float:
    """Measure the time of a packed bf16 matmul as a share of its time in fp32; takes 30 ms.

    Without AMX it can exceed 1: it is 1.3 on an Intel Xeon with AMX disabled.
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
