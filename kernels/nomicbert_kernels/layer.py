"""One post-norm layer: h = LN(x + out(attention(qkv(x)))), y = LN(h + down(mlp(h))).

The ops of a layer as a single function, for inference: nothing is checked or looked up in between,
and a backend may pass intermediate results on in a form of its own. A backend without such a
function runs the ops one by one, and so does any layer with other parts.
Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.1.
"""

from torch import Tensor

from nomicbert_kernels.attention import attention
from nomicbert_kernels.gelu import gelu
from nomicbert_kernels.layer_norm import layer_norm
from nomicbert_kernels.linear import linear
from nomicbert_kernels.qkv_rotary import qkv_rotary
from nomicbert_kernels.swiglu import swiglu
from nomicbert_kernels.tensors import Activation, LayerWeights, Plan, Rope, values


def layer(
    x: Tensor | Activation,
    weights: LayerWeights,
    cu_seqlens: Tensor,
    plan: Plan,
    rope: Rope | None,
    rows: Tensor | None = None,
) -> Tensor | Activation:
    """Run a layer without gradients.

    Args:
        x: (T, H), contiguous, dtype of the weights; or an Activation that this backend returned.
        weights: all prepared by this backend.
        cu_seqlens: (B + 1,) int32, as for `attention`.
        plan: result of `Ops.plan` for the same lengths.
        rope: rotary angles of the batch, or None for learned positions.
        rows: (B,) int, the one token of each text whose output is wanted, or None for all.

    Returns: (T, H), or (B, H) with `rows`; dtype of the weights. A backend may return an Activation
        whose `wide` holds it. Backends other than this one check no arguments.
    """
    data = values(x, weights.qkv.dtype)
    qkv = qkv_rotary(data, weights.qkv, rope, weights.num_heads)
    o = attention(qkv, cu_seqlens, plan, weights.scale, rows=rows)
    z = linear(o, weights.out, data if rows is None else data[rows])
    h = values(layer_norm(z, *weights.attention_norm))
    inner = swiglu(h, weights.up) if weights.gated else gelu(h, weights.up)
    return layer_norm(linear(inner, weights.down, h), *weights.mlp_norm)
