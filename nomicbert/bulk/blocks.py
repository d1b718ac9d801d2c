"""From an open input to open outputs: texts -> vectors as they come -> blocks of rows -> a writer.

Where in the flow: what `nomicbert embed` does once its files are open; it puts `reading`, the
embedder and `writing` or `parquet` together.
"""

from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, closing
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np

from nomicbert.bulk.output import OutputFormat
from nomicbert.bulk.reading import Reader, Record
from nomicbert.bulk.writing import Vectors, Write, jsonl_writer, npy_writer
from nomicbert.embedder import Embedder
from nomicbert.errors import TextError
from nomicbert.runtime.allocator import give_back_freed_memory

# What is written together, as a row group of Parquet: so many rows at most, or so many letters.
BLOCK_ROWS = 4096
BLOCK_LETTERS = 1 << 24
NOT_FOR_FILES = {"convert_to_numpy", "convert_to_tensor", "output_value"}


def open_writer(
    form: OutputFormat, outputs: list[BinaryIO], empty: Vectors, field: str
) -> AbstractContextManager[Write]:
    """The writer of a format.

    Args:
        form: of the output.
        outputs: the file to write, and after it the one for the fields beside a .npy, if any.
        empty: (0, width), of the dtype of the vectors to come.
        field: the text's name among the fields.
    """
    if form is OutputFormat.parquet:
        from nomicbert.bulk.parquet import parquet_writer  # needs pyarrow

        return parquet_writer(outputs[0], empty)
    if form is OutputFormat.jsonl:
        return jsonl_writer(outputs[0], empty)
    return npy_writer(outputs[0], empty, outputs[1] if outputs[1:] else None, field)


class Written(NamedTuple):
    """What has been written.

    Attributes:
        vectors: how many.
        width: numbers of each.
        dtype: of the numbers.
        broken: how many vectors hold NaN or infinity.
        first_broken: where the text of the first of these stands; empty if there is none.
    """

    vectors: int
    width: int
    dtype: str
    broken: int
    first_broken: str


def embed_all(
    embedder: Embedder,
    reader: Reader,
    form: OutputFormat,
    outputs: list[BinaryIO],
    field: str = "text",
    *,
    show_progress_bar: bool | None = None,
    **keywords: Any,
) -> Written:
    """Embed every text of an input and write it with its vector, in memory that does not grow.

    Args:
        embedder: makes the vectors.
        reader: of the input, from `reading.open_reader`.
        form: of the output.
        outputs: see `open_writer`; from `output.open_output`, or any binary files.
        field: the text's name among the fields.
        show_progress_bar: as in `Embedder.encode`.
        **keywords: those of `Embedder.encode_iter`, but none that asks for something else than
            vectors in arrays.

    Raises: TypeError: such a keyword. ValueError: a text that cannot be embedded, with its line.
        What the reader, the writer and `encode_iter` raise.
    """
    if other := sorted(keywords.keys() & NOT_FOR_FILES):
        raise TypeError(f"a file takes vectors as arrays: {other[0]} has no meaning here")
    empty = embedder.encode([], **keywords)  # the width and dtype of all that come
    vectors = embedder.encode_iter(reader, show_progress_bar=show_progress_bar, **keywords)
    with (
        open_writer(form, outputs, empty, field) as write,
        # closes the progress bar, too, when writing fails
        closing(cast("Generator[Any, None, None]", vectors)),
    ):
        try:
            counts = _write_all(vectors, reader, write)
        except TextError as error:
            where = f"{reader.name}, line {error.index + 1}"
            raise ValueError(f"{where}: it {error.problem}") from error
    count, broken, first_broken = counts
    return Written(count, empty.shape[1], empty.dtype.name, broken, first_broken)


def _write_all(vectors: Iterator[Any], reader: Reader, write: Write) -> tuple[int, int, str]:
    """Write every vector with its record: how many there were, broken ones, the first of these."""
    count = broken = 0
    first = ""
    for records, rows in _blocks(vectors, reader):
        block = np.stack(rows)
        write(records, block)
        give_back_freed_memory()
        count += len(rows)
        unsound = np.flatnonzero(~np.isfinite(block).all(1))
        if len(unsound):
            broken += len(unsound)
            first = first or records[unsound[0]].where
    return count, broken, first


def _blocks(vectors: Iterator[Any], reader: Reader) -> Iterator[tuple[list[Record], list[Any]]]:
    """Neighbouring records with their vectors, as many as are written together."""
    records: list[Record] = []
    rows: list[Any] = []
    letters = 0
    for row in vectors:
        rows.append(row)
        records.append(record := reader.take())
        letters += len(record.source)
        if len(rows) >= BLOCK_ROWS or letters >= BLOCK_LETTERS:
            yield records, rows
            records, rows, letters = [], [], 0
    if rows:
        yield records, rows
