"""Why a backend cannot run on a device in a dtype, as text for an error message.

`backend` calls these functions before it chooses, and quotes the reason when it refuses.
"""

import importlib.util
import os

import torch

from nomicbert_kernels import launch, linear_int8

# Lowest compute capability the kernels are compiled for: sm_80 has bf16 and asynchronous copies.
LEAST_CAPABILITY = (8, 0)
# Lowest compute capability whose tensor cores support e4m3.
FP8_CAPABILITY = (8, 9)


def interprets() -> bool:
    """Whether Triton is set to interpret kernels in Python, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def why_not_triton(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why the Triton kernels cannot run here, or None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install triton"
    if device.type == "cpu" and interprets():
        if dtype == torch.bfloat16:
            return "triton's interpreter computes bfloat16 wrongly: use float32 or float16"
        return None
    if device.type != "cuda":
        return (
            f"it needs a CUDA device, not {device.type}; to interpret its kernels on a CPU (slow), "
            "set TRITON_INTERPRET=1 before starting Python"
        )
    capability = torch.cuda.get_device_capability(device)
    if not torch.version.hip and capability < LEAST_CAPABILITY:
        found, wanted = (".".join(map(str, c)) for c in (capability, LEAST_CAPABILITY))
        return f"compute capability {found} is below {wanted}"
    return None


def why_not_fp8(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why e4m3 GEMMs cannot run here, or None if they can."""
    if problem := why_not_triton(device, dtype):
        return problem
    if device.type != "cuda":
        return None
    if torch.version.hip:
        return "it uses NVIDIA's e4m3 format, which this GPU does not support"
    capability = torch.cuda.get_device_capability(device)
    if capability < FP8_CAPABILITY:
        found, wanted = (".".join(map(str, c)) for c in (capability, FP8_CAPABILITY))
        return f"compute capability {found} does not support e4m3: {wanted} or later is needed"
    arch = launch.architecture(device)
    if ("linear", 1) not in launch.table(arch):
        return f"the launch table for {arch} has no fp8 rows"
    return None


def why_not_int8(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why int8 GEMMs cannot run here, or None if they can."""
    if device.type != "cpu":
        return f"it runs on a CPU only, not on {device.type}"
    if dtype != torch.float32:
        return f"its hidden states are float32, not {dtype}: use dtype float32 or float16"
    return linear_int8.why_not()
