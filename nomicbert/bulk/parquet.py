"""Vectors and the fields of their rows -> Parquet, one row group per block.

Where in the flow: as in `writing`; the parts of a folder are opened here too. Importing this module
needs pyarrow.
"""

import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from nomicbert.bulk.inputs.columns import carried_schema
from nomicbert.bulk.inputs.conversion import ADVICE, MISFITS
from nomicbert.bulk.inputs.rows import CHUNK, EMBEDDING, NUMBER, SOURCE, OnError, Row
from nomicbert.bulk.inputs.sources import Source
from nomicbert.bulk.inputs.tables import infer, table_of
from nomicbert.bulk.writing import Vectors, Write, refuse_reserved


def vectors_column(vectors: Vectors) -> Any:
    """(n, width) vectors as a pa.FixedSizeListArray; its type is the same for n = 0."""
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])


def write_table(file: BinaryIO, columns: Mapping[str, Sequence[str]], vectors: Vectors) -> None:
    """Write columns of strings and, as the last one, their vectors."""
    table = pa.table({**columns, EMBEDDING: vectors_column(vectors)})
    with open_parquet(file, table.schema) as writer:
        writer.write_table(table)


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


def schema_of(
    sources: Sequence[Source],
    *,
    field: str,
    columns: Sequence[str] | None,
    on_error: OnError,
    numbered: Collection[str] = (),
) -> Any:
    """The columns of one file for all sources, without that of the vectors.

    Args:
        sources: of the job.
        field: name of the field that holds the text.
        columns: names of the fields that are carried; None for all.
        on_error: whether first rows that cannot be used are left out.
        numbered: names of the sources whose rows get a number, and with several also their source.

    Returns: pa.Schema; None if the first rows must decide, because a source cannot be read twice.
    Raises: ValueError: two sources differ in the type of a column, or there is no such column.
    """
    if any(source.once for source in sources):
        return None
    carried = carried_schema(sources, field=field, columns=columns, on_error=on_error)
    own = [pa.field(NUMBER, pa.int64())] if numbered else []
    own += [pa.field(SOURCE, pa.string())] if len(numbered) > 1 else []
    for column in own:
        if column.name in carried.names and carried.field(column.name).type != column.type:
            raise ValueError(
                f"the column {column.name!r} is {carried.field(column.name).type} in some inputs, "
                f"and {column.type} for the rows of text files, which have no other name: choose "
                "columns with --columns, or write text files to an output of their own"
            )
    own = [column for column in own if column.name not in carried.names]
    # a column of the input called `embedding` is refused with its first row
    return pa.schema([*own, *(column for column in carried if column.name != EMBEDDING)])


def with_chunk_columns(schema: Any) -> Any:
    """The columns of a file, pa.Schema, and those that tell what a row is a chunk of."""
    own = [pa.field(name, pa.int64()) for name in CHUNK]
    return pa.schema([*(column for column in schema if column.name not in CHUNK), *own])


@contextmanager
def parquet_writer(file: BinaryIO, empty: Vectors, schema: Any = None) -> Iterator[Write]:
    """Write a column for each field, and the vectors as a column of lists of fixed size.

    Args:
        file: the output.
        empty: (0, width), of the dtype of the vectors.
        schema: from `schema_of`; None takes the columns of the first rows.

    Yields: a function of n rows and their (n, width) vectors. It writes all of them or, if one has
        a field or value that does not fit the columns, raises a Misfit and writes none.
    """
    writer: Any = None

    def write(rows: list[Row], vectors: Vectors) -> None:
        nonlocal writer, schema
        refuse_reserved(rows)
        carried = infer(rows) if schema is None else schema
        columns = [*table_of(rows, carried).columns, vectors_column(vectors)]
        table = pa.Table.from_arrays(columns, [*carried.names, EMBEDDING])
        if writer is None:
            schema, writer = carried, open_parquet(file, table.schema)
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
