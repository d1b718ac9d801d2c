"""Vectors as they come -> blocks of rows -> the writer of a format.

Where in the flow: the last step of `nomicbert embed`, between `Embedder.encode_iter` with the
reader behind it and the files that are open.
"""

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from nomicbert.bulk.output import OutputFormat
from nomicbert.bulk.reading import Reader, Record
from nomicbert.bulk.writing import Vectors, Write, jsonl_writer, npy_writer

# What is written together, as a row group of Parquet: so many rows at most, or so many letters.
BLOCK_ROWS = 4096
BLOCK_LETTERS = 1 << 24


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
        vectors: that were written.
        broken: those of them that hold NaN or infinity.
        first_broken: where the text of the first of these stands; empty if there is none.
    """

    vectors: int
    broken: int
    first_broken: str


def write_all(vectors: Iterator[Any], reader: Reader, write: Write) -> Written:
    """Write every vector with its record.

    Args:
        vectors: rows, (width,) each.
        reader: of the texts that they belong to.
        write: an open writer's.

    Returns: how many there were, and how many of them hold NaN or infinity.
    """
    count = broken = 0
    first = ""
    give_back = _trimmer()
    for records, rows in _blocks(vectors, reader):
        block = np.stack(rows)
        write(records, block)
        give_back()
        count += len(rows)
        unsound = np.flatnonzero(~np.isfinite(block).all(1))
        if len(unsound):
            broken += len(unsound)
            first = first or records[unsound[0]].where
    return Written(count, broken, first)


def _trimmer() -> Callable[[], object]:
    """What returns freed memory to the system, where the C library (glibc) offers it.

    It would keep the room of every large tensor otherwise, in pieces that no later one fits, and a
    process that runs for hours would seem to grow.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    return (lambda: None) if trim is None else (lambda: trim(0))


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
