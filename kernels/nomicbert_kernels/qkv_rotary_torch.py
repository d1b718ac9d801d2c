"""The fused projection as one product, then a rotation of queries and keys in place."""

import torch
from torch import Tensor

from nomicbert_kernels import qkv_rotary as reference
from nomicbert_kernels.linear_torch import linear
from nomicbert_kernels.tensors import Activation, Rope, Weight


def qkv_rotary(x: Tensor | Activation, weight: Weight, rope: Rope | None, num_heads: int) -> Tensor:
    """See `nomicbert_kernels.qkv_rotary`."""
    data = reference.check(x, weight, rope, num_heads)
    qkv = linear(data, weight).view(reference.heads_shape(data, weight, num_heads))
    if rope is None:
        return qkv
    rotated = reference.rotate(qkv[:, :2].to(rope.cos.dtype), rope).to(qkv.dtype)
    if qkv.requires_grad:
        return torch.cat([rotated, qkv[:, 2:]], dim=1)
    qkv[:, :2] = rotated
    return qkv
