"""`nomicbert verify`: check on this machine that a checkpoint gives the reference's results.

Where in the flow: `nomicbert.verify` compares with the reference; this module prints its rows as a
table or as one JSON document, whose fields docs/verify.md lists.
"""

import json
import math
import textwrap
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nomicbert.bulk.output import STDOUT
from nomicbert.cli import console, options

if TYPE_CHECKING:
    import torch

    from nomicbert.verify.report import Report, Row

EXAMPLES = """\b
Examples:
  nomicbert verify nomic-ai/nomic-embed-text-v1.5
  nomicbert verify ./my-checkpoint --dtype float32 --backend torch
  nomicbert verify ./saved-again --against ./my-checkpoint
  nomicbert verify ./my-checkpoint --json report.json
"""
WIDTH = 80
# Widths of the columns: label, dtype and backend, measure, value, bound, verdict.
COLUMNS = (11, 15, 24, 10, 11, 9)
LABEL = COLUMNS[0]
SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


class VerifiedDtype(str, Enum):
    """What --dtype takes here."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class VerifiedBackend(str, Enum):
    """What --backend takes here."""

    reference = "reference"
    torch = "torch"
    triton = "triton"
    invariant = "invariant"


def verify(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A checkpoint's folder or repository id."),
    ],
    against: Annotated[
        str | None,
        typer.Option(
            metavar="PATH_OR_ID",
            help="Checkpoint of the reference. Default: MODEL.",
        ),
    ] = None,
    revision: options.Revision = None,
    local_files_only: options.LocalFilesOnly = False,
    device: options.Device = "auto",
    dtype: Annotated[
        list[VerifiedDtype] | None,
        typer.Option(help="Only this dtype. Can be repeated. Default: all.", show_default=False),
    ] = None,
    backend: Annotated[
        list[VerifiedBackend] | None,
        typer.Option(
            help="Only this backend. Can be repeated. Default: reference, torch and triton.",
            show_default=False,
        ),
    ] = None,
    json_file: Annotated[
        str | None,
        typer.Option(
            "--json", metavar="FILE", help="Write a JSON document to FILE; - for stdout, no table."
        ),
    ] = None,
) -> None:
    """Compare a checkpoint's results with transformers on this machine.

    Hidden states, vectors and speed are compared with transformers and sentence-transformers on the
    same files. Exit code 1 if a bound is broken.
    """
    # Slow imports, so they follow the checks of the arguments.
    import torch

    from nomicbert.arguments import as_device
    from nomicbert.verify.references import need_transformers
    from nomicbert.verify.run import BACKENDS, DTYPES, count_steps
    from nomicbert.verify.run import verify as compare

    need_transformers()
    place = as_device(device)
    dtypes = [getattr(torch, name.value) for name in dict.fromkeys(dtype)] if dtype else DTYPES
    backends: Any = [name.value for name in dict.fromkeys(backend)] if backend else None
    if json_file not in (None, STDOUT) and not Path(json_file).parent.is_dir():
        raise ValueError(f"--json {json_file}: the folder {Path(json_file).parent} does not exist")
    report = _with_bar(
        count_steps(dtypes, len(backends or BACKENDS)),
        lambda step: compare(
            model,
            against=against,
            revision=revision,
            local_files_only=local_files_only,
            device=place,
            dtypes=dtypes,
            backends=backends,
            step=step,
        ),
    )
    text = json.dumps(as_document(report, place), indent=2, allow_nan=False)
    if json_file == STDOUT:
        console.put(text)
    else:
        console.put(as_text(report, place))
        if json_file is not None:
            Path(json_file).write_text(text + "\n", encoding="utf-8")
    if report.broken:
        raise typer.Exit(console.FAILED)


def _with_bar(steps: int, work: Any) -> "Report":
    """Run the work under a progress bar of its steps."""
    with console.open_bar("Verifying", " steps", steps) as bar:

        def step(what: str) -> None:
            bar.set_postfix_str(what, refresh=False)
            bar.update()

        report: Report = work(step)
    return report


def as_document(report: "Report", device: "torch.device") -> dict[str, Any]:
    """The JSON document; docs/verify.md explains each field.

    Fields may be added; existing ones keep their names and meaning.
    """
    from nomicbert.verify.report import machine, versions

    return {
        "model": report.model,
        "against": report.against,
        "holds": not report.broken,
        "judged": report.judged,
        "broken": report.broken,
        "reference": report.reference,
        "embedding_reference": report.embedding_reference,
        "reason": report.reason or None,
        "notes": report.notes,
        "versions": versions(),
        "machine": machine(device),
        "rows": [
            {
                "check": row.check,
                "dtype": row.dtype,
                "backend": row.backend,
                "what": row.what,
                "measure": row.measure,
                "value": _finite(row.value),
                "bound": row.bound,
                "at_least": row.at_least,
                "holds": row.holds,
                "layers": [_finite(value) for value in row.layers],
            }
            for row in report.rows
        ],
    }


def as_text(report: "Report", device: "torch.device") -> str:
    """The table and the facts below it, wrapped at 80 columns except within names."""
    from nomicbert.verify.report import machine, versions

    lines = [_line("row", "", "what", "found", "bound", "verdict")]
    for row in report.rows:
        lines += _row(row)
    lines.append("")
    known = versions()
    said = ", ".join(f"{name} {known[name] or 'missing'}" for name in ("nomicbert", "torch"))
    at = machine(device)
    where = f"{at['gpu'] or at['cpu']}, {at['threads']} threads"
    facts = [
        ("checkpoint", report.model),
        *([("against", report.against)] if report.against != report.model else []),
        ("reference", report.reference),
        ("vectors", report.embedding_reference),
        ("here", f"{said}, {where}"),
        *(("" if number else "notes", note) for number, note in enumerate(report.notes)),
    ]
    for label, fact in facts:
        lines += textwrap.wrap(
            fact,
            WIDTH,
            initial_indent=label.ljust(LABEL),
            subsequent_indent=" " * LABEL,
            break_long_words=False,
            break_on_hyphens=False,
        )
    lines.append(
        f"{report.broken} of {report.judged} bounds are BROKEN"
        if report.broken
        else f"all {report.judged} bounds hold"
    )
    return "\n".join(lines)


def _row(row: "Row") -> list[str]:
    """One row of the table; a long measure takes several lines."""
    where = f"{SHORT.get(row.dtype or '', '')} {row.backend or ''}".strip()
    first, *rest = textwrap.wrap(f"{row.what}: {row.measure}", COLUMNS[2])
    sign = ">= " if row.at_least else ""
    bound = "" if row.bound is None else sign + _number(row.bound)
    verdict = {True: "holds", False: "BROKEN", None: "-"}[row.holds]
    lines = [_line(row.check, where, first, _number(row.value), bound, verdict)]
    return lines + [_line("", "", more, "", "", "") for more in rest]


def _line(check: str, where: str, what: str, found: str, bound: str, verdict: str) -> str:
    a, b, c, d, e, _ = COLUMNS
    return f"{check:<{a}}{where:<{b}}{what:<{c}}{found:>{d}}{bound:>{e}}  {verdict}".rstrip()


def _number(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    if value == int(value):
        return f"{value:.0f}"
    return f"{value:.1e}" if abs(value) < 0.001 else f"{value:.5g}"


def _finite(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None
