"""Goals and the report of the GPU benchmark, from made-up results."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from bench.gpu import report
from bench.gpu.goals import ROWS, Goal, goals, ratio, reached
from bench.gpu.runner.ledger import Ledger
from tests.bench.gpu_cases import line_of

LINES = [
    line_of("ours", "fixed-512", 2.46e6),
    line_of("ours-texts", "fixed-512", 2.1e6),
    line_of("transformers-compile", "fixed-512", 2e6),
    line_of("transformers", "fixed-512", 1.23e6),
    line_of("sentence-transformers-32", "fixed-512", 0.7e6),
    line_of("ours-fp8", "fixed-512", 9e6, status="wrong", reason="wrong vectors"),
    line_of("ours", "latency-32", 1.6e5, part="latency", p50=2e-4, p99=3e-4),
    line_of("transformers", "latency-32", 1e4, part="latency", p50=2.1e-3, p99=3e-3),
]


def goal(case: str, field: str, peer: str = "ours", over: str | None = None) -> Goal:
    (found,) = [
        x for x in goals()
        if (x.model, x.case, x.field, x.peer, x.over) == ("nomic-v1.5", case, field, peer, over)
    ]  # fmt: skip
    return found


@pytest.mark.parametrize(
    ("what", "value", "share"),
    [
        (goal("fixed-512", "tokens_per_second"), 2.46, 1.2),
        (goal("fixed-512", "tokens_per_second", over="transformers-compile"), 1.23, 1.23 / 1.15),
        (goal("fixed-512", "tokens_per_second", over="transformers"), 2.0, 2 / 1.4),
        (
            goal("fixed-512", "tokens_per_second", "ours-texts", "sentence-transformers-32"),
            3.0,
            3 / 1.4,
        ),
        (goal("fixed-512", "model_flops"), 492.0, 0.984),
        # fewer seconds are better, as a figure or as a multiple
        (goal("latency-32", "p50"), 0.2, 1.1),
        (goal("latency-32", "p50", over="transformers"), 10.5, 1.5),
    ],
    ids=lambda what: what.what if isinstance(what, Goal) else "",
)
def test_goals_that_were_measured(what: Goal, value: float, share: float) -> None:
    found = reached(what, LINES)
    assert found == pytest.approx(value)
    assert found is not None
    assert ratio(what, found) == pytest.approx(share)


def test_goals_that_were_not_measured() -> None:
    missing = (
        goal("fixed-32", "tokens_per_second"),
        goal("fixed-512", "tokens_per_second", "ours-fp8"),  # wrong, so not measured
        goal("latency-32", "p50", over="transformers-reduce-overhead"),
    )
    assert [reached(one, LINES) for one in missing] == [None] * 3
    faster = [*LINES, line_of("ours", "fixed-512", 3e6)]
    assert reached(goal("fixed-512", "tokens_per_second"), faster) == 3.0
    assert len(list(goals())) == len(set(goals()))
    assert {one.case for one in goals() if one.model == "nomic-v1.5"} == {*ROWS, "latency-32"}


def test_the_report(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    for number, line in enumerate(LINES):
        Ledger(path).add(line["part"], str(number), "ok", lines=[line])
    report.main([str(path)])
    text = path.with_suffix(".md").read_text()
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines()]
    assert ["nomic-v1.5", "fixed-512", "ours, Mtok/s", "2.46", "2.05", "2.6", "1.20"] in rows
    assert ["nomic-v1.5", "fixed-32", "ours, Mtok/s", "not measured", "2", "2.6", "-"] in rows
    (ours,) = [row for row in rows if row[1:3] == ["fixed-512", "ours bfloat16"]]
    assert ours[3:] == [
        "32", "2.460", "246,000", "-", "1.0%", "492.0", "62%", "50%", "0.99900", "1.00",
    ]  # fmt: skip
    (naive,) = [row for row in rows if row[2:3] == ["sentence-transformers-32 bfloat16"]]
    assert naive[-1] == "3.00"
    (latency,) = [row for row in rows if row[1:3] == ["latency-32", "ours bfloat16"]]
    assert latency[6] == "0.200 / 0.300"
    assert "- ours-fp8 bfloat16: wrong: wrong vectors (nomic-v1.5 fixed-512)" in text
    assert "NVIDIA H200. torch 2. SM clock after a case: 1980 to 1980 MHz." in text
    assert path.with_suffix(".png").is_file() == (find_spec("matplotlib") is not None)
