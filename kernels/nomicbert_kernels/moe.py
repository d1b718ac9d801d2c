"""Mixture of experts: each token goes to the top-k of E small MLPs, and their outputs are summed.

    p = softmax(x Wrᵀ) over all E experts in fp32
    y = sum over the k largest p_e of p_e * gelu(x Wup_eᵀ) Wdown_eᵀ, + one shared bias
The k probabilities are not renormalised: nomic-embed-text-v2-moe was trained that way.
Source: Shazeer et al. 2017, arXiv:1701.06538, section 2.
"""

import torch
from torch import Tensor

from nomicbert_kernels import checks
from nomicbert_kernels.gelu import activate
from nomicbert_kernels.tensors import Activation, Weight, accumulator, values


def check(x: Tensor | Activation, router: Weight, up: Weight, down: Weight, top_k: int) -> Tensor:
    """Refuse arguments that do not fit; return `x` as a plain tensor."""
    checks.fits("x", x, router)
    data = values(x, router.dtype)
    experts, hidden = router.source.shape
    inner = up.source.shape[1]
    checks.is_like("up", up.source, (experts, inner, hidden), data)
    checks.is_like("down", down.source, (experts, hidden, inner), data)
    if not 1 <= top_k <= experts:
        raise ValueError(f"top_k must be 1 to {experts}, not {top_k}")
    return data


def moe(x: Tensor | Activation, router: Weight, up: Weight, down: Weight, top_k: int) -> Tensor:
    """Route each token to its experts and add their outputs.

    >>> import torch
    >>> from nomicbert_kernels import select_ops
    >>> ops = select_ops("cpu", torch.float32)
    >>> router = ops.prepare(torch.tensor([[0.0], [0.0]]), None, "router")
    >>> up = ops.prepare(torch.full((2, 1, 1), 10.0), None, "experts")
    >>> down = ops.prepare(torch.tensor([[[1.0]], [[3.0]]]), None, "experts")
    >>> ops.moe(torch.ones(1, 1), router, up, down, top_k=2)  # half of 10 * 1, half of 10 * 3
    tensor([[20.]])

    Args:
        x: (T, H), fp32, fp16 or bf16, last dim contiguous; or an Activation of that shape.
        router: source (E, H), no bias.
        up: source (E, F, H), no bias.
        down: source (E, H, F); bias (H,), added once, or None.
        top_k: experts per token, 1 to E.

    Returns: (T, H), dtype of the weights; softmax and sums in fp32.
    Raises: ValueError: shape, dtype or device mismatch; top_k outside 1 to E.
    Source: Shazeer et al. 2017, arXiv:1701.06538, section 2.
    """
    data = check(x, router, up, down, top_k)
    acc = accumulator(data)
    exact = data.to(acc)
    probabilities = torch.softmax(exact @ router.source.to(acc).T, dim=-1)
    top, chosen = probabilities.topk(top_k, dim=-1)
    # (T, E): the probability where the expert was chosen, 0 elsewhere
    gates = torch.zeros_like(probabilities).scatter(1, chosen, top)
    y = torch.zeros_like(exact)
    for expert in range(gates.shape[1]):
        inner = activate(exact @ up.source[expert].to(acc).T)
        y = y + gates[:, expert, None] * (inner @ down.source[expert].to(acc).T)
    if down.bias is not None:
        y = y + down.bias.to(acc)
    return y.to(router.dtype)
