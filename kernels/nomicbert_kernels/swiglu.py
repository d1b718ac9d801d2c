"""The gated half of the SwiGLU MLP: up(x) * silu(gate(x)), silu(z) = z / (1 + exp(-z)).

Source: Shazeer 2020, arXiv:2002.05202, eq. 6.
"""

import torch
from torch import Tensor

from nomicbert_kernels import checks
from nomicbert_kernels.linear import gemm
from nomicbert_kernels.tensors import Activation, Weight, values


def check(x: Tensor | Activation, weight: Weight) -> Tensor:
    """Refuse arguments that do not fit; return `x` as a plain tensor."""
    checks.fits("x", x, weight)
    if weight.source.shape[0] % 2:
        raise ValueError(
            f"the gated weight stacks up and gate, so its rows must be even, "
            f"not {weight.source.shape[0]}"
        )
    return values(x, weight.dtype)


def swiglu(x: Tensor | Activation, weight: Weight) -> Tensor:
    """Apply the up and gate projections, and combine them.

    >>> import torch
    >>> from nomicbert_kernels import select_ops
    >>> ops = select_ops("cpu", torch.float32)
    >>> up_and_gate = torch.tensor([[2.0], [1.0]])
    >>> ops.swiglu(torch.ones(1, 1), ops.prepare(up_and_gate, None, "gated"))
    tensor([[1.4621]])

    Args:
        x: (T, H), fp32, fp16 or bf16, last dim contiguous; or an Activation of that shape.
        weight: source (2 I, H): the up rows, then the gate rows; bias (2 I,) or None.

    Returns: (T, I), dtype of the weight; GEMMs and gate in fp32.
    Raises: ValueError: shape, dtype, device or stride mismatch.
    Source: Shazeer 2020, arXiv:2002.05202, eq. 6.
    """
    data = check(x, weight)
    up, gate = gemm(data, weight).chunk(2, dim=1)
    return (up * gate * torch.sigmoid(gate)).to(weight.dtype)
