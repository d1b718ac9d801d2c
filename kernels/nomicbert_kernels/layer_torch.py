"""One layer on a CPU: the functions behind the ops of backend "torch" in a row, without checks.

It has the bits of these ops.
"""

import torch
from torch import Tensor

from nomicbert_kernels import swiglu_torch
from nomicbert_kernels.attention_torch import attend
from nomicbert_kernels.linear_torch import gemm, gemm_with
from nomicbert_kernels.qkv_rotary_torch import rotate_in_place
from nomicbert_kernels.tensors import LayerWeights, Norm, Packed, Plan, Rope, Weight


def layer(
    x: Tensor,
    weights: LayerWeights,
    cu_seqlens: Tensor,
    plan: Plan,
    rope: Rope | None,
    rows: Tensor | None = None,
) -> Tensor:
    """See `nomicbert_kernels.layer`."""
    qkv = gemm(x, *single(weights.qkv)).view(x.shape[0], 3, weights.num_heads, -1)
    if rope is not None:
        rotate_in_place(qkv, rope)
    o = attend(qkv, plan, weights.scale, rows)
    residual = x if rows is None else x[rows]
    h = normed(gemm_with(o, *single(weights.out), residual, "add"), weights.attention_norm)
    if weights.gated:
        inner = swiglu_torch.apply(h, weights.up)
    else:
        inner = gemm(h, *single(weights.up), "gelu")
    return normed(gemm_with(inner, *single(weights.down), h, "add"), weights.mlp_norm)


def single(weight: Weight) -> tuple[Packed, Tensor | None]:
    """The packed weight, in one piece, and its bias."""
    assert weight.packed is not None
    return weight.packed[0], weight.bias


def normed(x: Tensor, norm: Norm) -> Tensor:
    """LayerNorm of (T, H)."""
    return torch.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps)
