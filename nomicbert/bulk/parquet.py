"""Vectors and the fields of their records -> Parquet, one row group per block.

Where in the flow: as in `writing`; the parts of a folder are opened here too. Importing this module
needs pyarrow.
Source: pyarrow infers the columns' types from the first block.
"""

import io
import reprlib
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from nomicbert.bulk.inputs.rows import Misfit, Row
from nomicbert.bulk.writing import EMBEDDING, Vectors, Write, fields_of, refuse_reserved

# Raised by pyarrow for a value that a column cannot hold.
MISFITS = (ValueError, TypeError, OverflowError, NotImplementedError, RecursionError)
# More columns are surely a mistake, and would take minutes and gigabytes per block.
MOST_COLUMNS = 1000
# pyarrow writes deeper nesting (two levels of the format each), but no reader accepts the file.
DEEPEST = 30
ADVICE = "(a .jsonl output takes any object)"


def vectors_column(vectors: Vectors) -> Any:
    """(n, width) vectors as a pa.FixedSizeListArray; its type is the same for n = 0."""
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])


def open_parquet(file: BinaryIO, schema: Any) -> Any:
    """A pq.ParquetWriter with the settings of all our files.

    Floats rarely repeat: they are split into streams of first bytes, second bytes, ..., because the
    sign and exponent compress well alone. Columns of anything else, integer vectors included, use a
    dictionary: vectors of one byte per value take 17 MB so, and 26 MB split.

    Args:
        file: the output; stays open when the writer is closed.
        schema: pa.Schema, in which the column `embedding` holds the vectors.

    Raises: ValueError: Parquet does not support a column.
    """
    try:
        paths = _leaves(schema)
        split = f"{EMBEDDING}.list.element"
        # a column of the input may bear that very name
        is_float = pa.types.is_floating(schema.field(EMBEDDING).type.value_type)
        split = split if is_float and paths.count(split) == 1 else ""
        return pq.ParquetWriter(
            file,
            schema,
            compression="zstd",
            use_dictionary=[path for path in paths if path != split],
            column_encoding={split: "BYTE_STREAM_SPLIT"} if split else None,
            write_page_checksum=True,
        )
    except MISFITS as error:
        raise ValueError(f"Parquet does not support a column: {error} {ADVICE}") from error


def _leaves(schema: Any) -> list[str]:
    """The paths of the columns in a file: a nested column has several."""
    file = io.BytesIO()
    pq.write_metadata(schema, file)
    found = pq.ParquetFile(file).schema
    return [found.column(index).path for index in range(len(found))]


@contextmanager
def parquet_writer(file: BinaryIO, empty: Vectors) -> Iterator[Write]:
    """Write a column for each field, and the vectors as a column of lists of fixed size.

    Args:
        file: the output.
        empty: (0, width), of the dtype of the vectors.

    Yields: a function of n rows and their (n, width) vectors. The first call fixes the columns; it
        raises a Misfit for a field or value that does not fit them, and writes nothing then.
    """
    writer: Any = None

    def write(rows: list[Row], vectors: Vectors) -> None:
        nonlocal writer
        records = fields_of(rows)
        refuse_reserved(records)
        if writer is None:
            names = list(dict.fromkeys(name for record in records for name in record))
            if len(names) > MOST_COLUMNS:
                raise ValueError(
                    f"the first {len(records)} rows have {len(names)} different fields, but at "
                    f"most {MOST_COLUMNS} can become columns {ADVICE}"
                )
            columns = [_column(records, name) for name in names]
        else:
            known = writer.schema.names
            names = [name for name in known if name != EMBEDDING]
            _refuse_new_fields(records, names)
            columns = [_column(records, name, writer.schema.field(name).type) for name in names]
        columns.append(vectors_column(vectors))
        table = pa.Table.from_arrays(columns, [*names, EMBEDDING])
        if writer is None:
            writer = open_parquet(file, table.schema)
        writer.write_table(table)

    try:
        yield write
        if writer is None:
            write([], empty)
    except BaseException:
        if writer is not None:
            with suppress(OSError):
                writer.close()  # else its finalizer would write to a closed file later
        raise
    writer.close()


def _column(records: list[dict[str, Any]], name: str, kind: Any = None) -> Any:
    """One field of all records as a column, null if missing; `kind` None infers the type."""
    values = [record.get(name) for record in records]
    column = "the values before it" if kind is None else f"a column of type {kind}"
    try:
        array = pa.array(values, kind)
    except MISFITS:
        row = bisect_left(range(len(values)), True, key=lambda i: _misfits(values[: i + 1], kind))
    else:
        # pyarrow silently truncates some values: 2.5 to 2, keys that a struct lacks, ...
        row = _first_cut(values, array)
        if row < 0:
            return array
        column = f"a column of type {array.type}"
    if row == 0 and kind is None:
        column = "any column of Parquet"
    raise Misfit(
        row, f"the field {name!r}, {reprlib.repr(values[row])}, does not fit {column} {ADVICE}"
    )


def _first_cut(values: list[Any], array: Any) -> int:
    """The first row whose value is stored incompletely or nested too deeply; else -1."""
    if _depth(array.type) > DEEPEST:
        return max(range(len(values)), key=lambda i: _depth(pa.infer_type([values[i]])))
    kept = zip(values, array.to_pylist(), strict=True)
    return next((i for i, pair in enumerate(kept) if not _same(*pair)), -1)


def _depth(kind: Any) -> int:
    """Nesting depth of lists and structs."""
    if pa.types.is_list(kind):
        return 1 + _depth(kind.value_type)
    if pa.types.is_struct(kind):
        return 1 + max((_depth(field.type) for field in kind), default=0)
    return 0


def _misfits(values: list[Any], kind: Any) -> bool:
    try:
        pa.array(values, kind)
    except MISFITS:
        return True
    return False


def _same(value: Any, stored: Any) -> bool:
    """Whether a JSON value was stored completely; structs add the keys of other rows."""
    if isinstance(value, dict) and isinstance(stored, dict):
        return all(key in stored and _same(inner, stored[key]) for key, inner in value.items())
    if isinstance(value, list) and isinstance(stored, list):
        return all(map(_same, value, stored))
    if isinstance(value, bool) != isinstance(stored, bool):
        return False
    return bool(value == stored or value != value)  # NaN differs from itself


def _refuse_new_fields(records: list[dict[str, Any]], names: list[str]) -> None:
    known = set(names)
    for row, record in enumerate(records):
        if new := record.keys() - known:
            raise Misfit(
                row,
                f"the field {min(new)!r} is not among those of the first rows, "
                f"which are the columns: {', '.join(map(repr, names))} {ADVICE}",
            )
