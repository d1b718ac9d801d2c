"""What keeps a backend from running on a device in a dtype: a sentence, or None.

Where in the flow: `backend` asks before it chooses, and puts the sentence into its refusal.
"""

import importlib.util
import os

import torch

from nomicbert_kernels import launch, linear_int8

# The least that the kernels are compiled for: sm_80 has bf16 and asynchronous copies.
LEAST_CAPABILITY = (8, 0)
# The first whose tensor cores take e4m3.
FP8_CAPABILITY = (8, 9)


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
