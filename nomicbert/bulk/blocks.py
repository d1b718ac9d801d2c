"""From an open input to open outputs: texts -> stream of vectors -> blocks of rows -> a writer.

Where in the flow: the main loop of `nomicbert embed` once its files are open; it connects
`reading`, the embedder, and `writing` or `parquet`.
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

# Limits of a block, which is written at once (in Parquet as a row group): rows, characters.
BLOCK_ROWS = 4096
BLOCK_CHARACTERS = 1 << 24
NOT_FOR_FILES = {"convert_to_numpy", "convert_to_tensor", "output_value"}


def open_writer(
    form: OutputFormat, outputs: list[BinaryIO], empty: Vectors, field: str
) -> AbstractContextManager[Write]:
    """The writer of a format.

    Args:
        form: of the output.
        outputs: the file of the vectors; for .npy optionally a second one for the other fields.
        empty: (0, width), of the dtype of the vectors to come.
        field: name of the field that holds the text.
    """
    if form is OutputFormat.parquet:
        from nomicbert.bulk.parquet import parquet_writer  # needs pyarrow

        return parquet_writer(outputs[0], empty)
    if form is OutputFormat.jsonl:
        return jsonl_writer(outputs[0], empty)
    return npy_writer(outputs[0], empty, outputs[1] if outputs[1:] else None, field)


class Written(NamedTuple):
    """Summary of the output.

    Attributes:
        vectors: number of vectors.
        width: elements of each vector.
        dtype: of the elements.
        broken: number of vectors with NaN or infinity.
        first_broken: input and line of the first broken vector's text; empty if there is none.
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
    """Embed every text of an input and write it with its vector, in constant memory.

    Args:
        embedder: computes the vectors.
        reader: of the input, from `reading.open_reader`.
        form: of the output.
        outputs: see `open_writer`; from `output.open_output`, or any binary files.
        field: name of the field that holds the text.
        show_progress_bar: as in `Embedder.encode`.
        **keywords: those of `Embedder.encode_iter`, except NOT_FOR_FILES.

    Raises: TypeError: a keyword of NOT_FOR_FILES. ValueError: a text that cannot be embedded; the
        message names its line. Errors of the reader, the writer and `encode_iter`.
    """
    if other := sorted(keywords.keys() & NOT_FOR_FILES):
        raise TypeError(f"vectors are written to a file as arrays: omit the keyword {other[0]}")
    empty = embedder.encode([], **keywords)  # has the width and dtype of all vectors
    vectors = embedder.encode_iter(reader, show_progress_bar=show_progress_bar, **keywords)
    with (
        open_writer(form, outputs, empty, field) as write,
        # also closes the progress bar when writing fails
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
    """Write all vectors with their records: number of vectors, number broken, first broken."""
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
    """Group consecutive records and their vectors into blocks."""
    records: list[Record] = []
    rows: list[Any] = []
    characters = 0
    for row in vectors:
        rows.append(row)
        records.append(record := reader.take())
        characters += len(record.source)
        if len(rows) >= BLOCK_ROWS or characters >= BLOCK_CHARACTERS:
            yield records, rows
            records, rows, characters = [], [], 0
    if rows:
        yield records, rows
