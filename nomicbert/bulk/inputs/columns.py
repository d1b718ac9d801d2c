"""The columns that inputs bring along: one schema for all rows of a job.

Where in the flow: a bulk job fixes its schema at the start (`carried_schema`); each output converts
rows to it (`tables`). Importing this module needs pyarrow.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nomicbert.bulk.inputs.arrow_rows import read_schema
from nomicbert.bulk.inputs.conversion import ADVICE, MISFITS
from nomicbert.bulk.inputs.csv_rows import read_header
from nomicbert.bulk.inputs.formats import DELIMITERS, OF_ARROW, InputFormat
from nomicbert.bulk.inputs.open_rows import open_rows
from nomicbert.bulk.inputs.opening import open_source
from nomicbert.bulk.inputs.rows import (
    EMBEDDING,
    LINE,
    ROW,
    SOURCE,
    Misfit,
    OnError,
    Reject,
    Row,
    Span,
)
from nomicbert.bulk.inputs.selection import SAMPLE_BYTES, SAMPLE_ROWS, Selection, listed
from nomicbert.bulk.inputs.sources import Source
from nomicbert.bulk.inputs.tables import (
    infer,
    infer_objects,
    plain,
    settled,
    table_of,
)

__all__ = ["Misfit", "carried_schema", "infer", "renamed", "table_of"]

# Many sources share these bytes, but each has LEAST_BYTES.
ALL_BYTES, LEAST_BYTES = 1 << 26, 1 << 14
# First rows that may be left out because they fit no column.
MOST_MISFITS = 100
# Names of the output's own columns.
RESERVED = (SOURCE, ROW, EMBEDDING)


def carried_schema(
    sources: Sequence[Source],
    *,
    field: str = "text",
    columns: Sequence[str] | None = None,
    on_error: OnError = "fail",
) -> pa.Schema:
    """The columns that the rows of all sources fill.

    Parquet and Arrow files state their columns, CSV and text files have strings only, JSON fields
    are inferred from the first rows.

    Args:
        sources: of the job.
        field: name of the field that holds the text.
        columns: names of the fields that are carried along; None for all.
        on_error: whether first rows that cannot be used are left out.

    Raises: ValueError: two sources differ in the type of a column, no source has a column that was
        asked for, or a first row cannot be used. OSError: reading failed.
    """
    merged, first = pa.schema([]), dict[str, str]()
    done = set[pa.Schema]()
    for source, schema in _schemas(sources, field, columns, on_error):
        if schema not in done:
            merged = _merged(merged, schema, first, source.name)
            done.add(schema)
    if columns is not None:
        merged = pa.schema([merged.field(name) for name in dict.fromkeys(columns)])
    schema = settled(merged)
    _check_parquet(schema)
    return schema


def _schemas(
    sources: Sequence[Source], field: str, columns: Sequence[str] | None, on_error: OnError
) -> Iterator[tuple[Source, pa.Schema]]:
    """The carried columns of each source; raises at the end if no source has one of `columns`."""
    known = dict[str, None]()  # names of all columns, carried or not
    most_bytes = max(LEAST_BYTES, min(SAMPLE_BYTES, ALL_BYTES // max(1, len(sources))))
    for source in sources:
        yield source, _schema_of(source, field, columns, on_error, most_bytes, known)
    if missing := [name for name in columns or () if name not in known]:
        raise ValueError(f"no input has the column {missing[0]!r}: there are {listed(known)}")


def renamed(schema: pa.Schema) -> pa.Schema:
    """The schema with other names for the columns that the output has itself.

    Raises: ValueError: there is a column of the other name too.
    """
    names = [f"input_{name}" if name in RESERVED else name for name in schema.names]
    for name, new in zip(schema.names, names, strict=True):
        if name != new and new in schema.names:
            raise ValueError(
                f"the input's column {name!r} is carried as {new!r}, which is a column too: rename "
                "one, or leave it out with --columns"
            )
    return pa.schema([f.with_name(new) for f, new in zip(schema, names, strict=True)])


def _schema_of(
    source: Source,
    field: str,
    columns: Sequence[str] | None,
    on_error: OnError,
    most_bytes: int,
    known: dict[str, None],
) -> pa.Schema:
    """The carried columns of a source; the names of all that it has are added to `known`."""
    selection = Selection(field, on_null="empty")
    if source.format in (InputFormat.text, InputFormat.document):
        schema = pa.schema([(field, pa.string())])
    elif source.format is InputFormat.passages:
        if field == LINE:
            raise ValueError(
                f"passages have a column {LINE!r} for their first line: give their text another "
                "name with --field"
            )
        schema = pa.schema([(field, pa.string()), (LINE, pa.int64())])
    elif source.format in OF_ARROW:
        with open_source(source) as opened:
            schema = plain(read_schema(opened, source.format, selection))
    elif source.format in DELIMITERS:
        with open_source(source) as opened:
            names = read_header(opened, selection, DELIMITERS[source.format])
        schema = pa.schema([(name, pa.string()) for name in names])
    else:
        objects = _first_objects(source, selection, on_error, most_bytes)
        known.update(dict.fromkeys(name for _, fields in objects for name in fields))
        if columns is not None:
            objects = [(at, {n: f[n] for n in columns if n in f}) for at, f in objects]
        return _inferred(objects, on_error)
    known.update(dict.fromkeys(schema.names))
    return pa.schema([c for c in schema if columns is None or c.name in columns])


def _first_objects(
    source: Source, selection: Selection, on_error: OnError, most_bytes: int
) -> list[tuple[str, dict[str, Any]]]:
    """The first rows of a JSON or JSONL file: where each is, and its fields."""
    if source.once:
        raise ValueError(
            f"the columns of {source.name} are known only when it is read: save it to a file "
            "first, or write to a file instead of a folder"
        )
    found, size = [], 0
    with closing(open_rows(source, Span(0), 0, selection)) as entries:
        for entry in islice(entries, SAMPLE_ROWS):
            if isinstance(entry, Reject) and on_error == "fail":
                raise ValueError(source.message(entry))
            if isinstance(entry, Row) and isinstance(entry.fields, dict):
                found.append((entry.where, entry.fields))
                size += entry.size
            if size >= most_bytes:
                break
    return found


def _inferred(objects: list[tuple[str, dict[str, Any]]], on_error: OnError) -> pa.Schema:
    for left_out in range(MOST_MISFITS + 1):
        try:
            return infer_objects([fields for _, fields in objects])
        except Misfit as error:
            if on_error == "fail" or left_out == MOST_MISFITS:
                raise ValueError(f"{objects[error.index][0]}: {error.problem}") from error
            del objects[error.index]
    raise AssertionError("the last round returns or raises")


def _merged(merged: pa.Schema, schema: pa.Schema, first: dict[str, str], source: str) -> pa.Schema:
    """Both schemas as one; `first` names the source of each column's type."""
    found = pa.schema([])
    try:
        found = pa.unify_schemas([merged, schema], promote_options="permissive")
    except MISFITS as error:
        for column in schema:
            if column.name in merged.names:
                before = merged.field(column.name)
                try:
                    pa.unify_schemas(
                        [pa.schema([before]), pa.schema([column])], promote_options="permissive"
                    )
                except MISFITS:
                    raise ValueError(
                        f"the column {column.name!r} is {before.type} in {first[column.name]}, "
                        f"but {column.type} in {source}: leave it out with --columns, or convert "
                        "one of them"
                    ) from error
        raise
    for column in schema:
        if not pa.types.is_null(column.type):
            first.setdefault(column.name, source)
    return found


def _check_parquet(schema: pa.Schema) -> None:
    for column in schema:
        try:
            pq.ParquetWriter(pa.BufferOutputStream(), pa.schema([column])).close()
        except MISFITS as error:
            raise ValueError(
                f"Parquet does not support the column {column.name!r}: {error} {ADVICE}"
            ) from error
