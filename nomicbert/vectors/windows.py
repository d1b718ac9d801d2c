"""Vectors of a text's windows -> one vector per text.

Where in the flow: `runtime` cuts a long text into windows, each with the prompt and the special
tokens, and joins what comes back for them. Two recipes:

- `token_mean`: the mean over the tokens of all windows; the steps after pooling follow.
- `mean_of_windows`: every window is a finished unit vector; plain mean v = sum of u_w / W, then L2.

The sums are per text, in the order of its windows: a result does not depend on the other texts.
Source: `mean_of_windows` and its overlap: the embedding code of nomic-ai/gpt4all
(`LLamaModel::embedInternal`, commit cd70db2), which offers the hosted API's long_text_mode="mean".
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nomicbert_kernels.tensors import to_device

# Tokens that a window of `mean_of_windows` shares with the one before.
OVERLAP = 8


def mean_of_windows(vectors: Tensor, counts: Sequence[int]) -> Tensor:
    """Average each text's windows without weights, then apply L2.

    >>> import torch
    >>> mean_of_windows(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]), [2, 1])
    tensor([[0.7071, 0.7071],
            [0.6000, 0.8000]])

    Args:
        vectors: (W, dim) fp32, one unit vector per window; the windows of a text are adjacent.
        counts: windows of each of B texts, at least 1; W in all.

    Returns: (B, dim) fp32 of unit length; the vector of a text of one window as it is. Zeros for a
        text whose windows are zeros, or cancel out.
    Raises: ValueError: the counts do not fit the vectors.
    """
    windows = _checked(counts, vectors)
    if len(windows) == len(vectors):
        return vectors
    means = F.normalize(_reduced(vectors, windows, "mean"))
    # L2 may change the last bits of a unit vector, so a text of one window skips it
    first = vectors.index_select(0, to_device(np.cumsum(windows) - windows, vectors.device))
    return torch.where(to_device(windows > 1, vectors.device)[:, None], means, first)


def token_mean(means: Tensor, tokens: np.ndarray, counts: Sequence[int]) -> Tensor:
    """Average over the tokens of all windows of each text.

    Args:
        means: (W, H) fp32, mean over the tokens of a window; the windows of a text are adjacent.
        tokens: (W,) number of these tokens; windows without any do not count.
        counts: windows of each of B texts, at least 1; W in all.

    Returns: (B, H) fp32; of a text of one window its mean as it is, zeros for one without tokens.
    Raises: ValueError: the counts do not fit the means.
    """
    windows = _checked(counts, means)
    texts = np.arange(len(windows)).repeat(windows)
    totals = np.bincount(texts, tokens, len(windows))[texts]
    # a text of one window stays bit-identical: its share is exactly 1
    shares = tokens / np.maximum(totals, 1)
    weighted = means * to_device(shares.astype(np.float32), means.device)[:, None]
    return _reduced(weighted, windows, "sum")


def _checked(counts: Sequence[int], rows: Tensor) -> np.ndarray:
    """(B,) int64 of the counts, which must be those of all rows."""
    windows = np.array(counts, np.int64)
    if (windows < 1).any() or windows.sum() != len(rows):
        raise ValueError(f"{len(rows)} windows cannot be those of texts of {windows.tolist()}")
    return windows


def _reduced(rows: Tensor, windows: np.ndarray, reduction: str) -> Tensor:
    """Sum or mean of the rows of each text, whatever the other texts: (W, N) -> (B, N) fp32."""
    lengths = to_device(windows, rows.device)
    reduced: Tensor = torch.segment_reduce(rows, reduction, lengths=lengths, axis=0)
    return reduced
