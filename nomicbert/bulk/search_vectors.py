"""The nearest of stored vectors: exactly, or by bits and rescored exactly.

    from nomicbert import Embedder
    from nomicbert.bulk.search_vectors import search_vectors

    questions = Embedder("./my-checkpoint").encode_query(["Which animals purr?"])
    scores, rows = search_vectors("vectors/", questions, k=5)

Where in the flow: behind `embed_files`; `nomicbert search` embeds a question and comes here. Needs
pyarrow.
"""

import operator
import os
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nomicbert.bulk.search.mapped import open_mapped, unit
from nomicbert.bulk.search.scan import scan_bits, scan_vectors
from nomicbert.bulk.stored import StoredVectors, open_vectors

OVERSAMPLING = 16


class Nearest(NamedTuple):
    """The rows nearest to each question, best first.

    Attributes:
        scores: (q, k) float32, cosines.
        rows: (q, k) int64, numbers for `StoredVectors.take`; of equal scores the lower first.
    """

    scores: npt.NDArray[np.float32]
    rows: npt.NDArray[np.int64]


def search_vectors(
    vectors: StoredVectors | str | os.PathLike[str],
    questions: npt.NDArray[np.floating],
    k: int = 10,
    *,
    bits: bool = False,
    oversampling: int = OVERSAMPLING,
) -> Nearest:
    """The k vectors with the largest cosine to each question.

    The first search writes a raw copy of the vectors beside them (`_search/`, or in the user's
    cache where that cannot be written): 4 bytes per value, and a bit. Later ones map it.

    Args:
        vectors: folder, URL or file, or what `open_vectors` returns.
        questions: (q, width) float32, or (width,) for one; from the model of the vectors.
        k: rows per question; all rows if there are fewer.
        bits: compare signs first, and compute the cosines of the `k * oversampling` best only:
            faster, and some neighbours are missed (docs/search.md).
        oversampling: see `bits`.

    Returns: scores and rows, (q, k) each, or (k,) for one question.
    Raises: ValueError: k or oversampling below 1, questions of another width or not finite, vectors
        that cannot be compared; as `open_vectors`. OSError: there is no room for the copy.
    """
    for name, number in (("k", k), ("oversampling", oversampling)):
        if operator.index(number) < 1:
            raise ValueError(f"{name} must be at least 1, not {number}")
    stored = vectors if isinstance(vectors, StoredVectors) else open_vectors(vectors)
    given = np.asarray(questions)
    asked = np.atleast_2d(given)
    if asked.ndim != 2 or asked.shape[1] != stored.width or asked.dtype.kind != "f":
        raise ValueError(
            f"questions must be floats of shape (q, {stored.width}), the width of {stored.name}, "
            f"not {given.dtype} {given.shape}"
        )
    if not np.isfinite(asked).all():
        raise ValueError("questions hold NaN or infinite values")
    mapped, scaled = open_mapped(stored), unit(asked)
    least = min(k, stored.rows)
    if bits:
        found = scan_bits(mapped, scaled, least, oversampling)
    else:
        found = scan_vectors(mapped, scaled, least)
    shape = (*given.shape[:-1], least)
    scores = np.array([best.scores for best in found], np.float32).reshape(shape)
    rows = np.array([best.rows for best in found], np.int64).reshape(shape)
    return Nearest(scores, rows)
