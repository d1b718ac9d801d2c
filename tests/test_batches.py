"""runtime.batches: many texts in batches of like length, within a budget of tokens."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from nomicbert.runtime.batches import token_batches

LENGTHS = st.lists(st.integers(0, 40), max_size=40)


@given(LENGTHS, st.integers(1, 100), st.none() | st.integers(1, 6))
def test_batches(lengths: list[int], budget: int, size: int | None) -> None:
    batches = list(token_batches(lengths, budget, size))
    flat = [index for batch in batches for index in batch]
    # every text once, longest first, texts of one length in their own order
    assert flat == [i for _, i in sorted((-length, i) for i, length in enumerate(lengths))]
    for batch in batches:
        assert batch
        assert sum(lengths[i] for i in batch) <= budget or len(batch) == 1
        assert size is None or len(batch) <= size
    # no batch is closed before it is full
    for batch, following in pairwise(batches):
        fuller = sum(lengths[i] for i in [*batch, following[0]])
        assert fuller > budget or len(batch) == size


def test_by_hand() -> None:
    lengths = [3, 9, 3, 1, 20, 3, 0]
    assert list(token_batches(lengths, 10)) == [[4], [1], [0, 2, 5, 3, 6]]
    assert list(token_batches(lengths, 10, 2)) == [[4], [1], [0, 2], [5, 3], [6]]
    assert list(token_batches([], 10)) == []
