"""Colours of a column: groups, the rest of many values, scales of numbers and times."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from nomicbert.bulk.map.colours import MOST_GROUPS, Groups, Scale, colours_of


def column(values: list[Any], kind: Any = None) -> Any:
    half = len(values) // 2
    return pa.chunked_array([pa.array(values[:half], kind), pa.array(values[half:], kind)])


def groups_of(values: list[Any], kind: Any = None) -> Groups:
    found = colours_of("c", column(values, kind))
    assert isinstance(found, Groups)
    return found


def test_groups_of_values() -> None:
    found = groups_of(["b", "a", None, "b", "c", "b", "a"])
    assert [(one.name, one.count) for one in found.groups] == [
        ("b", 3),
        ("a", 2),
        ("(none)", 1),
        ("c", 1),
    ]
    assert found.names == ["b", "a", "(none)", "b", "c", "b", "a"]
    assert (found.title, found.note) == ("c", "")


@pytest.mark.parametrize(
    "kind", [pa.binary(2), pa.large_binary(), pa.dictionary(pa.int8(), pa.binary())], ids=str
)
def test_groups_of_bytes(kind: Any) -> None:
    names = {one.name for one in groups_of([b"\xff\xfe", b"ab", None], kind).groups}
    assert names == {"fffe", "6162", "(none)"}


def test_groups_of_lists_keep_their_script() -> None:
    names = [one.name for one in groups_of([["é", "猫"], ["é", "猫"]]).groups]
    assert names == ['["é", "猫"]']


def test_many_values_leave_a_rest() -> None:
    """Of 500 values the 19 most frequent have a colour, whatever their order."""
    values = [f"v{n:03}" for n in range(500)]
    often = values[::26][:MOST_GROUPS]
    found = groups_of(values + often)
    assert [one.name for one in found.groups[:-1]] == often
    assert {one.count for one in found.groups[:-1]} == {2}
    rest = found.groups[-1]
    assert (rest.name, rest.count, rest.rest) == ("other (481 values)", 481, True)
    assert found.note.startswith("The 19 most frequent of 500 values")
    for name, value in zip(found.names, values + often, strict=True):
        assert name == (value if value in often else rest.name)


def test_twenty_values_all_have_a_colour() -> None:
    found = groups_of([str(n) for n in range(20)])
    assert len(found.groups) == 20
    assert not any(one.rest for one in found.groups)


NOON = datetime.datetime(2024, 1, 1, 12)
SCALES: dict[str, tuple[list[Any], Any, list[float], tuple[str, str]]] = {
    "floats": ([2.0, None, 4.0, float("nan"), 3.0], None, [0, -1, 1, -1, 0.5], ("2", "4")),
    "infinity": ([1.5, float("inf"), 0.5], None, [1, -1, 0], ("0.5", "1.5")),
    "integers": ([*range(0, 210, 10)], None, [n / 20 for n in range(21)], ("0", "200")),
    "dates": (
        [datetime.date(2024, 1, 1) + datetime.timedelta(days=n) for n in range(21)],
        None,
        [n / 20 for n in range(21)],
        ("2024-01-01", "2024-01-21"),
    ),
    "times": (
        [NOON + datetime.timedelta(hours=n) for n in range(21)],
        pa.timestamp("s"),
        [n / 20 for n in range(21)],
        ("2024-01-01 12:00:00", "2024-01-02 08:00:00"),
    ),
}


@pytest.mark.parametrize("case", SCALES)
def test_scales(case: str) -> None:
    values, kind, wanted, ends = SCALES[case]
    found = colours_of("c", column(values, kind))
    assert isinstance(found, Scale)
    np.testing.assert_allclose(np.nan_to_num(found.values, nan=-1), wanted)
    assert found.ends == ends
    missing = wanted.count(-1)
    assert found.note == (f"Grey: {missing} without a number." if missing else "")


@pytest.mark.parametrize("values", [[1, 2, 1], [True, False], [[1], [1, 2]], [b"\xff", b"a"]])
def test_few_integers_and_other_types_are_groups(values: list[Any]) -> None:
    found = groups_of(values)
    assert len(found.groups) == 2
    assert found.codes.tolist() == [0, 1, 0][: len(values)]


@pytest.mark.parametrize("values", [[1.5, 1.5], [None, float("nan")]])
def test_floats_without_a_range_are_groups(values: list[Any]) -> None:
    assert isinstance(colours_of("c", column(values, pa.float64())), Groups)
