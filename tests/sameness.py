"""When two vectors of one text count as the same."""

from __future__ import annotations

import numpy as np
import torch

HAS_ONEDNN = torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled()
# Without oneDNN a product's sums may be cut differently in another batch: a few roundings.
BOUNDS = {torch.float32: 1e-6, torch.bfloat16: 4e-3}


def same(a: np.ndarray, b: np.ndarray, dtype: torch.dtype = torch.float32) -> bool:
    """Whether two vectors have the same bits; or, without oneDNN, unit vectors nearly the same."""
    if HAS_ONEDNN:
        return np.array_equal(a, b)
    a, b = (x / np.linalg.norm(x.astype(np.float64)) for x in (a, b))
    return bool(np.abs(a - b).max() <= BOUNDS[dtype])
