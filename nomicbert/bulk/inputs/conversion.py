"""JSON values -> an Arrow array that holds every one of them completely, or an error.

Where in the flow: `tables` asks for one array per column. Importing this module needs pyarrow,
which infers types, but stores some values incompletely without an error: 2.5 as the integer 2,
structs without the keys that their type lacks.
"""

import reprlib
from bisect import bisect_left
from typing import Any

import pyarrow as pa

from nomicbert.bulk.inputs.rows import Misfit

# Raised by pyarrow for a value that a column cannot hold.
MISFITS = (ValueError, TypeError, OverflowError, NotImplementedError, RecursionError)
# pyarrow writes deeper nesting (two levels of the format each), but no reader accepts the file.
DEEPEST = 30
ADVICE = "(choose columns with --columns; a .jsonl output takes any object)"


def to_array(name: str, values: list[Any], kind: pa.DataType | None = None) -> Any:
    """One field of consecutive rows as an array; None is null.

    Args:
        name: of the field, for messages.
        values: JSON values.
        kind: type of the array; None infers it.

    Raises: Misfit: a value does not fit the type, or those before it.
    """
    column = "the values before it" if kind is None else f"a column of type {kind}"
    try:
        array = pa.array(values, kind)
    except MISFITS:
        row = bisect_left(range(len(values)), True, key=lambda i: _misfits(values[: i + 1], kind))
    else:
        row = _first_cut(values, array)
        if row < 0:
            return array
        column = f"a column of type {array.type}"
    if row == 0 and kind is None:
        column = "any column of Parquet"
    raise does_not_fit(row, name, values[row], column)


def does_not_fit(row: int, name: str, value: Any, column: str) -> Misfit:
    """The error for a value that does not fit a column."""
    return Misfit(row, f"the field {name!r}, {reprlib.repr(value)}, does not fit {column} {ADVICE}")


def _misfits(values: list[Any], kind: pa.DataType | None) -> bool:
    try:
        pa.array(values, kind)
    except MISFITS:
        return True
    return False


def _first_cut(values: list[Any], array: Any) -> int:
    """The first row whose value is stored incompletely or nested too deeply; else -1."""
    if pa.types.is_string(array.type):
        return -1  # holds nothing but strings
    if _depth(array.type) > DEEPEST:
        return max(range(len(values)), key=lambda i: _depth(pa.infer_type([values[i]])))
    kept = zip(values, array.to_pylist(), strict=True)
    return next((i for i, pair in enumerate(kept) if not _same(*pair)), -1)


def _depth(kind: pa.DataType) -> int:
    """Nesting depth of lists and structs."""
    if pa.types.is_list(kind):
        return 1 + _depth(kind.value_type)
    if pa.types.is_struct(kind):
        return 1 + max((_depth(field.type) for field in kind), default=0)
    return 0


def _same(value: Any, stored: Any) -> bool:
    """Whether a JSON value was stored completely; structs add the keys of other rows."""
    if isinstance(value, dict) and isinstance(stored, dict):
        return all(key in stored and _same(inner, stored[key]) for key, inner in value.items())
    if isinstance(value, list) and isinstance(stored, list):
        return all(map(_same, value, stored))
    if isinstance(value, bool) != isinstance(stored, bool):
        return False
    return bool(value == stored or value != value)  # NaN differs from itself
