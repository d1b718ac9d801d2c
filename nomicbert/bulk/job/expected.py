"""The rows that the inputs have, next to those of a part.

Where in the flow: `check` opens one `Expected` per task and compares part after part with it, so
that the inputs are read once.
"""

from collections.abc import Callable, Iterable, Iterator

from nomicbert.bulk.inputs.feed import Feed
from nomicbert.bulk.inputs.rows import Position, Taken
from nomicbert.bulk.job.footer import Footer

# Source and row of a row.
Id = tuple[str, int]


class Expected:
    """The rows of a task, read from its inputs again."""

    def __init__(self, open_feed: Callable[[Position], Feed]) -> None:
        """`open_feed`: the texts of the task from a position on; no row is an error."""
        self._open = open_feed
        self._feed: Feed | None = None
        self._at: Position | None = None
        self._ahead: Taken | None = None

    def close(self) -> None:
        """Close the open source."""
        if self._feed is not None:
            self._feed.close()

    def compare(
        self, footer: Footer, rows: Iterable[tuple[str, int, str | None]], rejected: set[Id]
    ) -> str:
        """The first difference between a part and the inputs; empty if there is none.

        Args:
            footer: of the part.
            rows: its sources, rows and texts; a text is None if it was not carried.
            rejected: the rows that it leaves out.

        Raises: ValueError, OSError: an input cannot be read.
        """
        expected = self._rows(footer)
        skipped, refused = 0, set[Id]()
        for source, row, text in rows:
            for taken in expected:
                skipped += taken.skipped
                refused |= {(reject.name, reject.number) for reject in taken.rejects}
                own = taken.row.name, taken.row.number
                if own == (source, row):
                    if text not in (None, taken.row.text):
                        return f"{taken.row.where} has another text than the input"
                    break
                if own not in rejected:
                    return f"{taken.row.where} should follow, and not {source}, row {row + 1}"
                refused.add(own)
            else:
                return f"{source}, row {row + 1} is not one of its rows, or is there twice"
        for taken in expected:
            skipped += taken.skipped
            refused |= {(reject.name, reject.number) for reject in taken.rejects}
            own = taken.row.name, taken.row.number
            if own not in rejected:
                return f"{taken.row.where} is missing"
            refused.add(own)
        if footer.end and self._feed is not None:
            if not self._feed.finished:
                assert self._ahead is not None
                more = self._ahead.row.where
                return f"its footer states that the task ends here, but {more} follows"
            rest = self._feed.rest()
            skipped += rest.skipped
            refused |= {(reject.name, reject.number) for reject in rest.rejects}
        if skipped != footer.skipped:
            return f"its footer states {footer.skipped:,} rows without a text, not {skipped:,}"
        if wrong := sorted(refused ^ rejected):
            source, row = wrong[0]
            return f"its rejected rows are not those of the inputs: {source}, row {row + 1}"
        return ""

    def _rows(self, footer: Footer) -> Iterator[Taken]:
        """The rows from the start of a part to its end."""
        if self._feed is None or self._at is None or self._at[:2] != footer.start[:2]:
            self.close()
            self._feed, self._ahead = self._open(footer.start), None
        # unknown until all of its rows have been read
        self._at = None
        while True:
            if self._ahead is None:
                if next(self._feed, None) is None:
                    break
                self._ahead = self._feed.take()
            if self._ahead.row.after[:2] > footer.next[:2]:
                break
            found, self._ahead = self._ahead, None
            yield found
        self._at = footer.next


def in_order(
    rows: Iterable[tuple[str, int, str | None]],
    order: dict[str, int],
    first: tuple[int, int],
    stop: tuple[int, int],
) -> str:
    """The first row that is not behind the one before it; empty if there is none.

    Args:
        rows: of a part.
        order: index of each source.
        first: source and row that the part starts at.
        stop: those behind its end.
    """
    before = (first[0], first[1] - 1)
    for source, row, _ in rows:
        at = (order.get(source, -1), row)
        if not before < at < stop:
            return f"{source}, row {row + 1} is not in its place, or is there twice"
        before = at
    return ""
