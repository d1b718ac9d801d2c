"""Rows with their vectors -> a part: a Parquet file, and a file of the rows it leaves out.

    columns: those carried along | source: string | row: int64 | embedding: list of fixed size

Where in the flow: `run` opens a part when its first vectors have come and commits it at its last
row. Row groups are written as they fill, so memory holds one of them. The file of the rejected rows
is durable before the part appears.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nomicbert.bulk.inputs.columns import Misfit, renamed, table_of
from nomicbert.bulk.inputs.rows import (
    EMBEDDING,
    ROW,
    SOURCE,
    OnError,
    Position,
    Reject,
    Rest,
    Row,
    RowError,
    Taken,
)
from nomicbert.bulk.job.folder import Folder
from nomicbert.bulk.job.footer import Footer
from nomicbert.bulk.job.names import part_name, reject_name
from nomicbert.bulk.parquet import open_parquet, vectors_column
from nomicbert.bulk.writing import reject_line
from nomicbert.runtime.allocator import give_back_freed_memory

# Limits of a row group: rows, bytes of texts.
GROUP_ROWS = 8192
GROUP_BYTES = 1 << 24


@dataclass(frozen=True)
class Layout:
    """What all parts of a job have in common.

    Attributes:
        carried: pa.Schema of the carried columns, under the names of the inputs.
        schema: pa.Schema of a part.
        on_error: what a value does that does not fit its column.
    """

    carried: Any
    schema: Any
    on_error: OnError

    @classmethod
    def of(cls, carried: Any, empty: npt.NDArray[Any], on_error: OnError) -> "Layout":
        """`empty`: (0, width), of the dtype of the vectors."""
        own = [
            pa.field(SOURCE, pa.string()),
            pa.field(ROW, pa.int64()),
            pa.field(EMBEDDING, vectors_column(empty).type),
        ]
        return cls(carried, pa.schema([*renamed(carried), *own]), on_error)


class Part:
    """A part that is being written; ends with `commit` or `discard`.

    Attributes:
        taken: number of rows added, with those that did not fit.
        footer: what it holds so far, without the rows of the row group that is being filled.
    """

    def __init__(self, folder: Folder, layout: Layout, footer: Footer) -> None:
        """Open its temporary file.

        Raises: OSError, ValueError: it cannot be written, or Parquet does not support a column.
        """
        self.taken = 0
        self.footer = footer
        self._folder, self._layout = folder, layout
        self._rows: list[Row] = []
        self._vectors: list[npt.NDArray[Any]] = []
        self._tokens: list[int] = []
        self._cut: list[bool] = []
        self._bytes = 0
        self._reject_file: BinaryIO | None = None
        self._reject_files = ExitStack()
        with ExitStack() as files:
            file = files.enter_context(folder.write(part_name(footer.task, footer.number)))
            self._writer = open_parquet(file, layout.schema)
            self._files = files.pop_all()

    def add(self, taken: Taken, vector: npt.NDArray[Any], tokens: int, cut: bool) -> None:
        """Add a row.

        Args:
            taken: the row, with the skips and rejects before it.
            vector: (width,).
            tokens: of its text.
            cut: whether the text was truncated.

        Raises:
            OSError: writing failed.
            ValueError: a value does not fit its column, with on_error "fail".
        """
        row = taken.row
        self.taken += 1
        if taken.skipped or taken.rejects:
            self._leave_out(taken.skipped, taken.rejects)
        self._rows.append(row)
        self._vectors.append(vector)
        self._tokens.append(tokens)
        self._cut.append(cut)
        self._bytes += max(row.size, len(row.text))
        if len(self._rows) == GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._flush()

    def commit(self, after: Position, rest: Rest | None = None, end: bool = False) -> Footer:
        """Complete the part: it is durable when this returns.

        Args:
            after: where the next part starts.
            rest: skips and rejects behind the last row.
            end: whether the task ends here.

        Raises: as in `add`.
        """
        if rest is not None:
            self._leave_out(rest.skipped, rest.rejects)
        self._flush()
        self.footer = replace(self.footer, next=after, end=end)
        self._reject_files.close()
        self._writer.add_key_value_metadata(self.footer.metadata())
        self._writer.close()
        self._files.close()
        return self.footer

    def discard(self) -> None:
        """Remove the temporary files; to be called while the error is handled."""
        error = sys.exc_info()
        try:
            with suppress(OSError):
                self._writer.close()  # else its finalizer would write to a closed file later
        finally:
            self._reject_files.__exit__(*error)
            self._files.__exit__(*error)

    def _flush(self) -> None:
        """Write the row group."""
        if not self._rows:
            return
        vectors = np.stack(self._vectors)
        for first, stop, carried in self._tables(0, self._rows):
            self._write(first, stop, carried, vectors[first:stop])
        self._rows, self._vectors, self._tokens, self._cut = [], [], [], []
        self._bytes = 0
        give_back_freed_memory()

    def _write(self, first: int, stop: int, carried: Any, vectors: npt.NDArray[Any]) -> None:
        rows = self._rows[first:stop]
        columns = [
            *carried.columns,
            pa.array([row.name for row in rows], pa.string()),
            pa.array([row.number for row in rows], pa.int64()),
            vectors_column(vectors),
        ]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._layout.schema))
        broken: list[int] = []
        if vectors.dtype.kind == "f":
            broken = np.flatnonzero(~np.isfinite(vectors).all(1)).tolist()
        first_broken = rows[broken[0]].where if broken else ""
        self.footer = replace(
            self.footer,
            rows=self.footer.rows + len(rows),
            truncated=self.footer.truncated + sum(self._cut[first:stop]),
            tokens=self.footer.tokens + sum(self._tokens[first:stop]),
            size=self.footer.size + sum(row.size for row in rows),
            broken=self.footer.broken + len(broken),
            first_broken=self.footer.first_broken or first_broken,
        )

    def _tables(self, first: int, rows: list[Row]) -> Iterator[tuple[int, int, Any]]:
        """The carried columns of consecutive rows, by halves around those that do not fit."""
        try:
            table = table_of(rows, self._layout.carried)
        except Misfit as misfit:
            row = rows[misfit.index]
            if self._layout.on_error == "fail":
                raise RowError(f"{row.where}: {misfit.problem}") from misfit
            if len(rows) == 1:
                content = row.text if row.line is None else row.line
                self._leave_out(0, [Reject(row.name, row.number, misfit.problem, content)])
                return
        else:
            yield first, first + len(rows), table
            return
        half = len(rows) // 2
        yield from self._tables(first, rows[:half])
        yield from self._tables(first + half, rows[half:])

    def _leave_out(self, skipped: int, rejects: list[Reject]) -> None:
        self.footer = replace(
            self.footer,
            skipped=self.footer.skipped + skipped,
            rejected=self.footer.rejected + len(rejects),
        )
        if not rejects:
            return
        if self._reject_file is None:
            name = reject_name(self.footer.task, self.footer.number)
            self._reject_file = self._reject_files.enter_context(self._folder.write(name))
        for reject in rejects:
            self._reject_file.write(reject_line(reject))
