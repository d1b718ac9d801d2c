"""Kept: the values used last stay, threads make a value once, and a failure costs nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from nomicbert.runtime.kept import Kept


class Maker:
    """Makes values and notes what was fetched and made."""

    def __init__(self, most: int) -> None:
        self.kept: Kept[str, object] = Kept(most)
        self.fetched: list[str] = []
        self.made: list[str] = []

    def get(self, key: str, meanwhile: Callable[[], object] = lambda: None) -> object:
        def fetch() -> str:
            self.fetched.append(key)
            if key.startswith("missing"):
                raise FileNotFoundError(key)
            return key

        def make(source: str) -> object:
            self.made.append(source)
            meanwhile()
            if source.startswith("broken"):
                raise ValueError(source)
            return object()

        return self.kept.get(key, fetch, make)


def test_the_values_used_last_stay() -> None:
    maker = Maker(2)
    first, second = maker.get("a"), maker.get("b")
    assert first is not second
    assert maker.get("a") is first
    maker.get("c")  # b was used before a
    assert maker.get("a") is first
    assert maker.get("b") is not second
    assert maker.made == ["a", "b", "c", "b"]
    maker.kept.clear()
    assert maker.get("b") is not second
    assert maker.made[4:] == ["b"]


def test_no_more_are_held_while_one_is_made() -> None:
    maker = Maker(2)
    held: list[int] = []
    for key in "abcd":
        maker.get(key, lambda: held.append(len(maker.kept._kept)))
    assert held == [0, 1, 1, 1]


def test_a_failure_keeps_nothing() -> None:
    """What cannot be fetched drops no other value; the next call tries again."""
    maker = Maker(2)
    first, second = maker.get("a"), maker.get("b")
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            maker.get("missing")
    assert (maker.get("a"), maker.get("b")) == (first, second)
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            maker.get("broken")
    assert maker.fetched.count("missing") == maker.made.count("broken") == 2
    assert maker.get("b") is second
    assert not maker.kept._gates


def test_threads_make_a_value_once() -> None:
    maker, entered, leave = Maker(2), threading.Event(), threading.Event()

    def wait() -> None:
        entered.set()
        assert leave.wait(60)

    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(maker.get, "a", wait)
        assert entered.wait(60)
        others = [pool.submit(maker.get, "a") for _ in range(6)]
        # another value does not wait for this one
        assert maker.get("b") is pool.submit(maker.get, "b").result(60)
        assert not first.done()
        leave.set()
        assert {id(other.result(60)) for other in others} == {id(first.result(60))}
    assert sorted(maker.made) == ["a", "b"]


def test_a_thread_that_waited_for_a_failure_tries_itself() -> None:
    maker, entered, leave = Maker(2), threading.Event(), threading.Event()

    def wait() -> None:
        entered.set()
        assert leave.wait(60)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(maker.get, "broken", wait)
        assert entered.wait(60)
        second = pool.submit(maker.get, "broken")
        leave.set()
        for call in (first, second):
            with pytest.raises(ValueError, match="broken"):
                call.result(60)
    assert maker.made == ["broken", "broken"]
    assert not maker.kept._kept


def test_values_made_at_once_are_bounded_too() -> None:
    maker, together = Maker(1), threading.Barrier(3)
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(maker.get, key, lambda: together.wait(60)) for key in "abc"]
        values = [call.result(60) for call in calls]
    assert len(set(map(id, values))) == 3
    assert len(maker.kept._kept) == 1
