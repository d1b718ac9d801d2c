"""GELU in one packed product, the exact activation applied on the way out."""

import torch.nn.functional as F
from torch import Tensor

from nomicbert_kernels import gelu as reference
from nomicbert_kernels.linear_torch import product, use_packed
from nomicbert_kernels.tensors import Activation, Weight


def gelu(x: Tensor | Activation, weight: Weight) -> Tensor:
    """See `nomicbert_kernels.gelu`."""
    data = reference.check(x, weight)
    if not use_packed(data, weight):
        return F.gelu(F.linear(data, weight.source, weight.bias))
    (packed,) = weight.packed  # type: ignore[misc]
    return product(data, packed, weight.bias, "gelu")
