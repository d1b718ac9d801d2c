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
    parts = (qkv[:, :2, :, : rope.rotary_dim], *rope.of_tokens)
    if qkv.device.type != "cpu" or qkv.shape[0] <= ROWS:
        turn(rope, *parts)
        return
    for some in zip(*(torch.split(part, ROWS) for part in parts), strict=True):
        turn(rope, *some)


def turn(rope: Rope, qk: Tensor, cos: Tensor, sin: Tensor, minus_sin: Tensor) -> None:
    """Rotate (T, 2, h, rotary_dim) in place; see `Rope.of_tokens` for the tables."""
    a, b = reference.pairs(qk, rope)
    crossed = (b * minus_sin, a * sin)
    added = torch.stack(crossed, -1).flatten(-2) if rope.interleaved else torch.cat(crossed, -1)
    if qk.dtype == cos.dtype:
        qk.mul_(cos).add_(added)
    else:
        qk.copy_((qk * cos).add_(added))


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
