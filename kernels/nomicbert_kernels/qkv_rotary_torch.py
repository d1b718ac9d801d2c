"""The fused projection as one GEMM, then an in-place rotation of queries and keys."""

import torch
from torch import Tensor

from nomicbert_kernels import qkv_rotary as reference
from nomicbert_kernels.linear_torch import linear
from nomicbert_kernels.tensors import Activation, Rope, Weight

# Tokens rotated at a time on a CPU, so that their queries and keys stay in its cache.
ROWS = 128


def rotate_in_place(qkv: Tensor, rope: Rope) -> None:
    """Rotate the queries and keys of (T, 3, h, d) in the dtype of the tables.

    A pair (a, b) becomes (a, b) * cos + (b * -sin, a * sin), in few passes over memory.
    """
    qk = qkv.narrow(1, 0, 2)
    turned = qk if rope.rotary_dim == qk.shape[3] else qk[..., : rope.rotary_dim]
    parts = (turned, *rope.of_tokens)
    if qkv.device.type != "cpu" or qkv.shape[0] <= ROWS:
        turn(rope, *parts)
        return
    for some in zip(*(torch.split(part, ROWS) for part in parts), strict=True):
        turn(rope, *some)


def turn(rope: Rope, qk: Tensor, cos: Tensor, sin: Tensor, minus_sin: Tensor) -> None:
    """Rotate (T, 2, h, rotary_dim) in place; see `Rope.of_tokens` for the tables."""
    a, b = reference.pairs(qk, rope)
    to_a, to_b = b * minus_sin, a * sin
    same = qk.dtype == cos.dtype
    wide = qk.mul_(cos) if same else qk * cos
    a, b = reference.pairs(wide, rope)
    a.add_(to_a)
    b.add_(to_b)
    if not same:
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
