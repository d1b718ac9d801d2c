"""GELU in int8: an int8 GEMM, the activation in fp32, the result quantised to int8 again."""

import torch
import torch.nn.functional as F
from torch import Tensor

from nomicbert_kernels import gelu as reference
from nomicbert_kernels import gelu_torch
from nomicbert_kernels.linear_int8 import chunks, quantise, scaled, usable
from nomicbert_kernels.tensors import Activation, Weight


def gelu(x: Tensor | Activation, weight: Weight) -> Tensor | Activation:
    """See `nomicbert_kernels.gelu`; returns (T, I) int8, one scale per token."""
    if not usable(x, weight):
        return gelu_torch.gelu(x, weight)
    data = reference.check(x, weight)
    assert weight.packed is not None
    assert weight.scale is not None
    out = torch.empty(data.shape[0], weight.source.shape[0], dtype=torch.int8, device=data.device)
    scale = torch.empty(data.shape[0], dtype=torch.float32, device=data.device)
    for rows, some in chunks(x):
        y = F.gelu(scaled(some, weight.packed[0], weight.scale, weight.bias))
        quantise(y, Activation(out[rows], scale[rows]))
    return Activation(out, scale)
