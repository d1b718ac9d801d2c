"""Limits of the machine, measured in the same run: rates of a large copy and a large matmul.

A datasheet's figures are not those of this machine. The roofline of a call is the longer of two
times: its bytes at the rate of the copy, and its operations at the rate of the matmul.

Source: Williams et al. 2009, doi:10.1145/1498765.1498785.
"""

import functools
from dataclasses import dataclass

import torch

from bench.timing import interleave, on_device, on_host


@dataclass(frozen=True)
class Ceilings:
    """Attributes: bytes per second, and operations per second."""

    bytes: float
    flops: float

    def seconds(self, flops: float, moved: float) -> float:
        """Lower bound of the time of a call."""
        return max(flops / self.flops, moved / self.bytes)

    def limit(self, flops: float, moved: float) -> str:
        """The limiting resource of a call: "compute" or "memory"."""
        return "compute" if flops / self.flops > moved / self.bytes else "memory"


@functools.cache
def ceilings(device: torch.device, dtype: torch.dtype, quick: bool = False) -> Ceilings:
    """Measure both.

    Args:
        device: the device to measure.
        dtype: of the matmul, which accumulates in fp32.
        quick: small sizes, whose figures mean little.
    """
    gpu = device.type == "cuda"
    copied = 2**30 if gpu else 2**27
    width = 8192 if gpu else 1024
    if quick:
        copied, width = copied // 32, width // 4
    source = torch.zeros(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    # random values, because a GPU clocks higher on zeros
    generator = torch.Generator(device).manual_seed(0)
    a, b = (
        torch.randn(width, width, device=device, generator=generator).to(dtype) for _ in range(2)
    )
    out = torch.empty_like(a)
    times = interleave(
        {
            "copy": [lambda: target.copy_(source)],
            "product": [lambda: torch.matmul(a, b, out=out)],
        },
        on_device if gpu else on_host,
        rounds=3 if quick else 10,
        seconds=0.002 if quick else 0.05,
    )
    return Ceilings(2 * copied / times["copy"].median, 2 * width**3 / times["product"].median)
