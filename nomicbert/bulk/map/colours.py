"""A column -> the colour of each point: groups of equal values, or a scale of numbers.

Where in the flow: `write_map` colours the points with this; `page` and `picture` draw them with the
same hues, shapes and stops. Importing this module needs pyarrow.

Source: the hues are those of Okabe and Ito 2008, "Color Universal Design", which are told apart
with any colour vision; six are too few for 19 groups, so shapes tell more. The stops are those of
matplotlib's viridis.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from nomicbert.bulk.map.cells import as_strings

Codes: TypeAlias = npt.NDArray[np.int64]

HUES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
SHAPES = ("circle", "square", "triangle", "cross")
REST = "#999999"
STOPS = ("#440154", "#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#a0da39", "#fde725")
# Groups with a colour of their own.
MOST_GROUPS = 19


@dataclass(frozen=True)
class Group:
    """Points of one colour.

    Attributes:
        name: shown in the legend.
        count: number of its points.
        rest: it holds what has no group of its own, and is grey.
    """

    name: str
    count: int
    rest: bool = False


@dataclass(frozen=True)
class Groups:
    """A colour per group.

    Attributes:
        title: of the legend.
        groups: the largest first.
        codes: (n,) index of each point's group.
        note: what the legend does not show; "" for nothing.
    """

    title: str
    groups: tuple[Group, ...]
    codes: Codes
    note: str = ""

    @property
    def names(self) -> list[str]:
        """The name of each point's group."""
        return [self.groups[code].name for code in self.codes]


@dataclass(frozen=True)
class Scale:
    """A colour between two ends per point.

    Attributes:
        title: of the legend.
        values: (n,) float64 from 0 to 1; NaN for a point without a number.
        ends: the values at 0 and at 1, as shown.
        note: what the legend does not show; "" for nothing.
    """

    title: str
    values: npt.NDArray[np.float64]
    ends: tuple[str, str]
    note: str = ""


Colours: TypeAlias = Groups | Scale


def colours_of(name: str, column: Any) -> Colours:
    """The colours of a column: a scale for floats, times, and integers of many values; else groups.

    Args:
        name: of the column.
        column: pa.ChunkedArray of n values.
    """
    kind = column.type
    ordered = pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    countable = pa.types.is_integer(kind) or pa.types.is_temporal(kind)
    if countable and len(column.unique()) > MOST_GROUPS:
        ordered = True
    scale = _scale(name, column) if ordered else None
    return scale or _groups(name, column)


def grouped(title: str, names: Sequence[str], codes: Codes) -> Groups:
    """Groups with these names, the largest first.

    Args:
        title: of the legend.
        names: of the groups.
        codes: (n,) index into `names` of each point.
    """
    counts = np.bincount(codes, minlength=len(names))
    order = np.argsort(-counts, kind="stable")
    place = np.empty(len(names), np.int64)
    place[order] = np.arange(len(names))
    groups = tuple(Group(names[index], int(counts[index])) for index in order)
    return Groups(title, groups, place[codes])


def _scale(name: str, column: Any) -> Scale | None:
    """None if there are no two different numbers."""
    shown = as_strings(column)
    if pa.types.is_temporal(column.type):
        # of times and durations, the integers behind them
        width = 32 if column.type.bit_width == 32 else 64
        column = column.cast(pa.int32() if width == 32 else pa.int64())
    numbers = pc.cast(column, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    known = np.isfinite(numbers)
    if not known.any():
        return None
    places = np.flatnonzero(known)
    first = places[numbers[places].argmin()]
    last = places[numbers[places].argmax()]
    low, high = numbers[first], numbers[last]
    if low == high:
        return None
    with np.errstate(invalid="ignore"):  # of NaN and infinity
        values = np.where(known, (numbers - low) / (high - low), np.nan)
    missing = int((~known).sum())
    note = f"Grey: {missing:,} without a number." if missing else ""
    return Scale(name, values, (shown[int(first)].as_py(), shown[int(last)].as_py()), note)


def _groups(name: str, column: Any) -> Groups:
    encoded = as_strings(column, null="(none)").dictionary_encode()
    names = encoded.dictionary.to_pylist()
    all_groups = grouped(name, names, encoded.indices.to_numpy().astype(np.int64))
    if len(names) <= MOST_GROUPS + 1:
        return all_groups
    largest, others = all_groups.groups[:MOST_GROUPS], all_groups.groups[MOST_GROUPS:]
    rest = Group(f"other ({len(others):,} values)", sum(one.count for one in others), rest=True)
    note = f"The {MOST_GROUPS} most frequent of {len(names):,} values have a colour of their own."
    return Groups(name, (*largest, rest), np.minimum(all_groups.codes, MOST_GROUPS), note)
