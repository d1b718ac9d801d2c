"""Texts that end workers are refused for a while, in any batch, and no others are."""

from __future__ import annotations

from typing import Any

import pytest

from nomicbert.serve.engine import deadly
from nomicbert.serve.engine.deadly import DeadlyText, DeadlyTexts
from nomicbert.serve.engine.jobs import Group, Job, Piece
from nomicbert.vectors.pooling import Finish


def piece(*ids: int, finish: Finish | None = None, **group: Any) -> Piece:
    return Piece(Job(Group(**{"model": 0, **group}), [[*ids]], finish), 0)


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(deadly, "time", found)
    return found


def refuses(texts: DeadlyTexts, *batch: Piece) -> bool:
    try:
        texts.check(batch)
    except DeadlyText:
        return True
    return False


def test_which_texts_are_refused_and_how_long(clock: Clock) -> None:
    texts = DeadlyTexts(10)
    assert not refuses(texts, piece(1, 2))
    texts.add(piece(1, 2))
    clock.now += 6
    texts.add(piece(3))
    assert refuses(texts, piece(1, 2))
    assert refuses(texts, piece(9), piece(1, 2, finish=Finish(8)), piece(9))  # pooled before that
    for other in (piece(1), piece(2, 1), piece(1, 2, model=1), piece(1, 2, hidden=True)):
        assert not refuses(texts, other)
    clock.now += 6
    assert not refuses(texts, piece(1, 2))
    assert refuses(texts, piece(3))
    texts.add(piece(4))
    texts.add(piece(3))  # again: from now on
    clock.now += 9
    assert refuses(texts, piece(3))
    clock.now += 2
    assert not refuses(texts, piece(3))
    assert not texts._until


def test_a_text_that_is_refused_anew_keeps_no_other(clock: Clock) -> None:
    texts = DeadlyTexts(10)
    texts.add(piece(1))
    clock.now += 1
    texts.add(piece(2))
    clock.now += 7
    texts.add(piece(1))
    clock.now += 4
    assert not refuses(texts, piece(2))
    assert refuses(texts, piece(1))


def test_it_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadly, "MOST", 3)
    texts = DeadlyTexts()
    for number in range(5):
        texts.add(piece(number))
    assert [refuses(texts, piece(number)) for number in range(5)] == [
        False,
        False,
        True,
        True,
        True,
    ]
