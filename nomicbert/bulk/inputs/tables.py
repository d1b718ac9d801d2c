"""The carried fields of rows -> Arrow tables.

Where in the flow: each output converts the rows whose vectors have come. Importing this module
needs pyarrow.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from nomicbert.bulk.inputs.conversion import ADVICE, MISFITS, does_not_fit, to_array
from nomicbert.bulk.inputs.rows import ArrowCells, Misfit, Row

# More columns are surely a mistake, and would take minutes and gigabytes per block.
MOST_COLUMNS = 1_000


def infer(rows: Sequence[Row]) -> pa.Schema:
    """The columns of rows, in the order of their appearance; strings where all are null.

    Raises: Misfit: a value does not fit those before it. ValueError: there are too many fields.
    """
    merged = pa.schema([])
    for begin, stop in _runs(rows):
        cells = rows[begin].fields
        if isinstance(cells, ArrowCells):
            schema = plain(cells.batch.schema)
        else:
            with _behind(begin):
                schema = infer_objects([row.fields for row in rows[begin:stop]])
        try:
            merged = pa.unify_schemas([merged, schema], promote_options="permissive")
        except MISFITS as error:
            raise Misfit(begin, f"{error} {ADVICE}") from error
    return settled(merged)


def infer_objects(objects: Sequence[Any]) -> pa.Schema:
    """The columns of JSON objects, with nulls where there is nothing else.

    Raises: Misfit: a value does not fit those before it. ValueError: there are too many fields.
    """
    names = list(dict.fromkeys(name for fields in objects for name in fields))
    if len(names) > MOST_COLUMNS:
        raise ValueError(
            f"the first {len(objects)} rows have {len(names)} different fields, but at most "
            f"{MOST_COLUMNS} can become columns {ADVICE}"
        )
    arrays = [to_array(name, [fields.get(name) for fields in objects]) for name in names]
    return pa.schema([pa.field(n, array.type) for n, array in zip(names, arrays, strict=True)])


def plain(schema: pa.Schema) -> pa.Schema:
    """The columns of an Arrow file as they are carried: with types that merge with others."""
    return pa.schema([pa.field(column.name, _plain(column.type)) for column in schema])


def settled(schema: pa.Schema) -> pa.Schema:
    """The columns with strings where only nulls have been seen."""
    return pa.schema([pa.field(column.name, _settled(column.type)) for column in schema])


def table_of(rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    """The carried fields of rows as a table; a field that a row does not have is null.

    Args:
        rows: in order.
        schema: the columns; rows must not have others.

    Raises: Misfit: a value does not fit its column without a loss.
    """
    tables = []
    for begin, stop in _runs(rows):
        fields: list[Any] = [row.fields for row in rows[begin:stop]]
        convert = _of_cells if isinstance(fields[0], ArrowCells) else _of_objects
        with _behind(begin):
            arrays = convert(fields, schema)
        tables.append(pa.Table.from_arrays(arrays, schema=schema))
    return pa.concat_tables(tables) if tables else schema.empty_table()


def repeated(
    batch: pa.RecordBatch, rows: Sequence[int], own: Mapping[str, Sequence[object]]
) -> pa.RecordBatch:
    """Rows of a record batch, each any number of times, with columns of their own.

    Args:
        batch: as it was read.
        rows: numbers in it, ascending.
        own: name -> a value for each of `rows`; it takes the place of a column of this name.
    """
    batch = batch.slice(rows[0], rows[-1] - rows[0] + 1)
    places = pa.array([row - rows[0] for row in rows], pa.int64())
    columns = {
        column.name: _as_type(batch.column(index), _plain(column.type)).take(places)
        for index, column in enumerate(batch.schema)
        if column.name not in own
    }
    columns |= {name: pa.array(values) for name, values in own.items()}
    names = [*dict.fromkeys([*batch.schema.names, *own])]
    return pa.RecordBatch.from_arrays([columns[name] for name in names], names)


def _runs(rows: Sequence[Row]) -> Iterator[tuple[int, int]]:
    """Ranges of consecutive rows of one record batch, or of no batch."""
    begin, last = 0, None
    for index, row in enumerate(rows):
        batch = row.fields.batch if isinstance(row.fields, ArrowCells) else None
        if index > begin and batch is not last:
            yield begin, index
            begin = index
        last = batch
    if rows:
        yield begin, len(rows)


def _plain(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(kind) else kind


def _settled(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_settled(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(inner.name, _settled(inner.type)) for inner in kind])
    return kind


def _unknown(row: int, names: set[str], schema: pa.Schema) -> Misfit:
    return Misfit(
        row,
        f"the field {min(names)!r} is not among those of the first rows, which are the columns: "
        f"{', '.join(map(repr, schema.names))} {ADVICE}",
    )


@contextmanager
def _behind(rows: int) -> Iterator[None]:
    """Count the rows in front of a part into its Misfit."""
    try:
        yield
    except Misfit as error:
        raise Misfit(rows + error.index, error.problem) from error


def _of_objects(objects: list[Any], schema: pa.Schema) -> list[pa.Array]:
    """The columns of JSON objects."""
    known = set(schema.names)
    for row, fields in enumerate(objects):
        if not fields.keys() <= known:
            raise _unknown(row, fields.keys() - known, schema)
    return [
        to_array(column.name, [fields.get(column.name) for fields in objects], column.type)
        for column in schema
    ]


def _of_cells(cells: list[ArrowCells], schema: pa.Schema) -> list[pa.Array]:
    """The columns of rows of one record batch."""
    batch, numbers = _range(cells)
    if new := set(batch.schema.names) - set(schema.names):
        raise _unknown(0, new, schema)
    arrays = []
    for column in schema:
        index = batch.schema.get_field_index(column.name)
        if index < 0:
            arrays.append(pa.nulls(len(cells), column.type))
        else:
            arrays.append(_cast(batch.column(index), column, numbers))
    return arrays


def _range(cells: list[ArrowCells]) -> tuple[pa.RecordBatch, list[int]]:
    """The part of a batch from the first to the last of some rows, and their numbers in it."""
    first = cells[0].row
    batch = cells[0].batch.slice(first, cells[-1].row - first + 1)
    return batch, [cell.row - first for cell in cells]


def _cast(array: pa.Array, column: pa.Field, numbers: list[int]) -> pa.Array:
    """Some elements of an array, ascending, as another type.

    Raises: Misfit: the type cannot hold one of them, or a string is not UTF-8.
    """
    try:
        found = _as_type(array, column.type)
        if len(numbers) < len(found):
            found = found.take(pa.array(numbers))
        found.validate(full=True)
    except MISFITS as error:
        if len(numbers) == 1:
            value = _shown(array)
            raise does_not_fit(0, column.name, value, f"a column of type {column.type}") from error
    else:
        return found
    # one by one: it may be an element that is not taken
    pieces = []
    for row, number in enumerate(numbers):
        with _behind(row):
            pieces.append(_cast(array.slice(number, 1), column, [0]))
    return pa.concat_arrays(pieces)


def _shown(array: pa.Array) -> Any:
    """The only element of an array, for a message."""
    try:
        return array[0].as_py()
    except UnicodeDecodeError:
        return array.cast(pa.large_binary())[0].as_py()


def _as_type(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if isinstance(array.type, pa.BaseExtensionType):
        return _as_type(array.storage, kind)
    if pa.types.is_dictionary(array.type):
        return _as_type(array.dictionary_decode(), kind)
    if array.type == kind:
        return array
    if pa.types.is_string_view(array.type) or pa.types.is_binary_view(array.type):
        return pa.array(array.to_pylist(), kind)  # older versions of pyarrow cannot cast it
    return array.cast(kind)
