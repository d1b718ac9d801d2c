"""LayerNorm of x + residual: y = (z - mean z) / sqrt(var z + eps) * weight + bias, row by row.

Source: Ba et al. 2016, arXiv:1607.06450, eq. 3-4 (biased variance).
"""

import torch
from torch import Tensor

from nomicbert_kernels import checks
from nomicbert_kernels.tensors import Activation, accumulator, values


def check(
    x: Tensor | Activation,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | Activation | None,
) -> tuple[Tensor, Tensor | None]:
    """Refuse arguments that do not fit; return `x` and `residual` as plain tensors."""
    checks.is_matrix("x", x)
    data = values(x, torch.float32 if weight is None else weight.dtype)
    added = None if residual is None else values(residual, data.dtype)
    checks.is_like("weight", weight, data.shape[1:], data)
    checks.is_like("bias", bias, data.shape[1:], data)
    checks.is_like("residual", added, data.shape, data)
    return data, added


def normalise(z: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """LayerNorm over the last dimension, in the dtype of `z`; any leading shape."""
    centred = z - z.mean(-1, keepdim=True)
    y = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    if weight is not None:
        y = y * weight.to(z.dtype)
    return y if bias is None else y + bias.to(z.dtype)


def layer_norm(
    x: Tensor | Activation,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | Activation | None = None,
) -> Tensor | Activation:
    """Normalise each row after adding the residual.

    >>> import torch
    >>> from nomicbert_kernels import select_ops
    >>> ops = select_ops("cpu", torch.float32)
    >>> x, residual = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 1.0]])
    >>> ops.layer_norm(x, torch.ones(2), torch.zeros(2), 1e-12, residual)
    tensor([[-1.,  1.]])

    Args:
        x: (T, H), fp32, fp16 or bf16, last dim contiguous; or an Activation of that shape.
        weight: (H,) or None for ones.
        bias: (H,) or None for zeros.
        eps: added to the variance.
        residual: (T, H) or None.

    Returns: (T, H), dtype of x; statistics in fp32. A backend may return an Activation.
    Raises: ValueError: shape, dtype or device mismatch.
    Source: Ba et al. 2016, arXiv:1607.06450, eq. 3-4.
    """
    data, added = check(x, weight, bias, residual)
    z = data.to(accumulator(data))
    if added is not None:
        z = z + added.to(z.dtype)
    return normalise(z, weight, bias, eps).to(data.dtype)
