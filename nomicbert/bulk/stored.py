"""A folder of vectors that `nomicbert embed` has written -> its vectors and carried columns.

    from nomicbert.bulk.stored import open_vectors

    stored = open_vectors("vectors/")
    vectors = stored.vectors()  # (rows, width) float32
    nearest = stored.take([17, 4], ["source", "row", "text"])

Where in the flow: searches, maps and whatever else begins with finished vectors read them here. The
rows are those of task 0, then of task 1, ..., each in the order of its parts. Needs pyarrow.
"""

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field as hidden
from itertools import accumulate
from typing import Any

import numpy as np

from nomicbert.bulk.inputs.rows import EMBEDDING, ROW, SOURCE
from nomicbert.bulk.job.folder import Folder, open_folder
from nomicbert.bulk.job.footer import Footer, footer_of
from nomicbert.bulk.job.manifest import read_manifest
from nomicbert.bulk.job.names import MANIFEST, part_name
from nomicbert.bulk.job.resume import find_progress, refuse_foreign
from nomicbert.bulk.optional import need_pyarrow
from nomicbert.bulk.places import place
from nomicbert.bulk.vector_files import (
    FLOATS,
    Float32,
    as_array,
    naming_damage,
    open_parquet_file,
    refuse_broken,
    rewritten,
    state_of,
    vector_type,
)


@dataclass(frozen=True)
class StoredVectors:
    """Vectors on a disk or in a store; see `open_vectors`.

    Attributes:
        name: the folder or file, as given.
        run: changes when the vectors do: id of the job, when it began, and where its parts end.
        rows: number of vectors.
        width: values of a vector.
        dtype: of its values as stored, such as "float32".
        columns: names of the other columns; of a folder `source` and `row` are among them.
        field: the column of the embedded text; None if it was not carried.
        want: what decided the vectors, from the manifest; empty for a lone file.
        description: what is known of the model, from the manifest; empty for a lone file.
    """

    name: str
    run: str
    rows: int
    width: int
    dtype: str
    columns: tuple[str, ...]
    field: str | None
    want: dict[str, Any]
    description: dict[str, Any]
    _folder: Folder = hidden(repr=False)
    _parts: tuple[str, ...] = hidden(repr=False)
    _starts: tuple[int, ...] = hidden(repr=False)

    def blocks(self) -> Iterator[Float32]:
        """All vectors in order, a row group (at most 8192 rows of ours) at a time.

        Yields: (n, width) float32.
        Raises: ValueError: vectors of integers or bits, a value that is not finite, or a damaged
            file; the message names the row or file. OSError: reading failed.
        """
        self.refuse_integers()
        at = 0
        for name in self._parts:
            with self._open(name) as file:
                for group in range(file.num_row_groups):
                    block = as_array(
                        self.name, file.read_row_group(group, [EMBEDDING])[EMBEDDING], self.width
                    )
                    self._refuse_broken(block, at)
                    at += len(block)
                    yield block

    def vectors(self, rows: Sequence[int] | None = None) -> Float32:
        """All vectors, or those of some rows, in memory.

        Args:
            rows: numbers of rows from 0, in any order; None for all.

        Returns: (n, width) float32.
        Raises: as `blocks`. IndexError: there is no such row.
        """
        self.refuse_integers()
        if rows is not None:
            block = as_array(self.name, self.table(rows, [EMBEDDING])[EMBEDDING], self.width)
            self._refuse_broken(block, 0, rows)
            return block
        found, at = np.empty((self.rows, self.width), np.float32), 0
        for block in self.blocks():
            found[at : at + len(block)] = block
            at += len(block)
        return found

    def take(
        self, rows: Sequence[int], columns: Sequence[str] | None = None
    ) -> list[dict[str, object]]:
        """The carried columns of some rows; only their row groups are read.

        Args:
            rows: numbers of rows from 0, in any order.
            columns: names; None for all.

        Returns: a dict per row, in the order of `rows`.
        Raises: ValueError: there is no such column, or a file is damaged. IndexError: there is no
            such row. OSError: reading failed.
        """
        wanted = list(self.columns if columns is None else columns)
        if unknown := [name for name in wanted if name not in self.columns]:
            known = ", ".join(map(repr, self.columns)) or "none"
            raise ValueError(f"{self.name} has no column {unknown[0]!r}: there are {known}")
        if not wanted or not len(rows):
            return [{} for _ in rows]
        from nomicbert.bulk.cells import fields_of_batch

        (batch,) = self.table(rows, wanted).combine_chunks().to_batches()
        found: list[dict[str, object]] = fields_of_batch(batch, range(len(rows)), 0)
        return found

    def where(self, row: int) -> str:
        """Source and line or row (from 1) of a row, for messages."""
        if SOURCE not in self.columns or ROW not in self.columns:
            return f"{self.name}, row {row + 1:,}"
        found = self.table([row], [SOURCE, ROW]).to_pylist()[0]
        return f"{found[SOURCE]}, row {found[ROW] + 1:,}"

    def table(self, rows: Sequence[int], columns: list[str]) -> Any:
        """As `take`, for at least one row and known columns: a pa.Table, which keeps types."""
        import pyarrow as pa

        numbers = np.asarray(rows, np.int64)
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < self.rows:
            raise IndexError(f"{self.name} has the rows 0 to {self.rows - 1:,}")
        order = np.argsort(numbers, kind="stable")
        sorted_rows = numbers[order].tolist()
        tables = []
        while sorted_rows:
            part = bisect_right(self._starts, sorted_rows[0]) - 1
            with self._open(self._parts[part]) as file:
                stop = self._starts[part]
                for group in range(file.num_row_groups):
                    start, stop = stop, stop + file.metadata.row_group(group).num_rows
                    here = [row - start for row in sorted_rows if row < stop]
                    if here:
                        tables.append(file.read_row_group(group, columns).take(pa.array(here)))
                        sorted_rows = sorted_rows[len(here) :]
                    if not sorted_rows:
                        break
        back = np.empty(len(numbers), np.int64)
        back[order] = np.arange(len(numbers))
        return pa.concat_tables(tables).take(pa.array(back)) if tables else None

    @contextmanager
    def _open(self, name: str) -> Iterator[Any]:
        """A part as a pq.ParquetFile, whose errors name it; one of another job is refused."""
        try:
            raw = self._folder.open(name)
        except FileNotFoundError as error:
            raise rewritten(self.name) from error
        with raw as file, naming_damage(where := f"{self._folder.name}: {name}"):
            opened = open_parquet_file(file)
            number = self._parts.index(name)
            start, stop = (*self._starts, self.rows)[number : number + 2]
            run = footer_of(opened.metadata, where).run if self.want else ""
            if opened.metadata.num_rows != stop - start or not self.run.startswith(run):
                raise rewritten(self.name)
            yield opened

    def _refuse_broken(self, block: Float32, first: int, rows: Sequence[int] | None = None) -> None:
        finite = np.isfinite(block).all(1)
        if finite.all():
            return
        index = int(np.flatnonzero(~finite)[0])
        refuse_broken(self.name, self.where(first + index if rows is None else rows[index]))

    def refuse_integers(self) -> None:
        """Raise a ValueError for vectors of integers or bits, which `vectors` cannot return."""
        if self.dtype not in FLOATS.values():
            raise ValueError(
                f"{self.name} holds vectors of precision {self.want.get('precision', self.dtype)}: "
                "embed with --precision float32 or float16 to compare them"
            )


def open_vectors(name: str | os.PathLike[str]) -> StoredVectors:
    """Open what `nomicbert embed -o PLACE` or `embed_files` has written; no vector is read yet.

    Args:
        name: folder or URL of a finished job; or one `.parquet` file with a column `embedding`.

    Raises:
        ValueError: it is none, the job is not finished, there are no rows, or a vector holds NaN or
            infinite values; the message says what to do.
        OSError: reading failed. ImportError: pyarrow is missing.
    """
    text = os.fspath(name)
    need_pyarrow(f"reading {text}")
    at = place(text)
    kind = at.kind()
    if kind is None:
        raise ValueError(f"cannot read {text}: No such file or directory")
    if kind == "file":
        return _open_file(text)
    folder = open_folder(text)
    if MANIFEST not in folder.names():
        raise ValueError(
            f"{text} has no {MANIFEST}, so it is not a folder of vectors: write one with "
            f"nomicbert embed ... -o {text.rstrip('/')}/"
        )
    manifest = read_manifest(folder)
    refuse_foreign(folder, len(manifest.tasks))
    footers: list[Footer] = []
    unfinished = False
    for task, spans in enumerate(manifest.tasks):
        progressed = find_progress(folder, manifest.run, task, spans)
        footers += progressed.footers
        unfinished |= bool(progressed.gaps)
    if unfinished:
        raise ValueError(
            f"{text} is not finished: it holds {sum(one.rows for one in footers):,} vectors, and "
            "more are to come: run the command that began it again, which goes on"
        )
    if first := next((one.first_broken for one in footers if one.broken), ""):
        refuse_broken(text, first)
    parts = [(part_name(one.task, one.number), one.rows) for one in footers if one.rows]
    ends = f"{manifest.run}-{manifest.created}-{'-'.join(str(rows) for _, rows in parts)}"
    carried = _text_column(manifest.carried, manifest.want["field"])
    return _opened(text, ends, folder, parts, carried, manifest.want, manifest.description)


def _open_file(name: str) -> StoredVectors:
    """As `open_vectors`, of one Parquet file."""
    path, base = os.path.split(name)
    folder = open_folder(path or os.curdir)
    if not base.endswith(".parquet"):
        raise ValueError(
            f"{name} is not a folder of vectors, nor a .parquet file: write one with nomicbert "
            "embed ... -o vectors/"
        )
    with folder.open(base) as file, naming_damage(name):
        rows = open_parquet_file(file).metadata.num_rows
    return _opened(name, state_of(place(name)), folder, [(base, rows)], "text", {}, {})


def _opened(
    name: str,
    run: str,
    folder: Folder,
    parts: Sequence[tuple[str, int]],
    text: str | None,
    want: dict[str, Any],
    description: dict[str, Any],
) -> StoredVectors:
    if not (total := sum(rows for _, rows in parts)):
        raise ValueError(f"{name} holds no vectors: its inputs had no rows with a text")
    with folder.open(parts[0][0]) as file, naming_damage(f"{folder.name}: {parts[0][0]}"):
        opened = open_parquet_file(file)
        schema = opened.schema_arrow
        width, dtype = vector_type(name, opened)
    names = tuple(column for column in schema.names if column != EMBEDDING)
    return StoredVectors(
        name=name,
        run=run,
        rows=total,
        width=width,
        dtype=dtype,
        columns=names,
        field=text if text in names else None,
        want=want,
        description=description,
        _folder=folder,
        _parts=tuple(part for part, _ in parts),
        _starts=tuple(accumulate((rows for _, rows in parts[:-1]), initial=0)),
    )


def _text_column(carried: Any, field_name: str) -> str | None:
    """The column that a part has for the text."""
    from nomicbert.bulk.inputs.columns import renamed

    index = carried.get_field_index(field_name)
    return str(renamed(carried).names[index]) if index >= 0 else None
