"""One layer in int8: the functions behind the ops of backend "int8" in a row, without checks.

It has the bits of these ops. A few hundred rows at a time go through all that follows attention,
so that intermediate results stay in a cache. The result is in 8 bits too, for the next GEMM.
"""

from torch import Tensor

from nomicbert_kernels import gelu_int8, linear_int8, swiglu_int8
from nomicbert_kernels.attention_int8 import attend
from nomicbert_kernels.layer_torch import normed
from nomicbert_kernels.linear_int8 import by_rows, quantise
from nomicbert_kernels.qkv_rotary_torch import rotate_in_place
from nomicbert_kernels.tensors import Activation, LayerWeights, Plan, Rope, values


def layer(
    x: Tensor | Activation,
    weights: LayerWeights,
    cu_seqlens: Tensor,
    plan: Plan,
    rope: Rope | None,
    rows: Tensor | None = None,
) -> Activation:
    """See `nomicbert_kernels.layer`; returns the values in 8 bits and in fp32."""
    wide = values(x)
    narrow = quantise(x) if isinstance(x, Tensor) else x

    def projected(data: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        return (linear_int8.apply(Activation(data, scale), weights.qkv),)

    def after_attention(o: Tensor, residual: Tensor) -> tuple[Tensor, ...]:
        z = linear_int8.apply(quantise(o), weights.out).add_(residual)
        h = normed(z, weights.attention_norm)
        inner = (swiglu_int8 if weights.gated else gelu_int8).apply(quantise(h), weights.up)
        z = linear_int8.apply(inner, weights.down).add_(h)
        y = normed(z, weights.mlp_norm)
        found = quantise(y)
        assert found.scale is not None
        return found.data, found.scale, y

    assert narrow.scale is not None
    (qkv,) = by_rows(projected, narrow.data, narrow.scale)
    qkv = qkv.view(wide.shape[0], 3, weights.num_heads, -1)
    if rope is not None:
        rotate_in_place(qkv, rope)
    o = attend(qkv, plan, weights.scale, rows)
    return Activation(*by_rows(after_attention, o, wide if rows is None else wide[rows]))
