"""CSV and TSV -> rows.

Where in the flow: `open_rows` calls this reader with an open file.
Source: RFC 4180; the first record names the columns, all values are strings. TSV is the same with
    tabs, quotes included.
"""

import csv
from collections.abc import Iterator
from functools import partial
from itertools import islice

from nomicbert.bulk.inputs.formats import BOM
from nomicbert.bulk.inputs.opening import MOST_BYTES, Opened
from nomicbert.bulk.inputs.rows import Entry, Position, Reject, Row, Span
from nomicbert.bulk.inputs.selection import Selection, check_columns, not_utf8


class _Lines:
    """Iterator over decoded lines, for csv.reader, which asks for no more than a record needs.

    Attributes:
        read: bytes of all lines.
        record: the lines since the last `begin`.
        problem: why one of them cannot be decoded; else None.
    """

    def __init__(self, opened: Opened) -> None:
        self._next = iter(partial(opened.file.readline, MOST_BYTES), b"").__next__
        self._name = opened.name
        self.read = 0
        self.begin()

    def begin(self) -> None:
        """Begin a record."""
        self.record: list[str] = []
        self.problem: str | None = None
        self._until = self.read + MOST_BYTES

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        raw = self._next()
        if not self.read:
            self.read = len(raw)
            raw = raw.removeprefix(BOM)
        else:
            self.read += len(raw)
        if self.read >= self._until:
            raise ValueError(
                f"{self._name}: a row has more than {MOST_BYTES:,} bytes: is a quote missing?"
            )
        try:
            line = raw.decode()
        except UnicodeDecodeError as error:
            self.problem = self.problem or not_utf8(raw, error)
            line = raw.decode(errors="replace")
        self.record.append(line)
        return line


def read_csv(
    opened: Opened, span: Span, unit: int, selection: Selection, delimiter: str
) -> Iterator[Entry]:
    """The rows of a file of comma- or tab-separated values.

    Args:
        opened: the file, at its start.
        span: the rows to read.
        unit: index of the span, for positions.
        selection: what is taken of each row.
        delimiter: the character between values.

    Yields: the rows, those that cannot be used, and the position behind them. Blank lines are rows
        without a text.
    Raises: ValueError: there is no header, or it does not name the text's column. OSError: reading
        failed.
    """
    name, stop = opened.name, span.stop
    lines = _Lines(opened)
    records = _records(lines, delimiter)
    header = _header(records, name, selection)
    if opened.offsets and span.first and span.offset is not None:
        opened.file.seek(span.offset)
        lines.read = span.offset
    else:
        for _ in islice(records, span.first):
            pass
    number = span.first
    counted = int(lines.read * opened.ratio)  # bytes of the input up to the row before
    for record, problem in records if stop is None else islice(records, max(0, stop - number)):
        if problem is None and record and len(record) != len(header):
            problem = f"it has {len(record)} values, but the header names {len(header)} columns"
        number += 1
        if problem is not None:
            yield Reject(name, number - 1, problem, "".join(lines.record))
        elif not record:
            yield None
        else:
            fields = dict(zip(header, record, strict=True))
            after = Position(unit, number, lines.read if opened.offsets else None)
            size = max(0, int(lines.read * opened.ratio) - counted)
            counted += size
            text, carried = fields[selection.field], selection.carried(fields)
            yield Row(name, "row", number - 1, text, carried, None, size, after)
    yield Position(unit, number, lines.read if opened.offsets else None)


def read_header(opened: Opened, selection: Selection, delimiter: str) -> list[str]:
    """The names of the columns; arguments and errors as in `read_csv`."""
    return _header(_records(_Lines(opened), delimiter), opened.name, selection)


def _records(lines: _Lines, delimiter: str) -> Iterator[tuple[list[str], str | None]]:
    """Each record, and why it cannot be used; a blank line is an empty record."""
    # The limit belongs to the process; values of 128 KiB and more are not errors.
    csv.field_size_limit(max(csv.field_size_limit(), MOST_BYTES))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.begin()
        try:
            yield next(reader), lines.problem
        except StopIteration:
            return
        except csv.Error as error:
            yield [], f"not CSV: {error}"


def _header(
    records: Iterator[tuple[list[str], str | None]], name: str, selection: Selection
) -> list[str]:
    """The names of the columns: the first record that is not blank."""
    for header, problem in records:
        if problem is not None:
            raise ValueError(f"{name}, header: {problem}")
        if header:
            check_columns(header, name, selection)
            return header
    raise ValueError(f"{name} is empty: its first line must name the columns")
