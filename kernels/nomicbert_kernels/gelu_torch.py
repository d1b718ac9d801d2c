"""GELU in one packed product, the exact activation applied on the way out."""

import torch.nn.functional as F
from torch import Tensor

from nomicbert_kernels import gelu as reference
from nomicbert_kernels.linear_torch import product, usable
from nomicbert_kernels.tensors import Activation, Weight, plain_linear


def gelu(x: Tensor | Activation, weight: Weight) -> Tensor:
    """See `nomicbert_kernels.gelu`."""
    data = reference.check(x, weight)
    packed = usable(data, weight)
    if not packed:
        return F.gelu(plain_linear(data, weight.source.to(weight.dtype), weight.bias))
    return product(data, packed[0], weight.bias, "gelu")
