"""When two vectors of one text count as the same."""

from __future__ import annotations

import numpy as np
import torch

from nomicbert_kernels.linear_torch import onednn_packs

HAS_ONEDNN = onednn_packs(torch.float32)
# Where oneDNN does not pack weights, the sums of a GEMM may be cut differently in another batch: a
# few roundings. So it is without oneDNN, and in bf16 on a CPU that has no AVX-512.
BOUNDS = {torch.float32: 1e-6, torch.bfloat16: 4e-3}


def same(a: np.ndarray, b: np.ndarray, dtype: torch.dtype = torch.float32) -> bool:
    """Whether two vectors have the same bits; or, where that is not promised, nearly the same."""
    if onednn_packs(dtype):
        return np.array_equal(a, b)
    a, b = (x / np.linalg.norm(x.astype(np.float64)) for x in (a, b))
    return bool(np.abs(a - b).max() <= BOUNDS[dtype])
