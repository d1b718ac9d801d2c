"""How alike vectors are: every row of one set against every row of another.

Source: the four functions of sentence-transformers' `similarity`.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SIMILARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": lambda a, b: F.normalize(a) @ F.normalize(b).T,
    "dot": lambda a, b: a @ b.T,
    "euclidean": lambda a, b: -torch.cdist(a, b),
    "manhattan": lambda a, b: -torch.cdist(a, b, p=1.0),
}


def similarity(a: np.ndarray | Tensor, b: np.ndarray | Tensor, name: str = "cosine") -> Tensor:
    """Similarity of each row of `a` to each row of `b`; the larger, the more alike.

    Args:
        a: (n, dim) or one vector (dim,).
        b: (m, dim) or one vector (dim,).
        name: "cosine", "dot", or the negative distances "euclidean" and "manhattan".

    Returns: (n, m) fp32. One matrix product, whose last bits depend on n and m.
    Raises: ValueError: unknown name.
    """
    if name not in SIMILARITIES:
        raise ValueError(f"similarity must be one of {', '.join(SIMILARITIES)}, not {name!r}")
    left, right = (torch.as_tensor(x).float() for x in (a, b))
    left, right = (x.unsqueeze(0) if x.dim() == 1 else x for x in (left, right))
    return SIMILARITIES[name](left, right)
