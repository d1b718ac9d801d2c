"""LayerNorm through torch's own kernel, which keeps its statistics in fp32 and works row by row."""

import torch.nn.functional as F
from torch import Tensor

from nomicbert_kernels import layer_norm as reference
from nomicbert_kernels.tensors import Activation


def layer_norm(
    x: Tensor | Activation,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | Activation | None = None,
) -> Tensor:
    """See `nomicbert_kernels.layer_norm`."""
    data, added = reference.check(x, weight, bias, residual)
    if added is not None:
        data = data + added
    return F.layer_norm(data, data.shape[1:], weight, bias, eps)
