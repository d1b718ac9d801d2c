"""The k best scores of a stream of blocks; of equal scores the first rows.

Where in the flow: `scan` passes the scores of each block of rows to a `Best`.
"""

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


class Best:
    """Keeps the k best rows.

    Attributes:
        scores: (at most k,) float32, descending.
        rows: their numbers; ascending where scores are equal.
    """

    def __init__(self, k: int) -> None:
        self._k = k
        self.scores: Scores = np.empty(0, np.float32)
        self.rows: Rows = np.empty(0, np.int64)

    @property
    def least(self) -> float:
        """A later row must score more than this to be among the k best."""
        return float(self.scores[-1]) if len(self.scores) == self._k else -np.inf

    def add(self, scores: Scores, rows: Rows) -> None:
        """Take rows into account that follow all before.

        Args:
            scores: (n,) float32, finite.
            rows: (n,) their numbers, ascending.
        """
        better = np.flatnonzero(scores > self.least)
        better = better[first_best(scores[better], self._k)]
        scores = np.concatenate([self.scores, scores[better]])
        rows = np.concatenate([self.rows, rows[better]])
        order = np.argsort(-scores, kind="stable")[: self._k]
        self.scores, self.rows = scores[order], rows[order]


def first_best(scores: Scores, k: int) -> Rows:
    """Indices of the k best scores, ascending; of equal ones the first."""
    if len(scores) <= k:
        return np.arange(len(scores))
    least = np.partition(scores, len(scores) - k)[len(scores) - k]
    chosen = scores > least
    equal = np.flatnonzero(scores == least)[: k - np.count_nonzero(chosen)]
    chosen[equal] = True
    return np.flatnonzero(chosen)
