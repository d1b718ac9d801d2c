"""Output of `nomicbert tune`: the plan of a dry run, and the results.

Where in the flow: after `tune`, which measures. docs/tune.md lists the fields of the documents.
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
    """The range of row counts that a problem covers."""
    if problem.rows is None:
        return "all"
    return "more" if problem.up_to is None else f"<= {problem.up_to}"


def _fields(problem: "Problem") -> dict[str, Any]:
    return {"kernel": problem.kernel, **problem.exactly, "up_to_rows": problem.up_to}


def put_plan(
    problems: "Sequence[Problem]", counts: Sequence[int | None], arch: str | None, path: Path | None
) -> None:
    """Print the plan as a table.

    Args:
        problems: what would be measured.
        counts: candidates per problem; None without a GPU, whose shared memory decides.
        arch: architecture of the GPU, if there is one.
        path: the table that would be written.
    """
    console.put(PLANNED.format("kernel", "shape", "rows", "candidates"))
    for problem, count in zip(problems, counts, strict=True):
        shown = "?" if count is None else count
        console.put(PLANNED.format(problem.kernel, problem.shape, rows_of(problem), shown))
    if path is None:
        console.tell("no GPU here: the number of candidates depends on its shared memory")
    else:
        console.tell(f"settings that are faster on {arch} would be written to {path}")


def put_plan_document(
    problems: "Sequence[Problem]", counts: Sequence[int | None], arch: str | None, path: Path | None
) -> None:
    """Print the plan as one JSON document; arguments as for `put_plan`."""
    listed = [
        {**_fields(problem), "rows": problem.rows, "candidates": count}
        for problem, count in zip(problems, counts, strict=True)
    ]
    plan = {"architecture": arch, "path": path and str(path), "problems": listed}
    console.put(json.dumps(plan, indent=2))


def put_results(results: "Sequence[Result]") -> None:
    """Print the results as a table."""
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
    """Print the results as one JSON document.

    Args:
        results: one per problem.
        about: machine, time and versions.
    """
    listed = [
        {
            **_fields(result.problem),
            "rows": result.problem.rows,
            "shipped_us": result.shipped_us,
            "best_us": result.best_us,
            "spread_us": result.spread_us,
            "taken": result.chosen and {"library": False, **result.chosen.fields},
            "candidates": result.tried,
            "skipped": result.skipped,
            "wrong": len(result.wrong),
        }
        for result in results
    ]
    console.put(json.dumps({**about, "results": listed}, indent=2))


def say_what_happened(results: "Sequence[Result]", path: Path) -> None:
    """Report rejected candidates, the number of new settings and the table's path on stderr."""
    from nomicbert_kernels.tuning.search import describe

    for result in results:
        for settings in result.wrong:
            where = f"{result.problem.kernel} {result.problem.shape}"
            console.say(f"wrong values, rejected: {where} with {describe(settings)}")
    taken = sum(result.chosen is not None for result in results)
    skipped, tried = sum(r.skipped for r in results), sum(r.tried for r in results)
    console.tell(
        f"{taken} of {len(results)} settings are replaced; {skipped} of {tried} candidates do not "
        f"run on this GPU; table: {path}"
    )
