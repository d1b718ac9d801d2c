"""runtime.batches: batches of similar length within a budget of tokens."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nomicbert.runtime import batches
from nomicbert.runtime.batches import text_windows, token_batches

LENGTHS = st.lists(st.integers(0, 40), max_size=40)


@given(LENGTHS, st.integers(1, 100), st.none() | st.integers(1, 6))
def test_batches(lengths: list[int], budget: int, size: int | None) -> None:
    batches = list(token_batches(lengths, budget, size))
    flat = [index for batch in batches for index in batch]
    # every text once, longest first, texts of equal length in input order
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


@given(LENGTHS, st.integers(1, 9), st.integers(1, 60), st.none() | st.integers(1, 30))
def test_windows(lengths: list[int], most: int, budget: int, useful: int | None) -> None:
    texts = ["x" * length for length in lengths]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "WINDOW_TEXTS", most)
        patch.setattr(batches, "WINDOW_CHARACTERS", budget)
        windows = list(text_windows(texts, useful))
    assert [text for window in windows for text in window] == texts

    def characters(window: list[str]) -> int:
        return sum(len(text) if useful is None else min(len(text), useful) for text in window)

    for window in windows:
        assert 1 <= len(window) <= most
        assert characters(window[:-1]) < budget
    for window in windows[:-1]:  # none is closed before it is full
        assert len(window) == most or characters(window) >= budget


def test_windows_limit_held_characters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batches, "WINDOW_HELD", 1000)
    windows = list(text_windows(("x" * 300 for _ in range(10)), 2))
    assert [len(window) for window in windows] == [4, 4, 2]
