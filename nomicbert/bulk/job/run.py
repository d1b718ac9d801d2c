"""The second half of a job: texts -> vectors -> parts.

Where in the flow: `embed_files` calls this with a job from `plan` and the model. One stream of
vectors runs through all parts, so that no device waits where a part ends.
"""

import json
import time
from collections import Counter
from collections.abc import Generator
from contextlib import closing
from datetime import datetime, timezone
from typing import Protocol, cast

from nomicbert.bulk.encoding import Encoder, Window
from nomicbert.bulk.inputs.feed import Feed
from nomicbert.bulk.inputs.rows import OnError
from nomicbert.bulk.job import restart
from nomicbert.bulk.job.cutter import Cutter
from nomicbert.bulk.job.footer import Footer
from nomicbert.bulk.job.manifest import Manifest, differences, refuse
from nomicbert.bulk.job.names import MANIFEST, prefixes
from nomicbert.bulk.job.parts import Layout
from nomicbert.bulk.job.plan import Job
from nomicbert.bulk.job.report import BulkReport
from nomicbert.errors import TextError
from nomicbert.runtime.progress import Progress


class Watch(Protocol):
    """Who is told how far a job is, besides the tokens that the encoder reports to a Progress."""

    def read(self, lengths: list[int]) -> None:
        """As `Progress.read`."""

    def done(self, tokens: int) -> None:
        """As `Progress.done`."""

    def begin(self, total: int, kept: int) -> None:
        """The bytes of all inputs of the task, and of them those whose rows are in parts."""

    def taken(self, rows: int, size: int) -> None:
        """The vectors of more rows have come, which took `size` bytes of the inputs."""


def run_job(job: Job, encoder: Encoder, watch: Watch) -> BulkReport:
    """Embed what is left of a task.

    An error while texts are read or embedded, Ctrl-C among them, ends the part that is being
    written: the rows so far stay. An error while a part is written removes it.

    Args:
        job: from `plan_job`; stays open.
        encoder: computes the vectors.
        watch: told of progress.

    Raises:
        ValueError: another model than before, a row that cannot be used, or an input that changed
            while it was read.
        OSError: reading or writing failed.
    """
    started = time.monotonic()
    manifest = _settle(job, encoder)
    layout = Layout.of(job.carried, encoder.empty, job.options.on_error)
    footers = job.progressed.footers
    watch.begin(_bytes(job), sum(footer.size for footer in footers))
    made: list[Footer] = []
    for gap in job.progressed.gaps:
        with (
            closing(job.feed(gap.spans(job.spans), gap.start)) as feed,
            Cutter(job, gap, feed, layout, manifest.run) as cutter,
        ):
            _fill(cutter, feed, encoder, watch, job.options.on_error)
        made += cutter.made
    kept = sum(footer.rows for footer in footers)
    footers = [*footers, *made]
    rows = sum(footer.rows for footer in footers)
    return BulkReport(
        folder=job.folder.name,
        rows=rows,
        made=rows - kept,
        kept=kept,
        skipped=sum(footer.skipped for footer in footers),
        rejected=sum(footer.rejected for footer in footers),
        truncated=sum(footer.truncated for footer in footers),
        tokens=sum(footer.tokens for footer in footers),
        broken=sum(footer.broken for footer in footers),
        parts=len(footers),
        width=encoder.empty.shape[1],
        dtype=encoder.empty.dtype.name,
        seconds=time.monotonic() - started,
    )


def _settle(job: Job, encoder: Encoder) -> Manifest:
    """Compare the model with the manifest, or write one; tidy up."""
    want = json.loads(json.dumps({**job.options.want, **encoder.identity}))
    folder = job.folder
    if job.manifest is not None:
        manifest = job.manifest
        refuse(folder, differences(manifest.want, want, sorted(manifest.want.keys() | want)))
    else:
        restart.clear(folder, job.old)
        folder.sweep(MANIFEST)
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        manifest = Manifest(want, job.inputs, job.tasks, job.carried, created)
        manifest.write(folder)
    job.begun()
    for prefix in prefixes(job.task):
        folder.sweep(prefix)
    for name in job.progressed.orphans:
        folder.remove(name)
    return manifest


def _fill(cutter: Cutter, feed: Feed, encoder: Encoder, watch: Watch, on_error: OnError) -> None:
    """Embed the texts of a feed."""
    with closing(_windows(feed, encoder, watch, on_error)) as windows:
        while True:
            try:
                window = next(windows, None)
            except BaseException:
                # no part is being changed here, so that the open one may end before the error
                cutter.end_part()
                raise
            if window is None:
                break
            size = cutter.add(window)
            watch.taken(len(window.vectors), size)
    cutter.finish()


def _windows(
    feed: Feed, encoder: Encoder, watch: Watch, on_error: OnError
) -> Generator[Window, None, None]:
    """The windows of all texts; begins anew behind a text that cannot be embedded."""
    while not feed.finished:
        came = 0  # vectors of this stream
        stream = cast("Generator[Window]", encoder.windows(feed, cast(Progress, watch)))
        try:
            with closing(stream):
                for window in stream:
                    yield window
                    came += len(window.vectors)
            return
        except TextError as error:
            index = error.index - came
            if on_error == "fail":
                while index:
                    feed.take()
                    index -= 1
                raise ValueError(f"{feed.take().row.where}: it {error.problem}") from error
            feed.reject(index, f"the text {error.problem}")
            feed.rewind()


def _bytes(job: Job) -> int:
    """The bytes of a task's inputs; the units of a source are about equally long."""
    units = Counter(span.source for spans in job.tasks for span in spans)
    return round(sum(job.inputs[span.source].size / units[span.source] for span in job.spans))
