"""One layer in int8: the functions behind the ops of backend "int8" in a row, without checks.

It has the bits of these ops. The hidden states are quantised in the blocks in which LayerNorm
computes them, once for all GEMMs that read them.
"""

from torch import Tensor

from nomicbert_kernels import gelu_int8, linear_int8, swiglu_int8
from nomicbert_kernels.attention_torch import attend
from nomicbert_kernels.layer_torch import normed
from nomicbert_kernels.linear_int8 import project, quantise, quantised, scaled
from nomicbert_kernels.qkv_rotary_torch import rotate_in_place
from nomicbert_kernels.tensors import Activation, LayerWeights, Norm, Plan, Rope, Weight, values


def layer(
    x: Tensor | Activation,
    weights: LayerWeights,
    cu_seqlens: Tensor,
    plan: Plan,
    rope: Rope | None,
    rows: Tensor | None = None,
) -> Activation:
    """See `nomicbert_kernels.layer`; returns the values in 8 bits and in fp32."""
    narrow, wide = both_forms(x)
    qkv = linear_int8.apply(narrow, weights.qkv).view(wide.shape[0], 3, weights.num_heads, -1)
    if rope is not None:
        rotate_in_place(qkv, rope)
    o = quantise(attend(qkv, plan, weights.scale, rows))
    residual = wide if rows is None else wide[rows]
    narrow, wide = both_forms(add_and_norm(o, weights.out, residual, weights.attention_norm))
    inner = (swiglu_int8 if weights.gated else gelu_int8).apply(narrow, weights.up)
    return add_and_norm(inner, weights.down, wide, weights.mlp_norm)


def both_forms(x: Tensor | Activation) -> tuple[Activation, Tensor]:
    """Hidden states (T, H) in 8 bits and in fp32."""
    return (quantise(x), x) if isinstance(x, Tensor) else (x, values(x))


def add_and_norm(x: Activation, weight: Weight, residual: Tensor, norm: Norm) -> Activation:
    """LayerNorm of a linear layer and a residual, (T, H), in fp32 and quantised."""

    def finish(y: Tensor, scale: Tensor, added: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        wide = normed(scaled(y, scale, weight.bias, added), norm)
        return *quantised(wide), wide

    return Activation(*project(x, weight, finish, residual))
