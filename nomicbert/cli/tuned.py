"""What `nomicbert tune` says: what would be measured, and what came out.

Where in the flow: behind `tune`, which measures; docs/tune.md lists the fields of the documents.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nomicbert.cli import console

if TYPE_CHECKING:
    from nomicbert_kernels.tuning.problems import Problem
    from nomicbert_kernels.tuning.search import Result

COLUMNS = "{:16} {:>13} {:>7} {:>11} {:>9} {:>6}"
PLANNED = "{:16} {:>13} {:>7} {:>11}"


def rows_of(problem: "Problem") -> str:
    """The numbers of rows that a problem stands for."""
    if problem.rows is None:
        return "all"
    return "more" if problem.up_to is None else f"<= {problem.up_to}"


def _fields(problem: "Problem") -> dict[str, Any]:
    return {"kernel": problem.kernel, **problem.exactly, "up_to_rows": problem.up_to}


def put_plan(
    problems: "Sequence[Problem]", counts: Sequence[int | None], arch: str | None, path: Path | None
) -> None:
    """Print what would be measured, in lines.

    Args:
        problems: what would be measured.
        counts: candidates of each; None where that hangs on a GPU that is not there.
        arch: of the GPU, if there is one.
        path: of the table that would be written.
    """
    console.put(PLANNED.format("kernel", "shape", "rows", "candidates"))
    for problem, count in zip(problems, counts, strict=True):
        shown = "?" if count is None else count
        console.put(PLANNED.format(problem.kernel, problem.shape, rows_of(problem), shown))
    if path is None:
        console.say("there is no GPU here: which candidates fit is known on one")
    else:
        console.say(f"what is faster on {arch} would be written to {path}")


def put_plan_document(
    problems: "Sequence[Problem]", counts: Sequence[int | None], arch: str | None, path: Path | None
) -> None:
    """The same as one JSON document."""
    listed = [
        {**_fields(problem), "rows": problem.rows, "candidates": count}
        for problem, count in zip(problems, counts, strict=True)
    ]
    plan = {"architecture": arch, "path": path and str(path), "problems": listed}
    console.put(json.dumps(plan, indent=2))


def put_results(results: "Sequence[Result]") -> None:
    """Print what came out, in lines."""
    console.put(COLUMNS.format("kernel", "shape", "rows", "shipped us", "tuned us", "ratio"))
    for result in results:
        problem, shipped = result.problem, result.shipped_us
        before = "-" if shipped is None else f"{shipped:.1f}"
        after, ratio = "kept", ""
        if result.chosen and result.best_us is not None:
            after = f"{result.best_us:.1f}"
            ratio = "" if shipped is None else f"{shipped / result.best_us:.2f}"
        row = COLUMNS.format(problem.kernel, problem.shape, rows_of(problem), before, after, ratio)
        console.put(row.rstrip())


def put_document(results: "Sequence[Result]", about: Mapping[str, str]) -> None:
    """The same as one JSON document.

    Args:
        results: what came out.
        about: where, when and with which versions.
    """
    listed = [
        {
            **_fields(result.problem),
            "rows": result.problem.rows,
            "shipped_us": result.shipped_us,
            "best_us": result.best_us,
            "spread_us": result.spread_us,
            "taken": result.chosen and {**result.chosen.keywords, "library": result.chosen.library},
            "candidates": result.tried,
            "skipped": result.skipped,
            "wrong": len(result.wrong),
        }
        for result in results
    ]
    console.put(json.dumps({**about, "results": listed}, indent=2))


def say_what_happened(results: "Sequence[Result]", path: Path) -> None:
    """Say on stderr what was dropped, what is new, and where it stands."""
    from nomicbert_kernels.tuning.search import describe

    for result in results:
        for settings in result.wrong:
            where = f"{result.problem.kernel} {result.problem.shape}"
            console.say(f"wrong values, not taken: {where} with {describe(settings)}")
    taken = sum(result.chosen is not None for result in results)
    skipped, tried = sum(r.skipped for r in results), sum(r.tried for r in results)
    console.say(
        f"{taken} of {len(results)} settings are replaced; {skipped} of {tried} candidates do not "
        f"run here: {path}"
    )
