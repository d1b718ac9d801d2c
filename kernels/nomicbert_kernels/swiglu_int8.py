"""SwiGLU in int8: two products of bytes, the gate in fp32, the result rounded to bytes again.

A factor that all of a row share does not change what the row is rounded to. So without biases
up * gate is not multiplied by its token's scales; the result's scale is.
"""

import torch
from torch import Tensor

from nomicbert_kernels import swiglu as reference
from nomicbert_kernels import swiglu_torch
from nomicbert_kernels.linear_int8 import chunks, product, quantise, scaled, usable
from nomicbert_kernels.tensors import Activation, Weight


def swiglu(x: Tensor | Activation, weight: Weight) -> Tensor | Activation:
    """See `nomicbert_kernels.swiglu`; returns (T, I) int8 with a scale for each token."""
    if not usable(x, weight):
        return swiglu_torch.swiglu(x, weight)
    data = reference.check(x, weight)
    assert weight.packed is not None
    assert weight.scale is not None
    up, gate = weight.packed
    scale_up, scale_gate = weight.scale.chunk(2)
    bias_up, bias_gate = (None, None) if weight.bias is None else weight.bias.chunk(2)
    inner = weight.source.shape[0] // 2
    out = torch.empty(data.shape[0], inner, dtype=torch.int8, device=data.device)
    scale = torch.empty(data.shape[0], dtype=torch.float32, device=data.device)
    for rows, some in chunks(x):
        assert some.scale is not None
        if bias_up is None:
            y, z = product(some, up, scale_up), product(some, gate, scale_gate)
            e = z * some.scale.neg()[:, None]
        else:
            y = scaled(some, up, scale_up, bias_up)
            z = scaled(some, gate, scale_gate, bias_gate)
            e = z.neg()
        # torch's silu gives an element other bits at the end of a thread's share; these do not
        y.mul_(z).div_(e.exp_().add_(1.0))
        quantise(y, Activation(out[rows], scale[rows]))
        if bias_up is None:
            scale[rows] *= some.scale.square()
    return Activation(out, scale)
