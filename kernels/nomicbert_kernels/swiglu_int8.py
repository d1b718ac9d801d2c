"""SwiGLU in int8: two int8 GEMMs, the gate in fp32, the result quantised to 8 bits again.

A factor common to a row does not change its 8-bit values, only its scale. So without biases the
token's scales are left out of up * gate, and multiplied into the scale of the result.
"""

from torch import Tensor

from nomicbert_kernels import swiglu as reference
from nomicbert_kernels import swiglu_torch
from nomicbert_kernels.linear_int8 import gemm, of_input, quantise, scaled, usable
from nomicbert_kernels.tensors import Activation, Weight


def swiglu(x: Tensor | Activation, weight: Weight) -> Tensor | Activation:
    """See `nomicbert_kernels.swiglu`; returns (T, I) in 8 bits, one scale per token."""
    if not usable(x, weight):
        return swiglu_torch.swiglu(x, weight)
    reference.check(x, weight)
    return of_input(lambda rows: apply(rows, weight), x)


def apply(x: Activation, weight: Weight) -> Activation:
    """`swiglu` of a few rows without checks."""
    assert x.scale is not None
    assert weight.packed is not None
    assert weight.scale is not None
    pieces = zip(weight.packed, weight.scale.chunk(2), strict=True)
    up, gate = (gemm(x.data, *piece) for piece in pieces)
    scale = x.scale.unsqueeze(1)
    if weight.bias is not None:
        bias_up, bias_gate = weight.bias.chunk(2)
        gate = scaled(gate, scale, bias_gate)
        return quantise(gated(scaled(up, scale, bias_up), gate, -gate))
    found = quantise(gated(up, gate, gate * -scale))
    assert found.scale is not None
    return Activation(found.data, found.scale * x.scale.square())


def gated(up: Tensor, gate: Tensor, minus: Tensor) -> Tensor:
    """Return up * gate / (1 + exp(minus)), and overwrite `up` and `minus`.

    Torch's silu rounds differently at the end of a thread's chunk; these ops do not.
    """
    return up.mul_(gate).div_(minus.exp_().add_(1.0))
