"""Read a job's folder back: is every row there once, in order, under its own text?

Where in the flow: `check_folder` is called by a user after a job, or between two runs. It needs no
model, so it cannot know a vector of another text; it compares everything else.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nomicbert.bulk.inputs.columns import renamed
from nomicbert.bulk.inputs.feed import Feed
from nomicbert.bulk.inputs.formats import InputFormat
from nomicbert.bulk.inputs.rows import EMBEDDING, ROW, SOURCE, Position
from nomicbert.bulk.inputs.sources import Source, find_sources
from nomicbert.bulk.job.expected import Expected, Id, in_order
from nomicbert.bulk.job.fingerprints import changes, fingerprints
from nomicbert.bulk.job.folder import Folder, open_folder
from nomicbert.bulk.job.footer import Footer, read_footer
from nomicbert.bulk.job.manifest import Manifest, read_manifest
from nomicbert.bulk.job.names import MANIFEST, part_name, read_name, reject_name
from nomicbert.bulk.job.report import CheckReport
from nomicbert.bulk.job.resume import find_gaps, refuse_foreign, refuse_stranger
from nomicbert.bulk.job.separate import keep_apart

# Problems that a report lists; more are only counted.
LISTED = 100
# Rows that are read at once.
READ_ROWS = 8192

# Source, row and text of a row of a part.
Row = tuple[str, int, str | None]


def check_folder(output: str, inputs: Sequence[str] | None = None) -> CheckReport:
    """Read all parts of a job and compare them with its inputs.

    Args:
        output: folder of the job.
        inputs: the inputs where they are now; None for the names that the job was given.

    Raises: ValueError: there is no manifest. OSError: reading failed.
    """
    folder = open_folder(output)
    if MANIFEST not in folder.names():
        raise ValueError(f"{output} has no {MANIFEST}: it is not the folder of a job")
    return _Check(output, folder, read_manifest(folder)).run(inputs)


class _Check:
    """Reads the parts of a folder and notes what is wrong."""

    def __init__(self, output: str, folder: Folder, manifest: Manifest) -> None:
        self._output, self._folder, self._manifest = output, folder, manifest
        self._want = manifest.want
        self._names = folder.names()
        self._problems: list[str] = []
        self._problem_count = 0
        self._broken = 0
        self._first_broken = ""
        self._sources: list[Source] | None = None
        text = manifest.carried.get_field_index(self._want["field"])
        self._text = renamed(manifest.carried).names[text] if text >= 0 else None

    def run(self, inputs: Sequence[str] | None) -> CheckReport:
        """See `check_folder`."""
        manifest = self._manifest
        self._note(self._find_inputs, inputs)
        self._note(refuse_foreign, self._folder, len(manifest.tasks))
        footers: list[Footer] = []
        complete = True
        for task in range(len(manifest.tasks)):
            found = self._task(task)
            footers += found
            gaps = self._note(find_gaps, self._folder, found, manifest.tasks[task])
            complete = complete and gaps == []
        return CheckReport(
            folder=self._folder.name,
            tasks=len(manifest.tasks),
            parts=len(footers),
            rows=sum(footer.rows for footer in footers),
            skipped=sum(footer.skipped for footer in footers),
            rejected=sum(footer.rejected for footer in footers),
            truncated=sum(footer.truncated for footer in footers),
            tokens=sum(footer.tokens for footer in footers),
            broken=self._broken,
            first_broken=self._first_broken,
            complete=complete,
            compared=self._sources is not None,
            problems=tuple(self._problems),
            problem_count=self._problem_count,
        )

    def _note(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function whose ValueErrors are findings."""
        try:
            return function(*args)
        except ValueError as error:
            self._problem(str(error))
            return None

    def _problem(self, text: str) -> None:
        self._problem_count += 1
        if len(self._problems) < LISTED:
            self._problems.append(text)

    def _find_inputs(self, inputs: Sequence[str] | None) -> None:
        begun = self._manifest.inputs
        if inputs is None:
            sources = [
                source
                for one in begun
                for source in find_sources([one.name], InputFormat(one.format))
            ]
        else:
            formats = [InputFormat(one.format) for one in begun]
            # of one format: it may have been given, and the files be recognised as another one
            sources = find_sources(inputs, formats[0] if len(set(formats)) == 1 else None)
            sources = keep_apart(inputs, sources, self._output)
            for index, form in enumerate(formats[: len(sources)]):
                sources[index] = replace(sources[index], format=form)
        if found := changes(begun, fingerprints(sources)):
            raise ValueError(f"rows were not compared with the inputs: {found[0]}")
        self._sources = [
            replace(source, name=one.name) for source, one in zip(sources, begun, strict=True)
        ]

    def _task(self, task: int) -> list[Footer]:
        """The footers of a task, whose parts have been read."""
        own = {name: at for name in self._names if (at := read_name(name)) and at.task == task}
        parts = sorted((at.number, name) for name, at in own.items() if at.is_part)
        footers = []
        with closing(Expected(lambda start: self._feed(task, start))) as expected:
            for number, name in parts:
                footer = self._note(self._footer, name, task, number)
                if footer is not None:
                    footers.append(footer)
                    if found := self._note(self._part, name, footer, expected):
                        self._problem(f"{name}: {found}")
        kept = {footer.number for footer in footers if footer.rejected}
        for name, at in sorted(own.items()):
            if not at.is_part and at.number not in kept:
                self._problem(f"{name} belongs to no part")
        return footers

    def _footer(self, name: str, task: int, number: int) -> Footer:
        footer = read_footer(self._folder, name)
        refuse_stranger(self._folder, name, footer, self._manifest.run)
        if (footer.task, footer.number) != (task, number):
            raise ValueError(f"{name} was {part_name(footer.task, footer.number)}")
        return footer

    def _feed(self, task: int, start: Position) -> Feed:
        assert self._sources is not None
        return Feed(
            self._sources,
            self._manifest.tasks[task],
            field=self._want["field"],
            columns=(),
            on_error="skip",
            on_null=self._want["on_null"],
            start=start,
        )

    def _part(self, name: str, footer: Footer, expected: Expected) -> str:
        """The first thing that is wrong with a part, or nothing."""
        rejected = self._rejected(footer)
        with self._folder.open(name) as file:
            try:
                rows = self._rows(pq.ParquetFile(file, page_checksum_verification=True))
                if self._sources is not None:
                    found = expected.compare(footer, rows, rejected)
                else:
                    found = self._alone(footer, rows)
                for _ in rows:
                    pass  # vectors behind a difference are looked at too
            except (pa.ArrowException, OSError) as error:
                return f"it is damaged: {error}"
        if len(rejected) != footer.rejected:
            found = found or (
                f"its footer states {footer.rejected:,} rejected rows, and "
                f"{reject_name(footer.task, footer.number)} has {len(rejected):,}"
            )
        return found

    def _alone(self, footer: Footer, rows: Iterator[Row]) -> str:
        """As `Expected.compare`, without the inputs."""
        spans = self._manifest.tasks[footer.task]
        if not spans:
            return "" if not footer.rows else "its task has no rows"
        start, end = footer.start, footer.next
        limits = [(spans[at.unit].source, at.row) for at in (start, end)]
        order = {one.name: index for index, one in enumerate(self._manifest.inputs)}
        found = in_order(rows, order, limits[0], limits[1])
        count = footer.rows + footer.skipped + footer.rejected
        if not found and start.unit == end.unit and end.row - start.row != count:
            found = f"it covers {end.row - start.row:,} rows, and its footer states {count:,}"
        return found

    def _rows(self, file: Any) -> Iterator[Row]:
        """Source, row and text of each row; vectors are looked at on the way."""
        names = [SOURCE, ROW, EMBEDDING, *([] if self._text is None else [self._text])]
        for batch in file.iter_batches(READ_ROWS, columns=names):
            sources, numbers = batch[SOURCE].to_pylist(), batch[ROW].to_pylist()
            self._look_at_vectors(batch[EMBEDDING], sources, numbers)
            texts: list[str | None] = [None] * len(sources)
            if self._text is not None:
                # null where the text was empty, or was lost
                texts = [text or "" for text in batch[self._text].to_pylist()]
            yield from zip(sources, numbers, texts, strict=True)

    def _look_at_vectors(self, column: Any, sources: list[str], numbers: list[int]) -> None:
        values = column.flatten().to_numpy(zero_copy_only=False)
        if not len(sources) or values.dtype.kind != "f":
            return
        broken = np.flatnonzero(~np.isfinite(values.reshape(len(sources), -1)).all(1))
        if len(broken):
            self._broken += len(broken)
            first = int(broken[0])
            self._first_broken = self._first_broken or f"{sources[first]}, row {numbers[first] + 1}"

    def _rejected(self, footer: Footer) -> set[Id]:
        """The rows of the file of rejected rows of a part."""
        name = reject_name(footer.task, footer.number)
        if not footer.rejected:
            return set()
        if name not in self._names:
            raise ValueError(f"{name} is missing")
        with self._folder.open(name) as file:
            try:
                lines = [json.loads(line) for line in file]
                return {(line["source"], line["row"]) for line in lines}
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{name} is damaged: {error!r}") from error
