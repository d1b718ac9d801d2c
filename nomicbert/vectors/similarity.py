"""Similarity of vectors: every row of one set with every row of another, or pairwise.

Source: the four functions of sentence-transformers' `similarity` and `similarity_pairwise`.
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
# The same per pair of rows.
PAIRWISE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": lambda a, b: (F.normalize(a) * F.normalize(b)).sum(1),
    "dot": lambda a, b: (a * b).sum(1),
    "euclidean": lambda a, b: -(a - b).norm(dim=1),
    "manhattan": lambda a, b: -(a - b).abs().sum(1),
}


def similarity(a: np.ndarray | Tensor, b: np.ndarray | Tensor, name: str = "cosine") -> Tensor:
    """Similarity of each row of `a` to each row of `b`; larger means more similar.

    Args:
        a: (n, dim) or one vector (dim,).
        b: (m, dim) or one vector (dim,).
        name: "cosine", "dot", or the negative distances "euclidean" and "manhattan".

    Returns: (n, m) fp32. One matmul, whose last bits depend on n and m.
    Raises: ValueError: unknown name.
    """
    left, right = _rows(a, b, name)
    return SIMILARITIES[name](left, right)


def similarity_pairwise(
    a: np.ndarray | Tensor, b: np.ndarray | Tensor, name: str = "cosine"
) -> Tensor:
    """Similarity of each row of `a` to the row of `b` next to it.

    Args:
        a: (n, dim) or one vector (dim,).
        b: the same shape as `a`.
        name: see `similarity`.

    Returns: (n,) fp32.
    Raises: ValueError: unknown name, or shapes that differ.
    """
    left, right = _rows(a, b, name)
    if left.shape != right.shape:
        raise ValueError(
            f"pairs need as many vectors on both sides, not {tuple(left.shape)} and "
            f"{tuple(right.shape)}: use similarity for all against all"
        )
    return PAIRWISE[name](left, right)


def _rows(a: np.ndarray | Tensor, b: np.ndarray | Tensor, name: str) -> tuple[Tensor, Tensor]:
    if name not in SIMILARITIES:
        raise ValueError(f"similarity must be one of {', '.join(SIMILARITIES)}, not {name!r}")
    try:
        left, right = (torch.as_tensor(x).float() for x in (a, b))
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"similarity takes vectors, not texts: encode them first ({error})"
        ) from error
    left, right = (x.unsqueeze(0) if x.dim() == 1 else x for x in (left, right))
    if left.dim() != 2 or left.shape[1:] != right.shape[1:]:
        raise ValueError(
            f"vectors must have the same width, not {tuple(left.shape)} and {tuple(right.shape)}"
        )
    return left, right
