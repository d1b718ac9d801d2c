"""The first half of the plain MLP: gelu(x Wᵀ + b), gelu(z) = z / 2 * (1 + erf(z / sqrt 2)), exact.

Source: Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2.
"""

import torch
from torch import Tensor

from nomicbert_kernels import checks
from nomicbert_kernels.linear import gemm
from nomicbert_kernels.tensors import Activation, Weight, values


def check(x: Tensor | Activation, weight: Weight) -> Tensor:
    """Refuse arguments that do not fit; return `x` as a plain tensor."""
    checks.fits("x", x, weight)
    return values(x, weight.dtype)


def activate(z: Tensor) -> Tensor:
    """Exact GELU, in the dtype of `z`."""
    return 0.5 * z * (1.0 + torch.erf(z * 0.5**0.5))


def gelu(x: Tensor | Activation, weight: Weight) -> Tensor:
    """Apply a linear layer and the exact GELU.

    >>> import torch
    >>> from nomicbert_kernels import select_ops
    >>> ops = select_ops("cpu", torch.float32)
    >>> weight = ops.prepare(torch.eye(2), None, "linear")
    >>> ops.gelu(torch.tensor([[0.0, 1.0]]), weight)
    tensor([[0.0000, 0.8413]])

    Args:
        x: (T, H), fp32, fp16 or bf16, last dim contiguous; or an Activation of that shape.
        weight: source (I, H), bias (I,) or None.

    Returns: (T, I), dtype of the weight; GEMM and activation in fp32.
    Raises: ValueError: shape, dtype, device or stride mismatch.
    Source: Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2.
    """
    data = check(x, weight)
    return activate(gemm(data, weight)).to(weight.dtype)
