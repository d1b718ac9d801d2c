"""`nomicbert embed` to a folder of Parquet files that survives crashes, and `--check` of one.

Where in the flow: `embed` comes here with its options. `plan_job` refuses what can be refused
without a model, `run_job` does the work.
"""

import dataclasses
import re
from typing import TYPE_CHECKING, Any

import typer

from nomicbert.bulk.job.options import MOST_TASKS, Options
from nomicbert.bulk.optional import need_pyarrow
from nomicbert.cli import checks, console
from nomicbert.cli.embed_request import (
    Request,
    as_json_line,
    counted,
    say_left_out,
    say_recognised,
)

if TYPE_CHECKING:
    from nomicbert.bulk.job.plan import Job
    from nomicbert.bulk.job.report import BulkReport, CheckReport


def embed_folder(
    request: Request,
    *,
    part_rows: int | None,
    part_seconds: float | None,
    task: str | None,
    restart: bool,
) -> None:
    """Check the rest of the options, then embed all inputs to a folder, or go on with that.

    Args:
        request: the options.
        part_rows: rows of a part at most; None for the default.
        part_seconds: seconds until a part is closed; None for the default.
        task: "I/N": the I-th of N shares; None for all.
        restart: begin anew.

    Raises: ValueError: a mistake in the options or the inputs, or the folder holds something else.
        OSError: reading or writing failed.
    """
    need_pyarrow(f"writing to {request.output}")
    from nomicbert.bulk.job.plan import plan_job

    given: dict[str, Any] = {"part_rows": part_rows, "part_seconds": part_seconds}
    given = {name: value for name, value in given.items() if value is not None}
    given |= {**request.reading, "field": request.field}
    share = _task(task)
    if restart and task is not None:
        raise ValueError(
            "--restart deletes the parts of all shares, so it does not go with --task: delete the "
            f"folder, or begin anew once without --task {task}"
        )
    options = Options(**given, task=share, restart=restart)
    with plan_job(request.inputs, request.output, options) as job:
        checks.refuse_field_of_text(job.sources, request.reading["field"])
        say_recognised(job.sources)
        _say_renamed(job)
        kept = sum(footer.rows for footer in job.progressed.footers)
        if kept and not job.complete:
            console.tell(
                f"{job.folder.name} holds {counted(kept, 'vector')}: going on with the rest"
            )
        from nomicbert.bulk.job.run import run_job

        encoder = request.load()
        progress = request.open_progress(job.total_bytes, job.left_bytes)
        with progress:
            report = run_job(job, encoder, progress)
    _say_done(report)
    request.report("done", **dataclasses.asdict(report))


def check_folder(folder: str, inputs: list[str] | None, json: bool) -> None:
    """Read a folder back, and say what is in it.

    Args:
        folder: of a job.
        inputs: where the inputs are now; None for the names that they had.
        json: write the report as a JSON line to standard output.

    Raises: typer.Exit: with code 1 if rows are missing or wrong, or vectors are not finite.
        ValueError: it is no job's folder.
    """
    need_pyarrow(f"reading {folder}")
    from nomicbert.bulk.job.check import check_folder

    report = check_folder(folder, inputs)
    _say_checked(report)
    if json:
        console.put(as_json_line("checked", ok=report.ok, **dataclasses.asdict(report)))
    if not report.ok:
        raise typer.Exit(console.FAILED)


def _task(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    index, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= index <= count <= MOST_TASKS:
        raise ValueError(
            f"--task {text!r} must be I/N with I from 1 to N, and N at most {MOST_TASKS}: 1/8 is "
            "the first of 8 shares"
        )
    return index, count


def _say_renamed(job: "Job") -> None:
    """Name the input's columns whose names the output needs for its own."""
    from nomicbert.bulk.inputs.columns import renamed

    for name, new in zip(job.carried.names, renamed(job.carried).names, strict=True):
        if name != new:
            console.tell(f"the input's column {name!r} is carried along as {new!r}")


def _say_done(report: "BulkReport") -> None:
    if report.broken:
        console.say(
            f"{counted(report.broken, 'vector')} with NaN or infinity; the first is that of "
            f"{report.first_broken}"
        )
    say_left_out(report.skipped, report.rejected, report.truncated, _rejects(report.folder))
    found = (
        f"{counted(report.rows, 'vector')} of {report.width:,} {report.dtype} values in "
        f"{counted(report.parts, 'part')}"
    )
    if report.kept and not report.made:
        console.tell(f"complete already: {found}: {report.folder}")
        return
    before = f", {report.kept:,} of them by earlier runs" if report.kept else ""
    console.tell(f"{found}{before}, in {report.seconds:.1f} s: {report.folder}")


def _say_checked(report: "CheckReport") -> None:
    for problem in report.problems:
        console.say(problem)
    if (more := report.problem_count - len(report.problems)) > 0:
        console.say(f"and {counted(more, 'more problem')}")
    if report.broken:
        console.say(
            f"{counted(report.broken, 'vector')} with NaN or infinity; the first is that of "
            f"{report.first_broken}"
        )
    say_left_out(report.skipped, report.rejected, report.truncated, _rejects(report.folder))
    found = f"{counted(report.rows, 'vector')} in {counted(report.parts, 'part')}"
    verdict = "every row once, in order, beside its own text"
    if report.problem_count:
        verdict = counted(report.problem_count, "problem")
    rest = "" if report.complete else "; rows are still to come: the same command goes on"
    console.tell(f"{report.folder}: {found}: {verdict}{rest}")


def _rejects(folder: str) -> str:
    return f"{folder.rstrip('/')}/_rejected-*.jsonl"
