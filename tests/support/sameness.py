"""Comparison of two vectors of one text."""

from __future__ import annotations

import numpy as np
import torch

from nomicbert_kernels.linear_torch import onednn_packs

HAS_ONEDNN = onednn_packs(torch.float32)
# If oneDNN does not pack weights, a GEMM may split its sums differently in another batch, which
# costs a few roundings. This is so without oneDNN, and in bf16 on a CPU without AVX-512.
BOUNDS = {torch.float32: 1e-6, torch.bfloat16: 4e-3}


def same(a: np.ndarray, b: np.ndarray, dtype: torch.dtype = torch.float32) -> bool:
    """Whether two vectors are bit-identical or, if that is not guaranteed, nearly equal."""
    if onednn_packs(dtype):
        return np.array_equal(a, b)
    a, b = (x / np.linalg.norm(x.astype(np.float64)) for x in (a, b))
    return bool(np.abs(a - b).max() <= BOUNDS[dtype])


def nearly_equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether fp32 values are equal up to the roundings of other batches, by the largest value."""
    if a.shape != b.shape:
        return False
    largest = max(1.0, float(np.abs(b).max(initial=0.0)))
    return bool(np.abs(a - b).max(initial=0.0) <= BOUNDS[torch.float32] * largest)
