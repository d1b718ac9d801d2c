"""The first half of a job: everything that can be refused before a model is loaded.

Where in the flow: `plan_job` finds the sources, locks the folder and compares what is wanted with
its manifest; `run.run_job` compares the model, and does the work. The locks are held from here on,
so nothing changes between the two.
"""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any

from nomicbert.bulk.inputs.feed import START, Feed
from nomicbert.bulk.inputs.rows import Position, Span
from nomicbert.bulk.inputs.selection import Selection
from nomicbert.bulk.inputs.sources import Source, find_sources
from nomicbert.bulk.job import restart
from nomicbert.bulk.job.bad_rows import advising
from nomicbert.bulk.job.fingerprints import Input, changes, fingerprints, refuse_moved_lines
from nomicbert.bulk.job.folder import Folder, open_folder
from nomicbert.bulk.job.locked import Locked
from nomicbert.bulk.job.manifest import Manifest, differences, read_manifest, refuse
from nomicbert.bulk.job.names import LOCK, MANIFEST, lock_name
from nomicbert.bulk.job.options import Options
from nomicbert.bulk.job.resume import (
    Progressed,
    find_gaps,
    find_progress,
    refuse_foreign,
    refuse_remains,
)
from nomicbert.bulk.job.separate import keep_apart, refuse_streams
from nomicbert.bulk.job.units import divide, undivided
from nomicbert.bulk.optional import need_pyarrow

logger = logging.getLogger(__name__)

# Seconds between two looks at a folder in which another task is about to write the manifest.
WAIT = 0.2


class Job:
    """A job that may write to its folder, once its model is known. A context manager.

    Attributes:
        folder: of its parts.
        options: as given.
        sources: in order, under the names that they had when the job began.
        inputs: their fingerprints.
        task: index of the task.
        manifest: of the job that goes on; None for a new one.
        old: names of files to delete first.
        carried: pa.Schema of the carried columns.
        tasks: the spans of all tasks.
        progressed: what the parts of this task say.
    """

    carried: Any
    tasks: tuple[tuple[Span, ...], ...]
    progressed: Progressed

    def __init__(
        self, folder: Folder, options: Options, sources: list[Source], inputs: tuple[Input, ...]
    ) -> None:
        """See `plan_job`."""
        self.folder, self.options, self.sources, self.inputs = folder, options, sources, inputs
        self.task, self._count = (options.task[0] - 1, options.task[1]) if options.task else (0, 1)
        self.manifest: Manifest | None = None
        self.old: list[str] = []
        self.carried = None
        self._locks, self._begins = ExitStack(), ExitStack()
        self._may_begin = False  # no other process can write or delete a manifest

    @property
    def spans(self) -> tuple[Span, ...]:
        """What this task embeds."""
        return self.tasks[self.task]

    @property
    def complete(self) -> bool:
        """Whether nothing is left to embed."""
        return not self.progressed.gaps

    @property
    def total_bytes(self) -> int:
        """Bytes of the task's inputs; the units of a source count as equally long."""
        units = Counter(span.source for spans in self.tasks for span in spans)
        return round(sum(self.inputs[span.source].size / units[span.source] for span in self.spans))

    @property
    def left_bytes(self) -> int:
        """Of them, those whose rows are not in a part yet; an estimate for compressed inputs."""
        done = sum(footer.size for footer in self.progressed.footers)
        return 0 if self.complete else max(0, self.total_bytes - done)

    def feed(self, spans: Sequence[Span], start: Position = START) -> Feed:
        """The texts of spans from a position on."""
        options = self.options
        return Feed(
            self.sources,
            spans,
            field=options.field,
            columns=options.columns,
            on_error=options.on_error,
            on_null=options.on_null,
            start=start,
        )

    def look_at_inputs(self) -> None:
        """Find mistakes in the first rows, and the schema of the carried columns.

        Raises: ValueError, OSError: a source cannot be read, or has not what is wanted.
        """
        from nomicbert.bulk.inputs.columns import carried_schema, renamed

        options = self.options
        with advising():
            self.feed(undivided(self.sources)[0]).check_first_rows()
            self.carried = carried_schema(
                self.sources,
                field=options.field,
                columns=options.columns,
                on_error=options.on_error,
            )
        renamed(self.carried)  # two columns may have the same name then

    def lock(self) -> None:
        """Lock what this process writes, until `close`.

        One of several tasks locks its own parts, and the folder only while there is no manifest.

        Raises: Locked: another process writes it.
        """
        if self._count == 1:
            self._locks.enter_context(self.folder.lock(LOCK))
            self._may_begin = True
        else:
            self._locks.enter_context(self.folder.lock(lock_name(self.task)))
            self._wait_or_begin()

    def _wait_or_begin(self) -> None:
        """Lock the folder for the time without a manifest, or wait for that of another process."""
        waits = False
        while MANIFEST not in self.folder.names():
            try:
                self._begins.enter_context(self.folder.lock(LOCK))
            except Locked as error:
                if not waits:
                    logger.warning("waiting for the process that begins the job: %s", error)
                waits = True
                time.sleep(WAIT)
            else:
                break
        self._may_begin = MANIFEST not in self.folder.names()
        if not self._may_begin:
            self._begins.close()

    def look_at_folder(self) -> None:
        """Compare the folder with what is wanted.

        Raises: ValueError: it holds another job, or foreign files.
        """
        folder = self.folder
        while not (has_manifest := MANIFEST in folder.names()) and not self._may_begin:
            self._wait_or_begin()  # a restart has deleted it since
        if has_manifest:
            self.manifest = read_manifest(folder)
            if self.options.restart:
                self._look_at_old(self.manifest)
            else:
                self._go_on(self.manifest)
                return
        else:
            refuse_remains(folder)
            refuse_foreign(folder, 0)
        if self.carried is None:
            self.look_at_inputs()
        if self._count == 1:
            self.tasks = undivided(self.sources)
        else:
            logger.info("counting the rows of %d inputs", len(self.sources))
            selection = Selection(self.options.field, (), self.options.on_null)
            self.tasks = divide(self.sources, selection, self._count)
        self.progressed = Progressed([], find_gaps(folder, [], self.spans), [])

    def _look_at_old(self, manifest: Manifest) -> None:
        if (tasks := len(manifest.tasks)) > 1:
            for task in range(tasks):
                self._locks.enter_context(self.folder.lock(lock_name(task)))
        self.old = restart.refuse_strangers(self.folder, manifest)
        self.manifest = None

    def _go_on(self, manifest: Manifest) -> None:
        named = {"tasks": len(manifest.tasks), **manifest.want}
        wanted = {"tasks": self._count, **self.options.want}
        found = differences(named, wanted, list(wanted))
        refuse(self.folder, [*found, *changes(manifest.inputs, self.inputs)])
        refuse_foreign(self.folder, self._count)
        self.carried, self.tasks = manifest.carried, manifest.tasks
        # rows of all parts name their source alike, whatever the working directory
        pairs = zip(self.sources, manifest.inputs, strict=True)
        self.sources = [replace(source, name=begun.name) for source, begun in pairs]
        self.inputs = manifest.inputs
        self.progressed = find_progress(self.folder, manifest.run, self.task, self.spans)
        starts = [gap.start for gap in self.progressed.gaps]
        offsets = [(self.spans[start.unit].source, start.offset) for start in starts if self.spans]
        if starts:
            offsets += [(span.source, span.offset) for span in self.spans]
        refuse_moved_lines(self.sources, offsets)
        left_out = sum(footer.rejected for footer in self.progressed.footers)
        if left_out and self.options.on_error == "fail":
            rows = f"{left_out:,} row{'' if left_out == 1 else 's'}"
            change = f'on_error was "skip", which left out {rows}, now it is "fail"'
            refuse(self.folder, [change])

    def refuse_changes(self) -> None:
        """Raise a ValueError if a file of this task has another size than when the job began."""
        for index in {span.source for span in self.spans}:
            place, begun = self.sources[index].place, self.inputs[index]
            if place.is_local and (size := place.size()) != begun.size:
                raise ValueError(
                    f"{begun.name} has changed while it was read: it had {begun.size:,} bytes, now "
                    f"{size:,}. Begin anew with restart=True (--restart)"
                )

    def begun(self) -> None:
        """Let other tasks begin: the manifest is there."""
        self._begins.close()

    def close(self) -> None:
        """Give the folder free."""
        self._begins.close()
        self._locks.close()

    def __enter__(self) -> "Job":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def plan_job(inputs: Sequence[str], output: str, options: Options) -> Job:
    """Find the sources, lock the folder, and see what is there.

    Args:
        inputs: files, folders, patterns and URLs.
        output: folder of the parts; created if missing.
        options: of the job.

    Returns: the job, whose locks are held until it is closed.

    Raises:
        ValueError: an input or option is wrong, the folder holds another job, or another process is
            writing to it.
        OSError: the folder cannot be written.
        ImportError: pyarrow is missing.
    """
    need_pyarrow(f"writing to {output}")
    folder = open_folder(output)
    is_new = MANIFEST not in folder.names()
    refuse_streams(inputs)
    sources = keep_apart(inputs, find_sources(inputs, options.input_format), output)
    job = Job(folder, options, sources, fingerprints(sources))
    if is_new or options.restart:
        job.look_at_inputs()  # before the folder is made
    folder.make()
    with ExitStack() as locks:
        locks.callback(job.close)
        job.lock()
        job.look_at_folder()
        locks.pop_all()
    return job
