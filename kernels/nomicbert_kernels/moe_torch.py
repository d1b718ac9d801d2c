"""Mixture of experts that computes each token with its chosen experts only."""

import torch
import torch.nn.functional as F
from torch import Tensor

from nomicbert_kernels import moe as reference
from nomicbert_kernels.linear_torch import gemm, usable
from nomicbert_kernels.tensors import Activation, Weight, plain_linear


def route(x: Tensor, router: Weight, top_k: int) -> tuple[Tensor, Tensor]:
    """Probabilities (T, k) fp32 and indices (T, k) of the chosen experts."""
    if packed := usable(x, router):
        logits = gemm(x.float(), packed[0], None)
    else:
        logits = plain_linear(x.float(), router.source.float())
    probabilities, chosen = logits.softmax(dim=-1).topk(top_k, dim=-1)
    return probabilities, chosen


def expert_mlp(x: Tensor, up: Weight, down: Weight, expert: int) -> Tensor:
    """One expert's MLP on the (n, H) rows sent to it."""
    packed_up, packed_down = usable(x, up), usable(x, down)
    if packed_up and packed_down:
        return gemm(gemm(x, packed_up[expert], None, "gelu"), packed_down[expert], None)
    inner = F.gelu(plain_linear(x, up.source[expert].to(up.dtype)))
    return plain_linear(inner, down.source[expert].to(down.dtype))


def moe(x: Tensor | Activation, router: Weight, up: Weight, down: Weight, top_k: int) -> Tensor:
    """See `nomicbert_kernels.moe`."""
    data = reference.check(x, router, up, down, top_k)
    return combined(data, *route(data, router, top_k), up, down)


def combined(
    data: Tensor, probabilities: Tensor, chosen: Tensor, up: Weight, down: Weight
) -> Tensor:
    """Apply the chosen experts to tokens that are routed already.

    Args:
        data: (T, H).
        probabilities: (T, k) fp32, of the chosen experts.
        chosen: (T, k) int64, their indices.
        up: source (E, F, H).
        down: source (E, H, F); bias (H,) or None.

    Returns: (T, H), dtype of `data`.
    """
    y = torch.zeros(data.shape, dtype=probabilities.dtype, device=data.device)
    # experts in ascending order, so that a token's sum never depends on the other tokens
    for expert in range(up.source.shape[0]):
        token, place = (chosen == expert).nonzero(as_tuple=True)
        out = expert_mlp(data[token], up, down, expert)
        y = y.index_add(0, token, probabilities[token, place, None] * out)
    if down.bias is not None:
        y = y + down.bias
    return y.to(data.dtype)
