"""Argument checks shared by all backends of an op, so that all raise the same errors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nomicbert_kernels.tensors import Activation, Weight

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def readable(x: Tensor) -> bool:
    """Whether a check may read values: not on a GPU, where it would wait, nor when compiling."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def is_matrix(name: str, x: Tensor | Activation) -> None:
    """Check that `x` is (rows, columns), floating point or scaled, contiguous in its last dim."""
    data = x if isinstance(x, Tensor) else x.data
    if data.dim() != 2:
        raise ValueError(f"{name} must have 2 dimensions, (rows, columns), not {data.dim()}")
    if isinstance(x, Tensor) and x.dtype not in FLOATS:
        raise ValueError(f"{name} must be fp32, fp16, bf16 or fp64, not {x.dtype}")
    if data.shape[1] > 1 and data.stride(1) != 1:
        raise ValueError(f"{name} must be contiguous in its last dimension, stride {data.stride()}")


def fits(name: str, x: Tensor | Activation, weight: Weight) -> None:
    """Check that `x` (rows, K) matches `weight` (N, K) in width, device and dtype."""
    is_matrix(name, x)
    data = x if isinstance(x, Tensor) else x.data
    source = weight.source
    if data.shape[1] != source.shape[1]:
        raise ValueError(
            f"{name} has {data.shape[1]} columns, but the weight {tuple(source.shape)} takes "
            f"{source.shape[1]}"
        )
    if weight.bias is not None and weight.bias.shape != source.shape[:1]:
        found, wanted = tuple(weight.bias.shape), tuple(source.shape[:1])
        raise ValueError(f"the weight {tuple(source.shape)} takes a bias {wanted}, not {found}")
    if data.device != source.device:
        raise ValueError(f"{name} is on {data.device}, but the weight is on {source.device}")
    # a scaled Activation is dequantised to the weight's dtype; autocast casts both to one dtype
    plain = isinstance(x, Tensor) or x.scale is None
    mixed = plain and data.dtype != weight.dtype
    if mixed and not torch.is_autocast_enabled(data.device.type):
        raise ValueError(f"{name} is {data.dtype}, but the weight is {weight.dtype}")


def is_like(name: str, x: Tensor | None, shape: Sequence[int], like: Tensor) -> None:
    """Check that `x` is None, or has this shape and the device of `like`."""
    if x is None:
        return
    if tuple(x.shape) != tuple(shape):
        raise ValueError(f"{name} must be {tuple(shape)}, not {tuple(x.shape)}")
    if x.device != like.device:
        raise ValueError(f"{name} is on {x.device}, but must be on {like.device}")


def is_offsets(cu_seqlens: Tensor, total: int) -> None:
    """Check that `cu_seqlens` is int32 (B + 1,), non-decreasing, from 0 to `total`."""
    if cu_seqlens.dim() != 1 or cu_seqlens.numel() < 1 or cu_seqlens.dtype != torch.int32:
        raise ValueError(
            "cu_seqlens must be int32 (batch + 1,), not "
            f"{cu_seqlens.dtype} {tuple(cu_seqlens.shape)}"
        )
    if not readable(cu_seqlens):
        return
    first, last = int(cu_seqlens[0]), int(cu_seqlens[-1])
    if first != 0 or last != total:
        raise ValueError(f"cu_seqlens must run from 0 to {total}, not from {first} to {last}")
    if bool((cu_seqlens[1:] < cu_seqlens[:-1]).any()):
        raise ValueError(f"cu_seqlens must not decrease: {cu_seqlens.tolist()[:20]}")


def is_rows(rows: Tensor, cu_seqlens: Tensor) -> None:
    """Check that `rows` is integer (B,): for each text the index of one of its tokens."""
    texts = cu_seqlens.numel() - 1
    if rows.shape != (texts,) or rows.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"rows must be integer ({texts},), one per text, not {rows.dtype} {tuple(rows.shape)}"
        )
    if not (readable(rows) and readable(cu_seqlens)):
        return
    outside = (rows < cu_seqlens[:-1]) | (rows >= cu_seqlens[1:])
    if bool(outside.any()):
        text = int(outside.nonzero()[0])
        raise ValueError(f"rows[{text}] is {int(rows[text])}, which is not a token of text {text}")
