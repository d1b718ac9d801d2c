"""Activation functions of a plain MLP that no fused op computes: elementwise, on (T, I).

A text's bits must not depend on the texts around it, so nothing here may treat the last elements of
a thread's range differently. On a CPU torch's sigmoid, silu and gelu(approximate="tanh") do; tanh,
relu, sums and products do not.

    gelu_pytorch_tanh  z / 2 * (1 + tanh(sqrt(2 / pi) * (z + 0.044715 z^3)))
    relu               max(z, 0)
    silu               z / (1 + exp(-z))
    quick_gelu         z / (1 + exp(-1.702 z))

Source: Hendrycks and Gimpel 2016, arXiv:1606.08415; the names are those of transformers.
"""

import math
from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor

from nomicbert_kernels.tensors import accumulator


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by tanh, in fp32 or fp64."""
    scale = math.sqrt(2 / math.pi)
    z = (x * x).mul_(0.044715 * scale).add_(scale) * x
    return ((z.tanh_() + 1) * x).mul_(0.5)


def gated_by_sigmoid(x: Tensor, slope: float) -> Tensor:
    """SiLU, and QuickGELU with another slope: x * sigmoid(slope * x), in fp32 or fp64."""
    return (((x * (slope / 2)).tanh_() + 1) * x).mul_(0.5)


FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": F.relu,
    "silu": lambda x: gated_by_sigmoid(x, 1.0),
    "quick_gelu": lambda x: gated_by_sigmoid(x, 1.702),
}


def activate(x: Tensor, name: str) -> Tensor:
    """Apply the function of this name to x, in its dtype; 16-bit values are computed in fp32."""
    return FUNCTIONS[name](x.to(accumulator(x))).to(x.dtype)
