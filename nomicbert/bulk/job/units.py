"""The rows of a job -> units, which are dealt out to its tasks.

Where in the flow: whoever begins a job of several tasks counts its rows once; the units are in the
manifest. Each is about a quarter of a task's share and lies in one source; unit u is done by task
u mod n. Files of lines are cut where a byte offset is known, so that a task need not read the
rows before its own.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from nomicbert.bulk.inputs.formats import OF_LINES, InputFormat
from nomicbert.bulk.inputs.open_rows import open_rows
from nomicbert.bulk.inputs.opening import open_source
from nomicbert.bulk.inputs.rows import Position, Row, Span
from nomicbert.bulk.inputs.selection import Selection
from nomicbert.bulk.inputs.sources import Source

# Units per task: more give a better balance, and more spans to open.
SHARES = 4
# Bytes and rows at most between two places where a source can be cut.
BLOCK = 1 << 20
STEP = 1 << 12
LINE_FEED = ord("\n")


class Mark(NamedTuple):
    """A place where a source can be cut.

    Attributes:
        row: number of the row behind it.
        offset: byte where that row begins, if reading can start there.
    """

    row: int
    offset: int | None


def undivided(sources: Sequence[Source]) -> tuple[tuple[Span, ...], ...]:
    """All sources whole, for the only task."""
    return (tuple(Span(index) for index in range(len(sources))),)


def divide(
    sources: Sequence[Source], selection: Selection, tasks: int
) -> tuple[tuple[Span, ...], ...]:
    """Units of all sources, dealt out.

    Args:
        sources: of the job.
        selection: what is taken of a row.
        tasks: their number.

    Returns: the spans of each task, in order.
    Raises: ValueError, OSError: a source cannot be read.
    """
    counted = [count(source, selection) for source in sources]
    share = max(1, -(-sum(rows for rows, _ in counted) // (SHARES * tasks)))
    units = [
        span
        for index, (rows, marks) in enumerate(counted)
        for span in cut(index, rows, marks, share)
    ]
    return tuple(tuple(units[task::tasks]) for task in range(tasks))


def cut(source: int, rows: int, marks: Sequence[Mark] | None, share: int) -> Iterator[Span]:
    """Spans of about equal length that cover a source.

    Args:
        source: its index.
        rows: their number.
        marks: where it can be cut; None for everywhere.
        share: rows of a unit.
    """
    count = max(1, round(rows / share))
    at = Mark(0, None)
    for index in range(1, count):
        wanted = rows * index // count
        if marks is None:
            mark = Mark(wanted, None)
        elif (found := bisect_left(marks, (wanted,))) < len(marks):
            mark = marks[found]
        else:
            break
        if at.row < mark.row < rows:
            yield Span(source, at.row, at.offset, mark.row)
            at = mark
    yield Span(source, at.row, at.offset, None)


def count(source: Source, selection: Selection) -> tuple[int, list[Mark] | None]:
    """The number of a source's rows, and where it can be cut (None: everywhere)."""
    if source.format in OF_LINES:
        return _count_lines(source)
    if source.format is InputFormat.parquet:
        import pyarrow.parquet as pq

        with source.place.open() as file:
            return pq.read_metadata(file).num_rows, None
    marks: list[Mark] = []
    end = Mark(0, None)
    for entry in open_rows(source, Span(0), 0, selection):
        after = entry.after if isinstance(entry, Row) else entry
        if isinstance(after, Position):
            end = Mark(after.row, after.offset)
            if not marks or end.row - marks[-1].row >= STEP:
                marks.append(end)
    return end.row, None if end.offset is None else marks


def _count_lines(source: Source) -> tuple[int, list[Mark] | None]:
    """As `count`, without a last line that has no line feed: it is in the last unit anyway."""
    rows = offset = 0
    marks: list[Mark] = []
    with open_source(source) as opened:
        while block := opened.file.read(BLOCK):
            ends = np.flatnonzero(np.frombuffer(block, np.uint8) == LINE_FEED)
            if opened.offsets:
                marked = range(0, len(ends), STEP)
                marks += [Mark(rows + at + 1, offset + int(ends[at]) + 1) for at in marked]
            rows += len(ends)
            offset += len(block)
        return rows, marks if opened.offsets else None
