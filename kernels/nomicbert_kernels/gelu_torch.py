"""GELU in one packed GEMM, which applies the exact activation to its result."""

import torch.nn.functional as F
from torch import Tensor

from nomicbert_kernels import gelu as reference
from nomicbert_kernels.linear_torch import gemm, usable
from nomicbert_kernels.tensors import Activation, Weight, plain_linear


def gelu(x: Tensor | Activation, weight: Weight) -> Tensor:
    """See `nomicbert_kernels.gelu`."""
    data = reference.check(x, weight)
    packed = usable(data, weight)
    if not packed:
        return F.gelu(plain_linear(data, weight.source.to(weight.dtype), weight.bias))
    return gemm(data, packed[0], weight.bias, "gelu")
