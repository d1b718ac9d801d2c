"""SwiGLU in int8: two int8 GEMMs, the gate in fp32, the result quantised to 8 bits again.

A factor common to a row does not change its 8-bit values, only its scale. So without biases the
token's scales are left out of up * gate, and multiplied into the scale of the result.
"""

from torch import Tensor

from nomicbert_kernels import swiglu as reference
from nomicbert_kernels import swiglu_torch
from nomicbert_kernels.linear_int8 import project, quantised, quantised_input, scaled, usable
from nomicbert_kernels.tensors import Activation, Weight


def swiglu(x: Tensor | Activation, weight: Weight) -> Tensor | Activation:
    """See `nomicbert_kernels.swiglu`; returns (T, I) in 8 bits, one scale per token."""
    if not usable(x, weight):
        return swiglu_torch.swiglu(x, weight)
    reference.check(x, weight)
    return apply(quantised_input(x), weight)


def apply(x: Activation, weight: Weight) -> Activation:
    """`swiglu` without checks."""

    def plain(up: Tensor, gate: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        data, scales = quantised(gated(up, gate, gate * -scale))
        return data, scales * scale.squeeze(1).square()

    def biased(up: Tensor, gate: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        assert weight.bias is not None
        bias_up, bias_gate = weight.bias.chunk(2)
        gate = scaled(gate, scale, bias_gate)
        return quantised(gated(scaled(up, scale, bias_up), gate, -gate))

    return Activation(*project(x, weight, plain if weight.bias is None else biased))


def gated(up: Tensor, gate: Tensor, minus: Tensor) -> Tensor:
    """Return up * gate / (1 + exp(minus)), and overwrite `up` and `minus`.

    Torch's silu rounds differently at the end of a thread's chunk; these ops do not.
    """
    return up.mul_(gate).div_(minus.exp_().add_(1.0))
