"""Spans of sources -> texts for the embedder, and their rows once the vectors have come.

Where in the flow: the embedder reads texts ahead from a `Feed`; whoever writes the vectors takes
the rows in the same order. Memory holds the rows that were read and not taken.
"""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from functools import cached_property

from nomicbert.bulk.inputs.open_rows import open_rows
from nomicbert.bulk.inputs.rows import (
    Entry,
    OnError,
    OnNull,
    Position,
    Reject,
    Rest,
    Row,
    RowError,
    Span,
    Taken,
)
from nomicbert.bulk.inputs.selection import Selection
from nomicbert.bulk.inputs.sources import Source

# Sources whose first row is looked at before a model is loaded.
CHECKED = 100
# So many refused rows and none between them that can be used: not a few bad rows, and they are
# held in memory.
MOST_REJECTS = 100_000
START = Position(0, 0, None)


class Feed:
    """Iterator over the texts of spans, in order; `take` returns their rows in the same order.

    Attributes:
        field: name of the field that holds the text.
        finished: whether all spans were read to their end and every row has been taken.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        spans: Sequence[Span],
        *,
        field: str = "text",
        columns: Sequence[str] | None = None,
        on_error: OnError = "fail",
        on_null: OnNull = "error",
        start: Position = START,
    ) -> None:
        """Nothing is opened before the first text is asked for.

        Args:
            sources: all sources of the job.
            spans: the rows to read.
            field: name of the field that holds the text.
            columns: names of the fields that are carried along; None for all.
            on_error: what a row that cannot be used does: fail, or become a Reject.
            on_null: what a text that is null means.
            start: where in the spans to begin: the position behind the last row that is done.
        """
        self.field = field
        self._sources, self._spans = sources, spans
        self._selection = Selection(field, None if columns is None else tuple(columns), on_null)
        self._on_error, self._start = on_error, start
        self._reading = self._read()
        self._ended = False
        # Since the last row that was read.
        self._skipped, self._rejects = 0, list[Reject]()
        self._after = start
        # Rows handed out and not taken.
        self._out: deque[Taken] = deque()
        self._rows = self._bytes = 0

    def __iter__(self) -> "Feed":
        return self

    def __next__(self) -> str:
        """The next text.

        Raises: ValueError: a row that cannot be used, or a source that cannot be read as what it
            should be; the message names it. OSError: reading failed.
        """
        self._out.append(taken := next(self._reading))
        return taken.row.text

    @property
    def finished(self) -> bool:
        """Whether all spans were read to their end and every row has been taken."""
        return self._ended and not self._out

    def take(self) -> Taken:
        """Remove the oldest row; its skips and rejects are those since the row before it."""
        return self._out.popleft()

    def rest(self) -> Rest:
        """What follows the last row; to be called when `finished`."""
        return Rest(self._after, self._skipped, self._rejects)

    def reject(self, index: int, problem: str) -> None:
        """Drop a row that was handed out and not taken; it becomes a Reject.

        Args:
            index: of the row, 0 for the oldest.
            problem: what is wrong with it.
        """
        dropped = self._out[index]
        del self._out[index]
        rejects = [*dropped.rejects, dropped.row.reject(problem)]
        if index < len(self._out):
            after = self._out[index]
            skipped = dropped.skipped + after.skipped
            self._out[index] = Taken(after.row, skipped, rejects + after.rejects)
        else:
            self._skipped += dropped.skipped
            self._rejects = rejects + self._rejects

    def close(self) -> None:
        """Close the open source."""
        self._reading.close()

    def check_first_rows(self) -> None:
        """Read the first row of each source, up to `CHECKED`, to find mistakes early.

        Raises: ValueError, OSError: as in `__next__`.
        """
        for index in list(dict.fromkeys(span.source for span in self._spans))[:CHECKED]:
            if self._sources[index].once:
                continue
            with closing(self._open(Span(index), 0)) as entries:
                entry = next(entries)
                if isinstance(entry, Reject) and self._on_error == "fail":
                    raise RowError(self._sources[index].message(entry))

    @property
    def total_bytes(self) -> int | None:
        """Bytes of all spans; None if there is a pipe.

        An estimate for spans that do not cover their source, from the mean size of the rows so
        far. The files' sizes are looked up once.
        """
        if None in (sizes := self._sizes):
            return None
        mean = self._bytes / self._rows if self._rows else 0.0
        total = 0.0
        for (_, span), size in zip(self._remaining(), sizes, strict=True):
            if span.stop is not None:
                total += max(0, span.stop - span.first) * mean
            elif size is not None:
                before = span.first * mean if span.offset is None else span.offset
                total += max(0.0, size - before)
        return round(total)

    @cached_property
    def _sizes(self) -> list[int | None]:
        return [self._sources[span.source].place.size() for _, span in self._remaining()]

    def _remaining(self) -> Iterator[tuple[int, Span]]:
        """The spans from the start on, with their indices."""
        for unit in range(self._start.unit, len(self._spans)):
            span = self._spans[unit]
            if unit == self._start.unit and self._start.row > span.first:
                span = span._replace(first=self._start.row, offset=self._start.offset)
            yield unit, span

    def _open(self, span: Span, unit: int) -> Generator[Entry]:
        return open_rows(self._sources[span.source], span, unit, self._selection)

    def _read(self) -> Generator[Taken]:
        for unit, span in self._remaining():
            with closing(self._open(span, unit)) as entries:
                for entry in entries:
                    if isinstance(entry, Row):
                        taken = Taken(entry, self._skipped, self._rejects)
                        self._skipped, self._rejects = 0, []
                        self._rows += 1
                        self._bytes += entry.size
                        yield taken
                    elif entry is None:
                        self._skipped += 1
                    elif isinstance(entry, Reject):
                        self._add(entry, self._sources[span.source].message(entry))
                    else:
                        self._after = entry
        self._ended = True

    def _add(self, reject: Reject, message: str) -> None:
        if self._on_error == "fail":
            raise RowError(message)
        if len(self._rejects) == MOST_REJECTS:
            raise ValueError(
                f"{MOST_REJECTS:,} rows were refused and none between them could be used; the "
                f"last: {message}"
            )
        self._rejects.append(reject)
