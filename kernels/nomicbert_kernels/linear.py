"""Linear layer with an optional residual: y = x Wᵀ + b + r. Used for the out and down projections.

Source: He et al. 2016, arXiv:1512.03385, for the residual; otherwise elementary.
"""

from torch import Tensor

from nomicbert_kernels import checks
from nomicbert_kernels.tensors import Activation, Weight, accumulator, values


def check(
    x: Tensor | Activation, weight: Weight, residual: Tensor | Activation | None
) -> tuple[Tensor, Tensor | None]:
    """Refuse arguments that do not fit; return `x` and `residual` as plain tensors."""
    checks.fits("x", x, weight)
    data = values(x, weight.dtype)
    added = None if residual is None else values(residual, data.dtype)
    checks.is_like("residual", added, (data.shape[0], weight.source.shape[0]), data)
    return data, added


def gemm(x: Tensor, weight: Weight) -> Tensor:
    """Compute x Wᵀ + b without rounding: (T, N) in the dtype of `accumulator`."""
    acc = accumulator(x)
    y = x.to(acc) @ weight.source.to(acc).T
    return y if weight.bias is None else y + weight.bias.to(acc)


def linear(
    x: Tensor | Activation, weight: Weight, residual: Tensor | Activation | None = None
) -> Tensor:
    """Apply a linear layer and add the residual.

    >>> import torch
    >>> from nomicbert_kernels import select_ops
    >>> ops = select_ops("cpu", torch.float32)
    >>> weight = ops.prepare(torch.eye(2), torch.tensor([0.0, 1.0]), "linear")
    >>> ops.linear(torch.tensor([[3.0, 4.0]]), weight, residual=torch.tensor([[10.0, 20.0]]))
    tensor([[13., 25.]])

    Args:
        x: (T, K), fp32, fp16 or bf16, last dim contiguous; or an Activation of that shape.
        weight: source (N, K), bias (N,) or None.
        residual: (T, N) added before the result is rounded, or None.

    Returns: (T, N), dtype of the weight; sums in fp32.
    Raises: ValueError: shape, dtype, device or stride mismatch.
    """
    data, added = check(x, weight, residual)
    y = gemm(data, weight)
    if added is not None:
        y = y + added.to(y.dtype)
    return y.to(weight.dtype)
