"""Similarity of vectors: every row of one set with every row of another, or pairwise.

Source: the four functions of sentence-transformers' `similarity` and `similarity_pairwise`.
"""

import reprlib
from collections.abc import Callable, Sequence
from enum import Enum

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# One set of vectors: (n, dim), a list of n vectors, or one vector.
VectorRows = (
    np.ndarray | Tensor | Sequence[Tensor] | Sequence[np.ndarray] | Sequence[Sequence[float]]
)

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


def similarity_name(value: object) -> str:
    """Convert a name, or sentence-transformers' enumeration, to a name; None is "cosine".

    Raises: ValueError: unknown name.
    """
    name = value.value if isinstance(value, Enum) else value
    if name is None:
        return "cosine"
    if not isinstance(name, str) or name not in SIMILARITIES:
        hint = ": it is for lists of token vectors (MultiVectorEncoder)" if name == "maxsim" else ""
        raise ValueError(
            f"similarity_fn_name must be one of {', '.join(SIMILARITIES)}, not {name!r}{hint}"
        )
    return name


def similarity(a: VectorRows, b: VectorRows, name: str = "cosine") -> Tensor:
    """Similarity of each row of `a` to each row of `b`; larger means more similar.

    Args:
        a: (n, dim), a list of n vectors, or one vector (dim,).
        b: (m, dim), a list of m vectors, or one vector (dim,).
        name: "cosine", "dot", or the negative distances "euclidean" and "manhattan".

    Returns: (n, m) fp32. One matmul, whose last bits depend on n and m.
    Raises: ValueError: unknown name, or other shapes. TypeError: no vectors.
    """
    name = similarity_name(name)
    return SIMILARITIES[name](*_both(a, b))


def similarity_pairwise(a: VectorRows, b: VectorRows, name: str = "cosine") -> Tensor:
    """Similarity of each row of `a` to the row of `b` next to it.

    Args:
        a: (n, dim), a list of n vectors, or one vector (dim,).
        b: the same shape as `a`.
        name: see `similarity`.

    Returns: (n,) fp32.
    Raises: ValueError: unknown name, or shapes that differ. TypeError: no vectors.
    """
    name = similarity_name(name)
    left, right = _both(a, b)
    if left.shape != right.shape:
        raise ValueError(
            f"pairs need as many vectors on both sides, not {tuple(left.shape)} and "
            f"{tuple(right.shape)}: use similarity for all against all"
        )
    return PAIRWISE[name](left, right)


def _both(a: VectorRows, b: VectorRows) -> tuple[Tensor, Tensor]:
    left, right = _rows(a), _rows(b)
    # an empty list has no width of its own
    left, right = (
        x.reshape(0, y.shape[1]) if x.shape == (0, 0) and y.dim() == 2 else x
        for x, y in ((left, right), (right, left))
    )
    if left.dim() != 2 or left.shape[1:] != right.shape[1:]:
        raise ValueError(
            f"vectors must have the same width, not {tuple(left.shape)} and {tuple(right.shape)}"
        )
    return left, right


def _instead(x: object) -> str:
    """What was given instead of vectors, and what to do."""
    if isinstance(x, str) or (isinstance(x, list | tuple) and any(isinstance(y, str) for y in x)):
        return "not texts: give it embedder.encode(texts)"
    if hasattr(x, "__next__"):
        return "not a stream of them: give a list"
    return f"(n, dim) or a list of them, not {reprlib.repr(x)}"


def _rows(x: VectorRows) -> Tensor:
    try:
        if isinstance(x, list | tuple) and len(x) and isinstance(x[0], Tensor | np.ndarray):
            rows = torch.stack([torch.as_tensor(row) for row in x]).float()
        else:
            rows = torch.as_tensor(x).float()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"similarity takes vectors, {_instead(x)}") from error
    return rows.reshape(min(len(rows), 1), len(rows)) if rows.dim() == 1 else rows
