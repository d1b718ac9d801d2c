"""Files of texts -> a folder of Parquet parts, every row exactly once, through any crash.

    from nomicbert import Embedder
    from nomicbert.bulk.embed_files import embed_files

    embed_files(Embedder("./my-checkpoint"), ["docs/*.jsonl.gz"], "vectors/", field="body")

Where in the flow: the entry from Python; `nomicbert embed` takes the same two steps, `plan_job`
before its model is loaded and `run_job` after it. Needs pyarrow.
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nomicbert.arguments import refuse_unknown
from nomicbert.bulk.encoding import NOT_FOR_FILES, EmbedderEncoder
from nomicbert.bulk.inputs.formats import InputFormat
from nomicbert.bulk.inputs.rows import OnError, OnNull
from nomicbert.bulk.job.options import Options
from nomicbert.bulk.job.plan import plan_job
from nomicbert.bulk.job.report import BulkReport, CheckReport
from nomicbert.bulk.optional import need_pyarrow
from nomicbert.bulk.progress import BulkProgress, Form
from nomicbert.embedder import Embedder
from nomicbert.runtime.request import Request
from nomicbert.user_warnings import VectorWarning, warn, warn_of_cuts

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from nomicbert.runtime.encode_keywords import AllEncodeKeywords

Path = str | os.PathLike[str]


def embed_files(
    embedder: Embedder,
    inputs: Path | Sequence[Path],
    output: Path,
    *,
    field: str = "text",
    columns: Sequence[str] | None = None,
    input_format: str | None = None,
    part_rows: int = 65_536,
    part_seconds: float = 60.0,
    task: tuple[int, int] | None = None,
    on_error: OnError = "fail",
    on_null: OnNull = "error",
    restart: bool = False,
    **keywords: "Unpack[AllEncodeKeywords]",
) -> BulkReport:
    """Embed every text of files into numbered Parquet files; the same call goes on after a crash.

    Each part holds the carried columns, `source` and `row` (the file, and the number of the row in
    it from 0), and `embedding`. A part that is there is complete and on the disk.

    Args:
        embedder: computes the vectors.
        inputs: files, folders, patterns and URLs of text, JSONL, JSON, CSV, TSV, Parquet or Arrow.
        output: folder or URL of the parts; created if missing.
        field: name of the field or column that holds the text.
        columns: names of the fields that are carried along; None for all, () for none.
        input_format: of all inputs; None to recognise each.
        part_rows: rows of a part at most.
        part_seconds: a part is closed this long after its first vectors, so no more is lost.
        task: (i, n): this process does the i-th of n shares, from 1; the others may run elsewhere.
        on_error: what a row that cannot be used does: "fail", or "skip" to a file of such rows. A
            job that has failed may go on with "skip".
        on_null: what a null text is: an "error", an "empty" text, or a row to "skip".
        restart: delete the parts of the job that is in the folder, and begin anew.
        **keywords: those of `Embedder.encode_iter` for vectors as arrays.

    Returns: what was done.

    Raises:
        ValueError: an option or input is wrong, the folder holds another job or foreign files, an
            input or the model has changed since, or another process is writing to the folder.
        OSError: reading or writing failed; the parts so far stay.
        ImportError: pyarrow is missing.
    """
    unknown = keywords.keys() - Request.__dataclass_fields__ - NOT_FOR_FILES
    refuse_unknown(sorted(unknown), embed_files, Request)
    bar = keywords.pop("show_progress_bar", None)
    options = Options(
        field=field,
        columns=columns,
        input_format=None if input_format is None else _format(input_format),
        part_rows=part_rows,
        part_seconds=part_seconds,
        task=task,
        on_error=on_error,
        on_null=on_null,
        restart=restart,
    )
    names = [inputs] if isinstance(inputs, str | os.PathLike) else inputs
    encoder = EmbedderEncoder(embedder, **keywords)
    with plan_job([os.fspath(name) for name in names], os.fspath(output), options) as job:
        from nomicbert.bulk.job.run import run_job  # needs pyarrow

        form: Form | None = None if bar is None else "bar" if bar else "none"
        progress = BulkProgress(form, job.total_bytes, job.left_bytes)
        with progress:
            report = run_job(job, encoder, progress)
    warn_of_cuts(report.truncated, report.rows, "texts", encoder.identity["max_length"])
    if report.broken:
        warn(
            f"{report.broken} vectors of {report.folder} hold NaN or infinite values, the first "
            f"that of {report.first_broken}: the weights are damaged, or too large for their dtype",
            VectorWarning,
        )
    return report


def check_folder(output: Path, inputs: Path | Sequence[Path] | None = None) -> CheckReport:
    """Read all parts of a job back and compare them with its inputs; needs no model.

    Args:
        output: folder or URL of the parts.
        inputs: the inputs where they are now; None for the names that the job was given.

    Raises: ValueError: there is no manifest, or a damaged one. OSError: reading failed.
        ImportError: pyarrow is missing.
    """
    need_pyarrow(f"reading {os.fspath(output)}")
    from nomicbert.bulk.job import check  # needs pyarrow

    names = [inputs] if isinstance(inputs, str | os.PathLike) else inputs
    given = None if names is None else [os.fspath(name) for name in names]
    return check.check_folder(os.fspath(output), given)


def _format(name: str) -> InputFormat:
    try:
        return InputFormat(name)
    except ValueError as error:
        known = ", ".join(form.value for form in InputFormat)
        raise ValueError(f"input_format must be one of {known}, not {name!r}") from error
