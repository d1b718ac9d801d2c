"""Report of a parity run: the worst value of each comparison next to its bound.

`held` and `seen` replace assertions in tests; `tests/parity/conftest.py` prints the table and
writes parity-report.md and parity-report.json.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.parity.bounds import FAULT

HEAD = ("test", "what", "rows", "worst", "bound", "cosine", "verdict")


@dataclasses.dataclass
class Row:
    """The worst of a test's comparisons of one kind.

    Attributes:
        what: kind of comparison.
        worst: largest value found; for planted faults the smallest multiple of the bound.
        bound: upper limit of the value; for planted faults the lower limit of the multiple.
        cosine: the smallest cosine of both sides, if there are two.
        where: the comparison with the worst value.
        count: number of comparisons.
    """

    what: str
    worst: float
    bound: float
    cosine: float | None
    where: str
    count: int = 1


# Measurements of the current test, by kind.
ROWS: dict[str, Row] = {}


def difference(a: Tensor, b: Tensor) -> float:
    """The largest absolute difference; NaN if either side has NaN, which breaks every bound."""
    assert a.shape == b.shape
    return (a.double() - b.double()).abs().max().item()


def held(what: str, found: Tensor, truth: Tensor, bound: float, where: Any = "") -> None:
    """Assert that two tensors agree within a bound, and record the error."""
    worst = difference(found, truth)
    pair = (x.detach().double().flatten() for x in (found, truth))
    within(what, worst, bound, where, torch.cosine_similarity(*pair, dim=0).item())


def within(
    what: str, value: float, bound: float, where: Any = "", cosine: float | None = None
) -> None:
    """Assert that a value keeps its bound, and record it."""
    assert value <= bound, f"{what}: {value} is more than {bound} {where}"
    _note(Row(what, value, bound, cosine, str(where)))


def seen(found: Tensor, truth: Tensor, bound: float, where: Any = "") -> None:
    """Assert that a planted fault exceeds the bound by the factor FAULT, and record the factor."""
    factor = difference(found, truth) / bound
    assert factor >= FAULT, f"the fault is only {factor} times the bound {where}"
    _note(Row("planted fault", factor, FAULT, None, str(where)))


def _note(row: Row) -> None:
    old = ROWS.get(row.what)
    if old is None:
        ROWS[row.what] = row
        return
    worse = row.worst < old.worst if row.what == "planted fault" else row.worst > old.worst
    kept = row if worse else old
    cosines = [c for c in (row.cosine, old.cosine) if c is not None]
    ROWS[row.what] = dataclasses.replace(
        kept, count=old.count + 1, cosine=min(cosines, default=None)
    )


def table(rows: Iterable[tuple[str, dict[str, Any]]], failed: Iterable[str]) -> list[list[str]]:
    """One line per test function and kind, all parameters combined; failures first."""
    lines = [[name, "", "", "", "", "", "BROKEN"] for name in failed]
    groups: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for test, row in rows:
        place = test.split("[")[0].removeprefix("tests/parity/")
        groups.setdefault((place, row["what"], row["bound"]), []).append(row)
    for (place, what, bound), group in groups.items():
        fault = what == "planted fault"
        worst = (min if fault else max)(row["worst"] for row in group)
        cosines = [row["cosine"] for row in group if row["cosine"] is not None]
        lines.append(
            [
                place,
                what,
                str(sum(row["count"] for row in group)),
                f"{worst:.0f}x" if fault else f"{worst:.1e}",
                f">= {bound:g}x" if fault else f"{bound:g}",
                f"{min(cosines):.9f}" if cosines else "",
                "seen" if fault else "holds",
            ]
        )
    return lines


def as_text(lines: list[list[str]]) -> str:
    """Format rows in columns."""
    whole = [list(HEAD), *lines]
    widths = [max(len(line[i]) for line in whole) for i in range(len(HEAD))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in whole
    )


def write(
    folder: Path, about: dict[str, Any], rows: list[tuple[str, dict[str, Any]]], failed: list[str]
) -> None:
    """Write parity-report.json with every row, and parity-report.md with the table."""
    lines = table(rows, failed)
    said = "".join(f"- {key}: {value}\n" for key, value in about.items())
    columns = ["| " + " | ".join(line) + " |" for line in [list(HEAD), ["---"] * len(HEAD), *lines]]
    text = f"# Parity\n\n{said}\n" + "\n".join(columns) + "\n"
    (folder / "parity-report.md").write_text(text, encoding="utf-8")
    whole = {**about, "failed": failed, "rows": [{"test": test, **row} for test, row in rows]}
    (folder / "parity-report.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
