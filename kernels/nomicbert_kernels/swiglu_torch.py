"""SwiGLU in two packed GEMMs: the gate with its SiLU, then up times the gate."""

import torch.nn.functional as F
from torch import Tensor

from nomicbert_kernels import swiglu as reference
from nomicbert_kernels.linear_torch import gemm, gemm_with, usable
from nomicbert_kernels.tensors import Activation, Weight, plain_linear


def swiglu(x: Tensor | Activation, weight: Weight) -> Tensor:
    """See `nomicbert_kernels.swiglu`."""
    data = reference.check(x, weight)
    if not usable(data, weight):
        up, gate = plain_linear(data, weight.source.to(weight.dtype), weight.bias).chunk(2, dim=1)
        return up * F.silu(gate)
    return apply(data, weight)


def apply(x: Tensor, weight: Weight) -> Tensor:
    """`swiglu` of a packed weight without checks."""
    assert weight.packed is not None
    up, gate = weight.packed
    bias_up, bias_gate = (None, None) if weight.bias is None else weight.bias.chunk(2)
    return gemm_with(x, up, bias_up, gemm(x, gate, bias_gate, "swish"), "mul")
