"""SwiGLU in int8: two int8 GEMMs, the gate in fp32, the result quantised to int8 again.

A factor common to a row does not change its int8 values, only its scale. So without biases the
token's scales are left out of up * gate, and multiplied into the scale of the result.
"""

import torch
from torch import Tensor

from nomicbert_kernels import swiglu as reference
from nomicbert_kernels import swiglu_torch
from nomicbert_kernels.linear_int8 import chunks, gemm, quantise, scaled, usable
from nomicbert_kernels.tensors import Activation, Weight


def swiglu(x: Tensor | Activation, weight: Weight) -> Tensor | Activation:
    """See `nomicbert_kernels.swiglu`; returns (T, I) int8, one scale per token."""
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
            y, z = gemm(some, up, scale_up), gemm(some, gate, scale_gate)
            e = z * some.scale.neg()[:, None]
        else:
            y = scaled(some, up, scale_up, bias_up)
            z = scaled(some, gate, scale_gate, bias_gate)
            e = z.neg()
        # torch's silu rounds differently at the end of a thread's chunk; these ops do not
        y.mul_(z).div_(e.exp_().add_(1.0))
        quantise(y, Activation(out[rows], scale[rows]))
        if bias_up is None:
            scale[rows] *= some.scale.square()
    return Activation(out, scale)
