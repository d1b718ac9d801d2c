"""Texts -> a folder of their vectors that is kept, and embedded again as far as they change.

Where in the flow: `nomicbert search` calls this with the files of `texts` and a loaded model. It is
the job of `embed -o FOLDER`; a folder that holds another job is begun anew, with the vectors of
texts that are still there.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from nomicbert.bulk.inputs.formats import InputFormat
from nomicbert.bulk.job import fingerprints
from nomicbert.bulk.job.footer import Damaged
from nomicbert.bulk.job.locked import Locked
from nomicbert.bulk.job.manifest import OtherJob
from nomicbert.bulk.job.names import MANIFEST
from nomicbert.bulk.job.options import Options
from nomicbert.bulk.job.plan import plan_job
from nomicbert.bulk.job.report import BulkReport
from nomicbert.bulk.places import LocalPlace, place
from nomicbert.bulk.search.reuse import (
    Reusing,
    forget_known,
    known_vectors,
    save_known,
    saved_vectors,
)
from nomicbert.bulk.search.texts import FOLDER
from nomicbert.bulk.stored import StoredVectors, open_vectors

if TYPE_CHECKING:
    from nomicbert.bulk.encoding import Encoder
    from nomicbert.bulk.progress import BulkProgress

# Seconds between two looks at a folder that another search is embedding into.
WAIT = 0.2


class Kept(NamedTuple):
    """The vectors of texts.

    Attributes:
        report: of the job.
        stored: its vectors; None if the texts have no rows.
        names: a file's name in the column `source` -> its name now, where they differ: the file was
            renamed, or the first search had another working directory.
    """

    report: BulkReport
    stored: StoredVectors | None
    names: dict[str, str]


def embed_kept(
    files: Sequence[str],
    folder: str,
    encoder: "Encoder",
    *,
    field: str,
    columns: Sequence[str] | None = None,
    say: Callable[[str], None],
    open_progress: "Callable[[int, int], BulkProgress]",
) -> Kept:
    """Embed files into a folder, or find that it holds their vectors.

    Args:
        files: of texts.
        folder: for the vectors; created if missing.
        encoder: of the model.
        field: name of the field that holds the text, in files of rows.
        columns: names of the fields that are kept with the text; None for all.
        say: receives a line about what is being done; nothing is said if nothing has to be.
        open_progress: makes the progress from the bytes of all files and of those left.

    Raises: ValueError: a file cannot be read as what it is. OSError: reading or writing failed.
        ImportError: pyarrow is missing.
    """
    from nomicbert.bulk.job.run import run_job  # needs pyarrow

    _hide(folder)
    options = Options(
        field=field,
        columns=None if columns is None else tuple(dict.fromkeys((field, *columns))),
        input_format=InputFormat.passages,
        on_error="skip",
        on_null="skip",
    )
    doing = f"embedding {files[0] if len(files) == 1 else f'{len(files):,} files'} into {folder}"
    want = json.loads(json.dumps({**options.want, **encoder.identity}))
    reusing, waits = encoder, False
    while True:
        try:
            with plan_job(files, folder, options) as job, ExitStack() as stack:
                if job.manifest is not None:
                    _refuse_written_since(files, folder)
                if not job.complete:
                    say(doing)
                    if not options.restart and (known := saved_vectors(folder, want)):
                        reusing = Reusing(encoder, known)  # one that was interrupted
                progress = open_progress(job.total_bytes, job.left_bytes)
                stack.enter_context(progress)
                report = run_job(job, reusing, progress)
                forget_known(folder)
                # while the folder is locked, so that it is not another search's by then
                stored = open_vectors(folder) if report.rows else None
                pairs = zip((one.name for one in job.inputs), files, strict=True)
                return Kept(report, stored, {was: now for was, now in pairs if was != now})
        except Locked:
            if not waits:
                say(f"waiting for another search, which embeds into {folder}")
            waits = True
            options = replace(options, restart=False)  # it may do the same work
            time.sleep(WAIT)
        except (OtherJob, Damaged) as error:
            if options.restart:
                raise
            if known := known_vectors(folder, want):
                save_known(folder, want, known)
            reusing, options = Reusing(encoder, known), replace(options, restart=True)
            doing = f"{_reason(error, want)}: embedding {'what is new' if known else 'again'}"


def _reason(error: OtherJob | Damaged, want: dict[str, object]) -> str:
    """Why the vectors of before are not those that are wanted."""
    if isinstance(error, Damaged):
        return str(error)
    if error.found[0].startswith(tuple(f"{name} was" for name in want)):
        return "another model, option or version of nomicbert than before"
    return error.found[0]


def _refuse_written_since(files: Sequence[str], folder: str) -> None:
    """Raise an OtherJob for a file so long that its fingerprint may not show a change."""
    begun = os.stat(Path(folder, MANIFEST)).st_mtime_ns
    for name in files:
        at = place(name)
        if isinstance(at, LocalPlace):
            found = os.stat(at.path)
            if found.st_size > 2 * fingerprints.END and found.st_mtime_ns >= begun:
                raise OtherJob(name, [f"{name} was written since"])


def _hide(folder: str) -> None:
    """Keep the folder out of git."""
    parent = Path(folder).parent
    if parent.name == FOLDER and not (parent / ".gitignore").exists():
        os.makedirs(parent, exist_ok=True)
        (parent / ".gitignore").write_text("*\n")
