"""The fused projection as one GEMM, then an in-place rotation of queries and keys."""

import torch
from torch import Tensor

from nomicbert_kernels import qkv_rotary as reference
from nomicbert_kernels.linear_torch import linear
from nomicbert_kernels.tensors import Activation, Rope, Weight

# Tokens rotated at a time on a CPU, so that their queries and keys stay in its cache.
ROWS = 128


def rotate_in_place(qkv: Tensor, rope: Rope) -> None:
    """Rotate the queries and keys of (T, 3, h, d) in the dtype of the tables."""
    parts = (qkv[:, :2], *(table[:, None, None] for table in rope.of_tokens))
    count = ROWS if qkv.device.type == "cpu" else max(1, qkv.shape[0])
    for qk, cos, sin in zip(*(torch.split(part, count) for part in parts), strict=True):
        wide = qk.to(cos.dtype)
        a, b = reference.pairs(wide, rope)
        turned = a * cos - b * sin
        b.mul_(cos).add_(a * sin)
        a.copy_(turned)
        if wide is not qk:
            qk.copy_(wide)


def qkv_rotary(x: Tensor | Activation, weight: Weight, rope: Rope | None, num_heads: int) -> Tensor:
    """See `nomicbert_kernels.qkv_rotary`."""
    data = reference.check(x, weight, rope, num_heads)
    qkv = linear(data, weight).view(reference.heads_shape(data, weight, num_heads))
    if rope is None:
        return qkv
    if qkv.requires_grad or torch.compiler.is_compiling():
        turned = reference.rotate(qkv[:, :2].to(rope.cos.dtype), rope).to(qkv.dtype)
        return torch.cat([turned, qkv[:, 2:]], dim=1)
    rotate_in_place(qkv, rope)
    return qkv
