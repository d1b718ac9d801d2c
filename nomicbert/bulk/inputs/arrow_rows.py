"""Parquet and Arrow IPC -> rows. Importing this module needs pyarrow.

Where in the flow: `open_rows` calls these readers with an open file. Rows keep their record batch,
so that the carried columns are never converted.
Source: the formats of Apache Parquet and Arrow; pyarrow reads them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nomicbert.bulk.inputs.compressed import Watched
from nomicbert.bulk.inputs.formats import IPC_FILE, InputFormat
from nomicbert.bulk.inputs.opening import Opened
from nomicbert.bulk.inputs.rows import ArrowCells, Entry, Position, Reject, Row, Span
from nomicbert.bulk.inputs.selection import Selection, check_columns, not_utf8

# Rows and bytes of a batch, at most; the bytes as far as a file's metadata tell them.
BATCH_ROWS = 8_192
BATCH_BYTES = 1 << 24
READ_BYTES = 1 << 20


@contextmanager
def _watching(opened: Opened) -> Iterator[Watched]:
    """The file for pyarrow, whose errors, which do not name it, become a ValueError that does."""
    file = Watched(opened.file)
    try:
        yield file
    except (pa.ArrowException, OSError) as error:
        if file.failed or isinstance(error, MemoryError):
            raise
        raise ValueError(f"{opened.name} is damaged: {error}") from error


def read_schema(opened: Opened, form: InputFormat, selection: Selection) -> pa.Schema:
    """The columns of a Parquet or Arrow file; errors as in `read_parquet`."""
    with _watching(opened) as watched:
        if form is InputFormat.parquet:
            schema = pq.ParquetFile(watched).schema_arrow
        else:
            schema, _ = _open_ipc(watched)
    _check_schema(schema, opened.name, selection)
    return schema


class _Rows:
    """Record batches, in order -> the rows of a span.

    Attributes:
        number: of the first row behind the batches.
    """

    def __init__(self, name: str, span: Span, unit: int, selection: Selection) -> None:
        self.number = 0
        self._name, self._span, self._unit, self._selection = name, span, unit, selection
        # Bytes of the rows so far, and those that rows were given.
        self._bytes, self._given = 0.0, 0

    @property
    def complete(self) -> bool:
        """Whether the span ends before the next batch."""
        return self._span.stop is not None and self.number >= self._span.stop

    def position(self) -> Position:
        """The position behind the last row."""
        stop = self._span.stop
        return Position(self._unit, self.number if stop is None else min(self.number, stop), None)

    def of(self, batch: pa.RecordBatch, size: float) -> Iterator[Entry]:
        """The rows of the next batch, which took `size` bytes of the file."""
        before, unit, name, selection = self.number, self._unit, self._name, self._selection
        self.number += (count := batch.num_rows)
        first, stop = max(0, self._span.first - before), count
        if self._span.stop is not None:
            stop = min(count, self._span.stop - before)
        if first >= stop:
            return
        texts = _texts(batch.column(batch.schema.get_field_index(selection.field)))
        if selection.columns is not None:
            batch = batch.select([n for n in batch.schema.names if n in selection.columns])
        for row in range(first, stop):
            self._bytes += size / count
            number, text = before + row, texts[row]
            if isinstance(text, bytes):
                yield Reject(name, number, _not_utf8(text), text.decode(errors="replace"))
                continue
            if text is None:
                try:
                    text = selection.other(text)
                except ValueError as error:
                    yield Reject(name, number, str(error), None)
                    continue
                if text is None:
                    yield None
                    continue
            own = int(self._bytes) - self._given
            self._given += own
            after = Position(unit, number + 1, None)
            yield Row(name, "row", number, text, ArrowCells(batch, row), None, own, after)


def _texts(column: pa.Array) -> list[Any]:
    """The texts of a column: strings, None, and bytes that are not UTF-8."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()  # 30 times faster than to_pylist of a dictionary
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        raw = column.cast(pa.large_binary()).to_pylist()
        return [value if value is None else _decoded(value) for value in raw]


def _decoded(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _not_utf8(value: bytes) -> str:
    try:
        value.decode()
    except UnicodeDecodeError as error:
        return not_utf8(value, error)
    raise AssertionError("it is UTF-8")


def read_parquet(opened: Opened, span: Span, unit: int, selection: Selection) -> Iterator[Entry]:
    """The rows of a Parquet file; row groups before the span are not read.

    Args:
        opened: the file, at its start.
        span: the rows to read.
        unit: index of the span, for positions.
        selection: what is taken of each row.

    Yields: the rows, those that cannot be used, and the position behind them.
    Raises: ValueError: the text's column is missing or holds no strings, or the file is damaged.
        OSError: reading failed.
    """
    rows = _Rows(opened.name, span, unit, selection)
    with _watching(opened) as watched:
        file = pq.ParquetFile(watched, buffer_size=READ_BYTES, pre_buffer=False)
        _check_schema(file.schema_arrow, opened.name, selection)
        names = None
        if selection.columns is not None:
            wanted = {*selection.columns, selection.field}
            names = [name for name in file.schema_arrow.names if name in wanted]
        for index in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(index)
            if rows.complete:
                break
            if not group.num_rows or rows.number + group.num_rows <= span.first:
                rows.number += group.num_rows
                continue
            compressed = [group.column(i).total_compressed_size for i in range(group.num_columns)]
            size = sum(compressed) / group.num_rows
            most = BATCH_BYTES * group.num_rows // max(1, group.total_byte_size)
            batches = file.iter_batches(
                max(1, min(BATCH_ROWS, most)), [index], names, use_threads=False
            )
            for batch in batches:
                yield from rows.of(batch, size * batch.num_rows)
    yield rows.position()


def read_arrow(opened: Opened, span: Span, unit: int, selection: Selection) -> Iterator[Entry]:
    """The rows of an Arrow IPC file or stream; the rest as in `read_parquet`.

    Memory holds a record batch of the file, which its writer has chosen.
    """
    rows = _Rows(opened.name, span, unit, selection)
    with _watching(opened) as watched:
        schema, batches = _open_ipc(watched)
        _check_schema(schema, opened.name, selection)
        for batch in batches:
            size = batch.get_total_buffer_size() / max(1, batch.num_rows)
            for begin in range(0, batch.num_rows, BATCH_ROWS):
                piece = batch.slice(begin, BATCH_ROWS)
                yield from rows.of(piece, size * piece.num_rows)
            if rows.complete:
                break
    yield rows.position()


def _open_ipc(file: Watched) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """The schema and the batches of an Arrow IPC file or stream."""
    if not file.seekable():
        stream = pa.ipc.open_stream(file)
        return stream.schema, iter(stream)
    magic = file.read(len(IPC_FILE))
    file.seek(0)
    if magic != IPC_FILE:
        stream = pa.ipc.open_stream(file)
        return stream.schema, iter(stream)
    reader = pa.ipc.open_file(file)
    return reader.schema, map(reader.get_batch, range(reader.num_record_batches))


def _check_schema(schema: pa.Schema, name: str, selection: Selection) -> None:
    """Check the columns of a source.

    Raises: ValueError: there is no column of the text, or it does not hold strings.
    """
    check_columns(schema.names, name, selection)
    kind = schema.field(selection.field).type
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    known = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    if not any(is_known(inner) for is_known in (*known, pa.types.is_null)):
        raise ValueError(
            f"the column {selection.field!r} of {name} must hold strings, not {kind}: pass the "
            "name of the text's column with --field"
        )
