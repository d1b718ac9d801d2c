"""The comparisons: two tensors in, rows out."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nomicbert.verify.bounds import EMBEDDING, HALF, HIDDEN, HalfBound
from nomicbert.verify.report import Row


def half_bound(dtype: torch.dtype) -> HalfBound | None:
    """The bounds of a 16-bit dtype; None for float32."""
    return next((bound for bound in HALF if bound.dtype == dtype), None)


def largest(wrong: Tensor) -> float:
    """The largest absolute error; NaN if any is NaN, 0 if there are none."""
    return float(wrong.abs().max()) if wrong.numel() else 0.0


def hidden_row(ours: Tensor, theirs: Tensor, padding: float, backend: str, form: str) -> Row:
    """Hidden states in float32 against the reference: the worst layer's largest error.

    Args:
        ours: (layers + 1, tokens, hidden).
        theirs: the same shape.
        padding: the largest value of ours at padding, which must be zero.
        backend: of our model.
        form: description of the reference's attention.
    """
    layers = tuple(largest(a.double() - b.double()) for a, b in zip(ours, theirs, strict=True))
    worst = _worst([*layers, padding])
    what = f"{len(layers) - 1} layers, {form}"
    return Row("hidden", "float32", backend, what, "max abs", worst, HIDDEN, layers=layers)


def half_rows(
    ours: Tensor, theirs: Tensor, truth: Tensor, bound: HalfBound, backend: str, judged: bool
) -> list[Row]:
    """Hidden states in 16 bits: the worst layer's error relative to the reference's own error.

    Args:
        ours: (layers + 1, tokens, hidden) in the dtype of `bound`.
        theirs: the reference in that dtype.
        truth: the reference in float32.
        bound: of this dtype.
        backend: of our model.
        judged: whether the bounds apply.
    """
    mine, own = (_errors(states, truth) for states in (ours, theirs))
    dtype = str(bound.dtype).removeprefix("torch.")
    rows = []
    for place, (measure, most) in enumerate((("rms", bound.rms), ("max", bound.most))):
        ratios = tuple(_ratio(a[place], b[place]) for a, b in zip(mine, own, strict=True))
        limit = most if judged else None
        rows.append(
            Row(
                "hidden",
                dtype,
                backend,
                f"{len(ratios) - 1} layers",
                f"{measure} / theirs",
                _worst(ratios),
                limit,
                layers=ratios,
            )
        )
    return rows


def embedding_row(
    ours: Tensor, truth: Tensor, dtype: torch.dtype, backend: str, what: str, judged: bool = True
) -> Row:
    """Unit vectors: the largest difference in float32, the least cosine in 16 bits.

    Args:
        ours: (n, dim).
        truth: (n, dim) float64, unit vectors.
        dtype: of the model.
        backend: of our model.
        what: description of the texts.
        judged: whether the bound applies.
    """
    name, half = str(dtype).removeprefix("torch."), half_bound(dtype)
    if half is None:
        error = largest(ours.double() - truth)
        bound = EMBEDDING if judged else None
        return Row("embedding", name, backend, what, "max abs", error, bound)
    cosine = F.cosine_similarity(ours.double(), truth)
    least = float(cosine.min())
    bound = half.cosine if judged else None
    return Row("embedding", name, backend, what, "least cosine", least, bound, at_least=True)


def matryoshka_row(ours: Tensor, truth: Tensor, backend: str) -> Row:
    """Short unit vectors by the card's recipe, in float32."""
    what = f"{truth.shape[1]} dimensions"
    error = largest(ours.double() - truth)
    return Row("matryoshka", "float32", backend, what, "max abs", error, EMBEDDING)


def _errors(states: Tensor, truth: Tensor) -> list[tuple[float, float]]:
    """Root mean square and largest error of each layer."""
    pairs = zip(states, truth, strict=True)
    wrong: Sequence[Tensor] = [(a.double() - b.double()).abs() for a, b in pairs]
    return [(float(each.square().mean().sqrt()), largest(each)) for each in wrong]


def _worst(numbers: Sequence[float]) -> float:
    """The largest value, or NaN if any is NaN; max() would hide a NaN behind another value."""
    return largest(torch.tensor(numbers, dtype=torch.float64))


def _ratio(mine: float, own: float) -> float:
    """Ratio of two errors; 1 if both are zero."""
    return mine / own if own else (1.0 if mine == 0 else float("inf"))
