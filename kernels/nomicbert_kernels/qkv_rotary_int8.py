"""The fused projection in int8, then the rotation of queries and keys in fp32."""

from torch import Tensor

from nomicbert_kernels import qkv_rotary as reference
from nomicbert_kernels import qkv_rotary_torch
from nomicbert_kernels.linear_int8 import linear, usable
from nomicbert_kernels.tensors import Activation, Rope, Weight


def qkv_rotary(x: Tensor | Activation, weight: Weight, rope: Rope | None, num_heads: int) -> Tensor:
    """See `nomicbert_kernels.qkv_rotary`."""
    if not usable(x, weight):
        return qkv_rotary_torch.qkv_rotary(x, weight, rope, num_heads)
    data = reference.check(x, weight, rope, num_heads)
    qkv = linear(x, weight).view(reference.heads_shape(data, weight, num_heads))
    if rope is not None:
        qkv_rotary_torch.rotate_in_place(qkv, rope)
    return qkv
