"""Rows of Arrow record batches -> Python values for JSON.

Where in the flow: `writing` asks for the fields of rows that were read as Arrow. Importing this
module needs pyarrow.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from nomicbert.bulk.inputs.conversion import MISFITS
from nomicbert.bulk.inputs.rows import Misfit


def fields_of_batch(batch: Any, numbers: Sequence[int], before: int) -> list[dict[str, Any]]:
    """The fields of some rows of a record batch.

    Args:
        batch: pa.RecordBatch.
        numbers: of the rows, ascending.
        before: rows in front of them, for a Misfit.

    Returns: a dict per row. Times with nanoseconds, which Python's types lack, are ISO 8601.
    Raises: Misfit: Python has no such value, or a string is not UTF-8.
    """
    columns = [
        _values(name, column, numbers, before)
        for name, column in zip(batch.schema.names, batch.columns, strict=True)
    ]
    return [
        dict(zip(batch.schema.names, (column[row] for column in columns), strict=True))
        for row in range(len(numbers))
    ]


def without_form(columns: Iterable[Any]) -> Any:
    """The first of some pa.Field whose type has no form in JSON, such as bytes; else None."""
    return next((column for column in columns if _has_no_form(column.type)), None)


def _has_no_form(kind: Any) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return False  # may become a value that has one, such as a UUID
    if pa.types.is_dictionary(kind):
        return _has_no_form(kind.value_type)
    if pa.types.is_nested(kind):
        return any(_has_no_form(kind.field(index).type) for index in range(kind.num_fields))
    types = pa.types
    return any(
        is_one(kind)
        for is_one in (
            types.is_binary,
            types.is_large_binary,
            types.is_fixed_size_binary,
            types.is_binary_view,
            types.is_duration,
            types.is_interval,
        )
    )


def _values(name: str, column: Any, numbers: Sequence[int], before: int) -> list[Any]:
    first = numbers[0]
    try:
        values = _as_python(column.slice(first, numbers[-1] - first + 1))
        return [values[number - first] for number in numbers]
    except (*MISFITS, KeyError) as error:
        if len(numbers) == 1:
            raise Misfit(before, _problem(name, column.type, error)) from error
    # one by one: it may be a row that is not taken
    return [_values(name, column, [one], before + i)[0] for i, one in enumerate(numbers)]


def _problem(name: str, kind: Any, error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"the field {name!r}: a string is not UTF-8: {error}"
    return (
        f"the field {name!r} ({kind}) has no form in JSON: {error}: write to .parquet, or leave it "
        "out with --columns"
    )


def _as_python(array: Any) -> list[Any]:
    # to_pylist drops nanoseconds of times, and without pandas refuses those of timestamps
    return [_exact(cell) for cell in array] if "[ns" in str(array.type) else array.to_pylist()


def _exact(cell: Any) -> Any:
    """A value that may hold times with nanoseconds."""
    if not cell.is_valid:
        return None
    if isinstance(cell, pa.DictionaryScalar | pa.ExtensionScalar):
        return _exact(cell.value)
    if isinstance(cell, pa.StructScalar):
        names = [field.name for field in cell.type]
        if len(set(names)) < len(names):
            return cell.as_py()  # refuses equal names
        return {name: _exact(inner) for name, inner in cell.items()}
    if isinstance(cell, pa.MapScalar):
        return [[_exact(pair[0]), _exact(pair[1])] for pair in cell.values]
    if isinstance(cell, pa.ListScalar):  # the base of those of other kinds of lists
        return [_exact(inner) for inner in cell.values]
    kind = cell.type
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return _with_nanoseconds(cell, pa.timestamp("us", kind.tz))
    if pa.types.is_time64(kind) and kind.unit == "ns":
        return _with_nanoseconds(cell, pa.time64("us"))
    return cell.as_py()


def _with_nanoseconds(cell: Any, kind: Any) -> Any:
    """A time as Python has it, or as ISO 8601 with nine digits behind the point."""
    microseconds, rest = divmod(cell.value, 1000)
    at = pa.scalar(microseconds, kind).as_py()
    if not rest:
        return at
    text = at.isoformat(timespec="microseconds")
    end = text.index(".") + 7
    return f"{text[:end]}{rest:03}{text[end:]}"
