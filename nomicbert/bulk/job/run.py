"""The second half of a job: texts -> vectors -> parts.

Where in the flow: `embed_files` calls this with a job from `plan` and the model. One stream of
vectors runs through all parts, so that no device waits where a part ends.
"""

import json
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from nomicbert.bulk.inputs.feed import Feed
from nomicbert.bulk.inputs.rows import OnError
from nomicbert.bulk.job import restart
from nomicbert.bulk.job.bad_rows import advising
from nomicbert.bulk.job.cutter import Cutter
from nomicbert.bulk.job.footer import Footer
from nomicbert.bulk.job.manifest import Manifest, differences, refuse
from nomicbert.bulk.job.names import MANIFEST, prefixes
from nomicbert.bulk.job.parts import Layout
from nomicbert.bulk.job.plan import Job
from nomicbert.bulk.job.report import BulkReport
from nomicbert.bulk.progress import BulkProgress
from nomicbert.bulk.windows import windows

if TYPE_CHECKING:
    from nomicbert.bulk.encoding import Encoder


def run_job(job: Job, encoder: "Encoder", progress: BulkProgress) -> BulkReport:
    """Embed what is left of a task.

    An error while texts are read or embedded, and Ctrl-C at any time, ends the part that is being
    written: the rows so far stay. An error while a part is written removes it.

    Args:
        job: from `plan_job`; stays open.
        encoder: computes the vectors.
        progress: made for the bytes of this job, see `Job.total_bytes`; stays open.

    Raises:
        ValueError: another model than before, a row that cannot be used, or an input that changed
            while it was read.
        OSError: reading or writing failed.
    """
    started = time.monotonic()
    manifest = _settle(job, encoder)
    layout = Layout.of(job.carried, encoder.empty, job.options.on_error)
    footers = job.progressed.footers
    made: list[Footer] = []
    for gap in job.progressed.gaps:
        with (
            closing(job.feed(gap.spans(job.spans), gap.start)) as feed,
            Cutter(job, gap, feed, layout, manifest.run) as cutter,
            advising(),
        ):
            _fill(cutter, feed, encoder, progress, job.options.on_error)
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
        first_broken=next((one.first_broken for one in footers if one.broken), ""),
        parts=len(footers),
        width=encoder.empty.shape[1],
        dtype=encoder.empty.dtype.name,
        seconds=time.monotonic() - started,
    )


def _settle(job: Job, encoder: "Encoder") -> Manifest:
    """Compare the model with the manifest, or write one; tidy up."""
    want = json.loads(json.dumps({**job.options.want, **encoder.identity}))
    folder = job.folder
    if job.manifest is not None:
        manifest = job.manifest
        if found := differences(manifest.want, want):
            refuse(folder, [*found, *differences(manifest.description, encoder.description)])
    else:
        restart.clear(folder, job.old)
        folder.sweep(MANIFEST)
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        manifest = Manifest(want, encoder.description, job.inputs, job.tasks, job.carried, created)
        manifest.write(folder)
    job.begun()
    for prefix in prefixes(job.task):
        folder.sweep(prefix)
    for name in job.progressed.orphans:
        folder.remove(name)
    return manifest


def _fill(
    cutter: Cutter, feed: Feed, encoder: "Encoder", progress: BulkProgress, on_error: OnError
) -> None:
    """Embed the texts of a feed; a window is written while the next one is computed."""
    with (
        ThreadPoolExecutor(1) as pool,
        closing(windows(encoder, feed, progress, on_error)) as found,
    ):
        writing: Future[None] = pool.submit(lambda: None)
        try:
            for window in found:
                taken = [feed.take() for _ in window.lengths]
                finished = feed.finished
                writing.result()
                writing = pool.submit(cutter.add, taken, window, finished)
                size = sum(one.row.size for one in taken)
                progress.passed(len(taken), size, sum(window.lengths))
            writing.result()
        except BaseException:
            # the rows so far may end their part, unless it was the writing that failed
            if writing.exception() is None:
                cutter.end_part()
            raise
    cutter.finish()
