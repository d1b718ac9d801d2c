"""Questions against all rows of a mapped copy, block by block, so that memory stays flat.

    score(q, v) = q . v / (|q| |v|), 0 for a vector of zeros

Where in the flow: `search_vectors` calls these with the copy of a folder. A float32 matmul finds
the rows that can be among the k best. Their scores are then computed in float64, row by row: they
do not depend on blocks, the BLAS library or its threads, and equal vectors have equal scores.

Source: Yamada et al. 2021, arXiv:2106.00882 (candidates by bits, then rescoring).
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from nomicbert.bulk.search.best import Best, Rows, Scores
from nomicbert.bulk.search.bits import bits_of, differing
from nomicbert.bulk.search.mapped import Mapped
from nomicbert.bulk.vector_files import Float32

# Rows of a block, which lies in the mapped copy: the fewer blocks, the less often threads wait.
BLOCK = 1 << 16
# Rows that are scored in float64 at once.
PIECE = 4096
# Questions that are compared with a block at once.
QUESTIONS = 32


def scan_vectors(mapped: Mapped, questions: Float32, k: int) -> list[Best]:
    """The k best rows per question, exactly.

    Args:
        mapped: the copy.
        questions: (q, width) float32 of length 1, or zeros.
        k: number of rows; fewer are returned if there are fewer.
    """
    found = [Best(k) for _ in questions]
    # no more than this can a float32 dot product of unit vectors be off, in any order of its sums
    error = (questions.shape[1] + 2) * float(np.finfo(np.float32).eps)
    exact = questions.astype(np.float64)
    for first, block in mapped.blocks(BLOCK):
        for start in range(0, len(questions), QUESTIONS):
            near = questions[start : start + QUESTIONS] @ block.T
            for index, scores in enumerate(near, start):
                rows = _possible(scores, found[index], k, error)
                for some in _pieces(rows):
                    found[index].add(_scores(block[some], exact[index]), some + first)
    return found


def scan_bits(mapped: Mapped, questions: Float32, k: int, oversampling: int) -> list[Best]:
    """The k best of the `k * oversampling` rows per question whose signs differ least.

    Args:
        mapped: the copy.
        questions: (q, width) float32 of length 1, or zeros.
        k: number of rows.
        oversampling: candidates per row that is returned.
    """
    candidates = [Best(k * oversampling) for _ in questions]
    signs = bits_of(questions).T
    for first in range(0, mapped.rows, BLOCK):
        block = mapped.bits[:, first : first + BLOCK]
        numbers = np.arange(first, first + block.shape[1])
        for best, question in zip(candidates, signs, strict=True):
            best.add(-differing(block, question).astype(np.float32), numbers)
    found = []
    for best, question in zip(candidates, questions.astype(np.float64), strict=True):
        one = Best(k)
        for rows in _pieces(np.sort(best.rows)):
            one.add(_scores(mapped.vectors[rows], question), rows)
        found.append(one)
    return found


def _possible(scores: Scores, best: Best, k: int, error: float) -> Rows:
    """Rows of a block that may be among the k best, given what their scores can be off."""
    least = best.least
    if least == -np.inf and len(scores) > k:
        least = float(np.partition(scores, len(scores) - k)[len(scores) - k]) - error
    return np.flatnonzero(scores >= least - error)


def _scores(vectors: Float32, question: npt.NDArray[np.float64]) -> Scores:
    """Dot products whose last bit depends on nothing but the two vectors."""
    return np.asarray((vectors.astype(np.float64) * question).sum(axis=1), np.float32)


def _pieces(rows: Rows) -> Iterator[Rows]:
    for start in range(0, len(rows), PIECE):
        yield rows[start : start + PIECE]
