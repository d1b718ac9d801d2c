"""Result lines of the benchmark of whole models: ratios, files and the report."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from bench import throughput_report
from nomicbert.benchmark.lines import as_json, compare, put, read, texts_per_core_hour


def line_of(peer: str, dtype: str, rate: float | None, **more: Any) -> dict[str, Any]:
    status = "absent" if rate is None else "measured"
    plain = {
        "model": "m", "case": "c", "group": "float32", "reason": "none", "from_texts": False,
        "batch": "4", "texts": 1, "tokens": 2, "texts_per_second": 1.0, "spread": 0.1,
        "model_flops": 2e9, "matrix_flops": 4e9, "matrix_share": 0.5, "cosine_mean": 1.0,
        "cosine_min": 0.5, "commit": None, "versions": {"torch": "2"},
        "machine": {"gpu": None, "cpu": "abacus", "instructions": ["avx2"], "threads": 3},
    }  # fmt: skip
    found = plain | {"peer": peer, "dtype": dtype, "status": status, "tokens_per_second": rate}
    return found | more


LINES = [
    line_of("ours", "float32", 300.0, shares={"tokenise": 1.0, "encode": 3.0}),
    line_of("transformers-32", "float32", 100.0),
    line_of("fast", "float32", 600.0),
    line_of("faster", "int8", 900.0),
    line_of("from strings", "float32", 800.0, from_texts=True),
    line_of("elsewhere", "float32", 950.0, case="d"),
    line_of("gone", "float32", None),
    line_of("bad", "float32", 990.0, status="wrong"),
]


def test_comparison() -> None:
    best, over_best, over_naive, less_exact = compare(LINES, LINES[0])
    assert best is not None
    assert (best["peer"], over_best, over_naive, less_exact) == ("fast", 0.5, 3.0, None)
    assert compare(LINES[:1], LINES[0]) == (None, None, None, None)
    # measured again: the later line counts
    again = [*LINES, line_of("fast", "float32", 200.0)]
    assert compare(again, LINES[0])[1:3] == (1.5, 3.0)


def test_best_peer_in_int8_is_as_exact_as_ours() -> None:
    def lines_of(dtype: str, **cosines: float) -> list[dict[str, Any]]:
        rates = {"ours": 300.0, "exact": 200.0, "close": 400.0, "coarse": 600.0}
        found = cosines or {"ours": 0.99, "exact": 0.999, "close": 0.9881, "coarse": 0.9879}
        return [
            line_of(peer, dtype, rates[peer], cosine_min=value) for peer, value in found.items()
        ]

    def said(lines: list[dict[str, Any]]) -> tuple[str | None, str | None, float | None]:
        found = compare(lines, lines[0])
        names = [line and line["peer"] for line in (found.best, found.less_exact)]
        return names[0], names[1], found.over_best

    assert said(lines_of("int8")) == ("close", "coarse", 0.75)
    # a slower one that is less exact is not worth a word
    assert said(lines_of("int8", ours=0.99, close=0.99, exact=0.9)) == ("close", None, 0.75)
    assert said(lines_of("int8", ours=0.99, coarse=0.9)) == (None, "coarse", None)
    # in other dtypes all correct peers are alike
    assert said(lines_of("float32")) == ("coarse", None, 0.5)


def test_texts_per_core_hour() -> None:
    line = line_of("ours", "float32", 300.0, texts_per_second=5.0)
    assert texts_per_core_hour(line) == 5 * 3600 / 3
    assert texts_per_core_hour(line | {"p50": 0.1}) is None
    assert texts_per_core_hour(line | {"machine": line["machine"] | {"gpu": "abacus"}}) is None


def test_lines_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    put(LINES[:2], path)
    assert read(path) == LINES[:2]
    path.write_text('{"model": "m"}\n')
    with pytest.raises(ValueError, match="line 1 is not a result"):
        read(path)
    path.write_text("{}\n{")
    with pytest.raises(ValueError, match="line 1 is not a result"):
        read(path)
    path.write_text(json.dumps(LINES[0]) + "\n{")
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        read(path)


def test_put_replaces_lines_of_the_same_case(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    cases = [
        [line_of(peer, "float32", rate, case=case) for peer in ("ours", "fast")]
        for case, rate in (("a", 1.0), ("b", 2.0), ("c", 3.0))
    ]
    for lines in cases:
        put(lines, path)
    again = [line_of("ours", "float32", 9.0, case="b")]
    put(again, path)
    assert read(path) == [*cases[0], *again, *cases[2]]
    other = [line_of("ours", "float32", 8.0, case="b", **{key: "x"}) for key in ("model", "group")]
    put(other, path)
    assert read(path) == [*cases[0], *again, *cases[2], *other]
    assert list(tmp_path.iterdir()) == [path]


def test_put_is_atomic(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    put(LINES[:1], path)
    with pytest.raises(ValueError, match="Out of range float"):
        put([LINES[1], line_of("ours", "float32", math.nan)], path)
    assert read(path) == LINES[:1]


def test_the_report(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text(as_json([*LINES, line_of("fast", "float32", 200.0)]))
    throughput_report.main([str(path)])
    rows = [
        [cell.strip() for cell in row.strip("|").split("|")]
        for row in path.with_suffix(".md").read_text("utf-8").splitlines()
        if row.startswith("| c |")
    ]
    assert rows[0] == ["c", "ours float32", "300", "1,200", "fast 200", "1.50", "3.00", "25 / 75"]
    found = {row[1]: row for row in rows[1:]}
    assert set(found) == {
        "ours float32", "transformers-32 float32", "fast float32", "faster int8",
        "from strings float32",
    }  # fmt: skip
    assert found["fast float32"][2:] == [
        "4", "200", "1,200", "10.0%", "50%", "1.00000 / 0.50000", "0.67",
    ]  # fmt: skip
    text = path.with_suffix(".md").read_text("utf-8")
    assert "- gone float32: none (c)" in text
    assert text.count("abacus, avx2; 3 threads. torch 2.") == 1
    assert "- bad float32: wrong, not ranked: none (c)" in text


def test_report_names_each_machine_once(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    machine = LINES[0]["machine"] | {"threads": 4}
    put(LINES[:1], path)
    for case, commit, version in (("d", "0123456789abcd", "2"), ("e", "f" * 40, "3")):
        versions = {"torch": version, "gone": None}
        more = {"case": case, "commit": commit, "versions": versions, "machine": machine}
        for model in "mn":
            put([line_of("ours", "float32", 1.0, model=model, **more)], path)
    throughput_report.main([str(path)])
    text = path.with_suffix(".md").read_text("utf-8")
    assert text.startswith(
        "abacus, avx2; 3 threads. torch 2.\n\n"
        "abacus, avx2; 4 threads. torch 2 and 3. Commits 0123456789ab, ffffffffffff.\n\n## m\n"
    )
    assert text.count("abacus") == 2


def test_latency_in_the_report(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    for peer, rate, p50 in (("ours", 20.0, 0.1), ("fast", 40.0, 0.05)):
        more = {"case": "latency-8", "p50": p50, "p99": 0.2, "group": "all"}
        lines = read(path) if path.is_file() else []
        path.write_text(as_json([*lines, line_of(peer, "float32", rate, **more)]))
    throughput_report.main([str(path)])
    text = path.with_suffix(".md").read_text("utf-8")
    assert "| latency-8 | ours float32 | 100 ms | - | fast 50.0 ms | 0.50 | - | - |" in text
    assert "| latency-8 | fast float32 | 4 | 40 (p50 50.0, p99 200 ms) | - | 10.0% |" in text
