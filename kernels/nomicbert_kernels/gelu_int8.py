"""GELU in int8: an int8 GEMM, the activation in fp32, the result quantised to 8 bits again."""

import torch.nn.functional as F
from torch import Tensor

from nomicbert_kernels import gelu as reference
from nomicbert_kernels import gelu_torch, linear_int8
from nomicbert_kernels.linear_int8 import of_input, quantise, usable
from nomicbert_kernels.tensors import Activation, Weight


def gelu(x: Tensor | Activation, weight: Weight) -> Tensor | Activation:
    """See `nomicbert_kernels.gelu`; returns (T, I) in 8 bits, one scale per token."""
    if not usable(x, weight):
        return gelu_torch.gelu(x, weight)
    reference.check(x, weight)
    return of_input(lambda rows: apply(rows, weight), x)


def apply(x: Activation, weight: Weight) -> Activation:
    """`gelu` of a few rows without checks."""
    return quantise(F.gelu(linear_int8.apply(x, weight)))
