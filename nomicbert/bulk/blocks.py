"""From a feed of texts to one file: windows of vectors -> blocks of rows -> a writer.

Where in the flow: the main loop of `nomicbert embed` for an output that is one file. It connects
`windows` with `writing` or `parquet`, in memory that does not grow with the input.
"""

from collections.abc import Collection, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from nomicbert.bulk.chunks import in_chunks
from nomicbert.bulk.inputs.feed import Feed
from nomicbert.bulk.inputs.rows import NUMBER, SOURCE, Misfit, OnError, Reject, Row, RowError, Taken
from nomicbert.bulk.progress import BulkProgress
from nomicbert.bulk.windows import windows
from nomicbert.bulk.writing import Vectors, Write, reject_line
from nomicbert.runtime.allocator import give_back_freed_memory

if TYPE_CHECKING:
    from nomicbert.bulk.encoding import Encoder, Window

# Limits of a block, which is written at once (in Parquet as a row group): rows, bytes of input.
BLOCK_ROWS = 8192
BLOCK_BYTES = 1 << 24


@dataclass(frozen=True)
class Written:
    """Summary of the output.

    Attributes:
        vectors: number of vectors.
        width: elements of each vector.
        dtype: of the elements.
        tokens: of all texts.
        truncated: number of texts that were cut.
        skipped: number of rows without a text: blank lines of JSONL, and nulls by policy.
        rejected: number of rows that could not be used.
        broken: number of vectors with NaN or infinity.
        first_broken: source and number of the first broken vector's row; empty if there is none.
    """

    vectors: int
    width: int
    dtype: str
    tokens: int
    truncated: int
    skipped: int
    rejected: int
    broken: int
    first_broken: str


def embed_all(
    encoder: "Encoder",
    feed: Feed,
    write: Write,
    progress: BulkProgress,
    *,
    rejects: BinaryIO | None = None,
    numbered: Collection[str] = (),
) -> Written:
    """Embed every text of a feed and write its row with its vector.

    Args:
        encoder: computes the vectors.
        feed: of the input.
        write: from `output.open_writer`.
        progress: counts rows and tokens.
        rejects: receives the rows that cannot be used, as JSONL; None: such a row is an error. The
            feed must have the same policy.
        numbered: names of the sources whose rows get a field `id`, their number in the output, and
            if there are several a field `source`, the name of the row's own.

    Raises: ValueError: a row that cannot be embedded or written; the message names it.
        RuntimeError: the encoder gave fewer vectors than it took texts. Errors of the feed, the
        encoder and the writer.
    """
    output = _Output(write, rejects, numbered)
    on_error: OnError = "fail" if rejects is None else "skip"
    # closing ends the encoder's stream when writing fails
    with closing(windows(encoder, feed, progress, on_error)) as found:
        for taken, vectors in _blocks(_taken(found, feed, output, progress)):
            output.add(taken, vectors)
    if not feed.finished:
        raise RuntimeError("the encoder ended before all of its texts had vectors")
    rest = feed.rest()
    output.leave_out(rest.skipped, rest.rejects)
    return Written(
        vectors=output.rows,
        width=encoder.empty.shape[1],
        dtype=encoder.empty.dtype.name,
        tokens=output.tokens,
        truncated=output.truncated,
        skipped=output.skipped,
        rejected=output.rejected,
        broken=output.broken,
        first_broken=output.first_broken,
    )


class _Output:
    """Writes blocks, and counts as `Written` does."""

    def __init__(
        self,
        write: Write,
        rejects: BinaryIO | None,
        numbered: Collection[str],
    ) -> None:
        self._write, self._rejects, self._numbered = write, rejects, numbered
        self.rows = self.tokens = self.truncated = self.skipped = self.rejected = self.broken = 0
        self.first_broken = ""

    def leave_out(self, skipped: int, rejects: Iterable[Reject]) -> None:
        """Count rows that get no vector."""
        self.skipped += skipped
        for reject in rejects:
            assert self._rejects is not None
            self.rejected += 1
            self._rejects.write(reject_line(reject))

    def add(self, taken: list[Taken], vectors: Vectors) -> None:
        """Write rows that came one after the other."""
        self._add(taken, vectors)
        give_back_freed_memory()

    def _add(self, taken: list[Taken], vectors: Vectors) -> None:
        """Write rows; by halves if one does not fit, until it is alone.

        The refused rows in front of a row are left out together with it, so that they are noted in
        their order.
        """
        rows = [one.row for one in taken]
        try:
            self._write([self._named(row, i) for i, row in enumerate(rows, self.rows)], vectors)
        except Misfit as error:
            row = rows[error.index]
            if self._rejects is None:
                raise RowError(f"{row.where}: {error.problem}") from error
            if len(rows) == 1:
                self.leave_out(taken[0].skipped, [*taken[0].rejects, row.reject(error.problem)])
                return
            half = len(rows) // 2
            self._add(taken[:half], vectors[:half])
            self._add(taken[half:], vectors[half:])
            return
        for one in taken:
            self.leave_out(one.skipped, one.rejects)
        self.rows += len(rows)
        unsound = np.flatnonzero(~np.isfinite(vectors).all(1))
        if len(unsound):
            self.broken += len(unsound)
            self.first_broken = self.first_broken or rows[unsound[0]].where

    def _named(self, row: Row, number: int) -> Row:
        """The row with the fields that tell which it is, if it has none of its own."""
        if row.name not in self._numbered or not isinstance(row.fields, dict):
            return row
        name = {SOURCE: row.name} if len(self._numbered) > 1 else {}
        return replace(row, fields={NUMBER: number, **name, **row.fields})


def _taken(
    found: "Iterable[Window]", feed: Feed, output: _Output, progress: BulkProgress
) -> Iterator[tuple[list[Taken], Vectors]]:
    """The rows of each window with their vectors, counted."""
    for window in found:
        taken = [feed.take() for _ in window.lengths]
        tokens = sum(window.lengths)
        output.tokens += tokens
        output.truncated += len(window.cut)
        progress.passed(len(taken), sum(one.row.size for one in taken), tokens)
        if window.chunks is not None:
            taken = in_chunks(taken, window.chunks, feed.field)
        yield taken, window.vectors


def _blocks(
    found: Iterable[tuple[list[Taken], Vectors]],
) -> Iterator[tuple[list[Taken], Vectors]]:
    """Regroup rows into blocks."""
    taken: list[Taken] = []
    parts: list[Vectors] = []
    size = 0
    for some, vectors in found:
        start = 0
        for end, one in enumerate(some, 1):
            taken.append(one)
            # of a compressed file a row's size is that of its compressed bytes
            size += max(one.row.size, len(one.row.line or one.row.text))
            if len(taken) >= BLOCK_ROWS or size >= BLOCK_BYTES:
                yield taken, np.concatenate([*parts, vectors[start:end]])
                taken, parts, size, start = [], [], 0, end
        parts.append(vectors[start:])
    if taken:
        yield taken, np.concatenate(parts)
