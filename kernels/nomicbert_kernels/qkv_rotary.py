"""The query, key and value projection, with the rotary embedding of queries and keys.

For the pair (a, b) of dimensions j at angle t = position * theta^(-2j / rotary_dim):
    a' = a cos t - b sin t,   b' = b cos t + a sin t
Source: Su et al. 2021, arXiv:2104.09864, eq. 34. Pairs are half-split as in
GPT-NeoX, or interleaved as in GPT-J.
"""

from torch import Tensor

from nomicbert_kernels import checks
from nomicbert_kernels.linear import gemm
from nomicbert_kernels.tensors import Activation, Rope, Weight, values


def check(x: Tensor | Activation, weight: Weight, rope: Rope | None, num_heads: int) -> Tensor:
    """Refuse arguments that do not fit; return `x` as a plain tensor."""
    checks.fits("x", x, weight)
    data = values(x, weight.dtype)
    width = weight.source.shape[0]
    if num_heads < 1 or width % (3 * num_heads):
        raise ValueError(f"{width} rows of Wqkv do not divide into 3 x {num_heads} heads")
    if rope is not None:
        head_dim = width // (3 * num_heads)
        if not 0 < rope.rotary_dim <= head_dim or rope.rotary_dim % 2:
            raise ValueError(
                f"rotary_dim must be even and at most the head size {head_dim}, "
                f"not {rope.rotary_dim}"
            )
        checks.is_like("rope.row", rope.row, data.shape[:1], data)
        checks.is_like("rope.cos", rope.cos, (rope.cos.shape[0], rope.rotary_dim // 2), data)
        checks.is_like("rope.sin", rope.sin, rope.cos.shape, data)
    return data


def heads_shape(data: Tensor, weight: Weight, num_heads: int) -> tuple[int, int, int, int]:
    """Shape (T, 3, h, d) of the projected tokens."""
    return data.shape[0], 3, num_heads, weight.source.shape[0] // (3 * num_heads)


def pairs(x: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
    """Views of the two halves of every pair, each (..., rotary_dim / 2)."""
    if rope.interleaved:
        return x[..., 0 : rope.rotary_dim : 2], x[..., 1 : rope.rotary_dim : 2]
    half = rope.rotary_dim // 2
    return x[..., :half], x[..., half : rope.rotary_dim]


def rotate(qk: Tensor, rope: Rope) -> Tensor:
    """Rotate (T, ..., h, d) by each token's angles, in the dtype of the tables."""
    shape = (qk.shape[0], *(1,) * (qk.dim() - 2), rope.rotary_dim // 2)
    cos = rope.cos[rope.row].view(shape)
    sin = rope.sin[rope.row].view(shape)
    out = qk.clone()
    (a, b), (to_a, to_b) = pairs(qk, rope), pairs(out, rope)
    to_a.copy_(a * cos - b * sin)
    to_b.copy_(b * cos + a * sin)
    return out


def qkv_rotary(x: Tensor | Activation, weight: Weight, rope: Rope | None, num_heads: int) -> Tensor:
    """Project to queries, keys and values; rotate queries and keys.

    >>> import torch
    >>> from nomicbert_kernels import Rope, select_ops
    >>> ops = select_ops("cpu", torch.float32)
    >>> weight = ops.prepare(torch.eye(2).repeat(3, 1), None, "linear")
    >>> quarter = Rope(torch.zeros(1, 1), torch.ones(1, 1), torch.zeros(1, dtype=torch.int32), 2)
    >>> ops.qkv_rotary(torch.tensor([[1.0, 2.0]]), weight, quarter, num_heads=1).tolist()
    [[[[-2.0, 1.0]], [[-2.0, 1.0]], [[1.0, 2.0]]]]

    Args:
        x: (T, H), fp32, fp16 or bf16, last dim contiguous; or an Activation of that shape.
        weight: source (3 h d, H): all queries, all keys, all values; bias (3 h d,) or None.
        rope: rotary angles of the batch, or None for learned positions.
        num_heads: h.

    Returns: (T, 3, h, d), dtype of the weight; GEMM and rotation in fp32.
    Raises: ValueError: shape, dtype, device mismatch; odd or too large rotary_dim.
    Source: Su et al. 2021, arXiv:2104.09864, eq. 34.
    """
    data = check(x, weight, rope, num_heads)
    qkv = gemm(data, weight).view(heads_shape(data, weight, num_heads))
    if rope is not None:
        qkv = qkv.clone()
        qkv[:, :2] = rotate(qkv[:, :2], rope)
    return qkv.to(weight.dtype)
