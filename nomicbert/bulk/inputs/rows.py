"""The records that pass between inputs and outputs: rows, positions, and rows that were refused.

Where in the flow: a reader of a format yields `Row`s, `feed` hands their texts to the embedder and
keeps them until their vectors have come, an output writes both.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

# Names of the output's own columns: the vector; source and number of a row in a folder; the number
# of a row that has no other name in one file; the line that a passage begins at.
EMBEDDING, SOURCE, ROW, NUMBER, LINE = "embedding", "source", "row", "id", "line"
# And those of a chunk: the number of its row in the source, and its characters there.
CHUNK = CHUNK_ROW, CHUNK_START, CHUNK_END = "chunk_row", "chunk_start", "chunk_end"

OnError = Literal["fail", "skip"]
OnNull = Literal["error", "empty", "skip"]


class Position(NamedTuple):
    """Where reading goes on.

    Attributes:
        unit: index among the spans of a task.
        row: number of the next row in its source, from 0.
        offset: byte where that row begins, in files that can be read from there; else None.
    """

    unit: int
    row: int
    offset: int | None


class Span(NamedTuple):
    """Consecutive rows of one source.

    Attributes:
        source: index of the source.
        first: number of the first row.
        offset: byte where it begins, if known.
        stop: number of the row behind the last one; None for the end of the source.
    """

    source: int
    first: int = 0
    offset: int | None = None
    stop: int | None = None


class ArrowCells(NamedTuple):
    """The fields of a row that was read as Arrow: a row of a record batch."""

    batch: Any
    row: int


def batch_of(fields: "dict[str, Any] | ArrowCells") -> int | None:
    """What fields of one record batch have in common; None for those of an object."""
    return id(fields.batch) if isinstance(fields, ArrowCells) else None


@dataclass(frozen=True, slots=True)
class Row:
    """A row of an input.

    Attributes:
        name: of the source.
        unit: "line" or "row", for messages.
        number: of the row in its source, from 0.
        text: the text to embed.
        fields: all carried fields, the text included if it is one of them.
        line: for JSONL the object as it was read; else None.
        size: bytes of the source that this row took, an estimate in compressed files.
        after: the position behind it.
    """

    name: str
    unit: Literal["line", "row"]
    number: int
    text: str
    fields: "dict[str, Any] | ArrowCells"
    line: str | None
    size: int
    after: Position

    @property
    def where(self) -> str:
        """Source and number (from 1), for messages."""
        return f"{self.name}, {self.unit} {self.number + 1}"

    def reject(self, problem: str) -> "Reject":
        """The row as one that cannot be used."""
        return Reject(
            self.name, self.number, problem, self.text if self.line is None else self.line
        )


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that cannot be used, with on_error "skip".

    Attributes:
        name: of the source.
        number: of the row in its source, from 0.
        problem: what is wrong with it.
        content: the line or text, as far as it is readable; else None.
    """

    name: str
    number: int
    problem: str
    content: str | None


class RowError(ValueError):
    """A row that cannot be used, with on_error "fail"; the message names source and number."""


class Taken(NamedTuple):
    """A row whose vector has come.

    Attributes:
        row: the row.
        skipped: number of rows before it, and behind the row taken before, that have no text.
        rejects: the refused rows there.
    """

    row: Row
    skipped: int
    rejects: list[Reject]


class Rest(NamedTuple):
    """What follows the last row of an input.

    Attributes:
        after: the position at the end.
        skipped: number of rows behind the last row that have no text.
        rejects: the refused rows there.
    """

    after: Position
    skipped: int
    rejects: list[Reject]


class Misfit(ValueError):
    """A row that an output cannot hold.

    Attributes:
        index: of the row among those that were to be written.
        problem: what is wrong with it.
    """

    def __init__(self, index: int, problem: str) -> None:
        super().__init__(f"row {index}: {problem}")
        self.index = index
        self.problem = problem


# What a reader of a format yields: a row; None for one without a text, which is skipped; one that
# cannot be used; and, once, the position behind the last row.
Entry = Row | Reject | None | Position
