"""A launch table is marked as proven only by the results of a complete run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import digests, proven
from bench.gpu.runner.ledger import Ledger
from nomicbert_kernels import launch
from tests.support.bench_lines import OURS, entry, measured

Change = Callable[[dict[str, Any], Ledger], None]


def good_tests(names: list[str]) -> dict[str, Any]:
    return {
        "date": "2026-01-01",
        "machine": {
            "gpu": "NVIDIA H200", "commit": "abc", "versions": {"torch": "2.11.0"},
            "sources": digests.sources(), "rows": digests.rows("sm_90"),
        },
        "tests": {name: {"verdict": "passed"} for name in names},
    }  # fmt: skip


CASES = [("smoke", "a"), ("smoke", "b"), ("parity", "c")]


def good_proof(path: Path) -> Ledger:
    ledger = Ledger(path)
    here = {"sources": digests.sources(), "machine": {"gpu": "NVIDIA H200"}}
    ledger.add("baseline", "machine", "ok", **here)
    for stage, case in CASES:
        ledger.add(stage, case, "ok", sources=digests.sources())
    return ledger


def fail(tests: dict[str, Any], ledger: Ledger) -> None:
    tests["tests"]["test_x"] = {"verdict": "failed", "reason": "off by 9"}


def skip(tests: dict[str, Any], ledger: Ledger) -> None:
    tests["tests"]["tests/gpu/test_values.py::test_one"] = {"verdict": "skipped"}


def other_kernels(tests: dict[str, Any], ledger: Ledger) -> None:
    tests["machine"]["sources"] = "0"


def no_gpu(tests: dict[str, Any], ledger: Ledger) -> None:
    del tests["machine"]["gpu"]


def wrong_case(tests: dict[str, Any], ledger: Ledger) -> None:
    ledger.add("smoke", "b", "wrong", reason="off by 9")


def other_gpu(tests: dict[str, Any], ledger: Ledger) -> None:
    tests["machine"]["gpu"] = "NVIDIA A100"


def older_case(tests: dict[str, Any], ledger: Ledger) -> None:
    ledger.add("parity", "c", "ok", sources="0")


def left_case(tests: dict[str, Any], ledger: Ledger) -> None:
    ledger.forget(["ok"])
    ledger.add("baseline", "machine", "ok", machine={"gpu": "NVIDIA H200"})
    for stage, case in CASES[:2]:
        ledger.add(stage, case, "ok", sources=digests.sources())


def other_row(tests: dict[str, Any], ledger: Ledger) -> None:
    tests["machine"]["rows"].remove(tests["machine"]["rows"][-1])


def race_of(ledger: Ledger, *statuses: str, sources: str | None = None) -> None:
    """Race the last row of the table, one status per size."""
    row = json.loads(launch.shipped("sm_90").read_text("utf-8"))["rows"][-1]
    for size, status in enumerate(statuses):
        lines = [OURS, {**measured("a", 1.0), "status": status}]
        one = entry("x", *lines, size=size, sizes=2)
        one["rows"] = {"a": {**row, "exactly": {"n": 1}}}
        one["sources"] = sources or digests.sources()
        ledger.add("variants", f"x, {size}", one.pop("status"), **one)


def raced_row(tests: dict[str, Any], ledger: Ledger) -> None:
    other_row(tests, ledger)
    race_of(ledger, "measured", "measured")


def row_of_other_kernels(tests: dict[str, Any], ledger: Ledger) -> None:
    other_row(tests, ledger)
    race_of(ledger, "measured", "measured", sources="0")


def row_that_is_wrong_at_one_size(tests: dict[str, Any], ledger: Ledger) -> None:
    other_row(tests, ledger)
    race_of(ledger, "measured", "wrong")


NEITHER = "1 rows of the table were neither in it during the run nor raced"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (None, None),
        (raced_row, None),
        (fail, "failed: test_x: off by 9"),
        (skip, "1 tests have not passed, such as tests/gpu/test_values.py::test_one"),
        (other_kernels, "the tests ran other kernels than the present ones"),
        (no_gpu, "the tests did not run on a GPU"),
        (wrong_case, "stage smoke: b: wrong"),
        (left_case, "stage parity: c: not run"),
        (older_case, "stage parity: c: it ran other kernels"),
        (other_gpu, "the tests ran on NVIDIA A100, the proof on NVIDIA H200"),
        (other_row, NEITHER),
        (row_of_other_kernels, NEITHER),
        (row_that_is_wrong_at_one_size, NEITHER),
    ],
)
def test_a_table_is_marked_by_the_lines_of_a_run(
    change: Change | None,
    said: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = ["tests/gpu/test_values.py::test_one", "tests/gpu/test_models.py::test_two"]
    monkeypatch.setattr(proven, "wanted", lambda: names)
    monkeypatch.setattr(proven, "cases", lambda: CASES)
    tests, ledger = good_tests(names), good_proof(tmp_path / "proof.jsonl")
    tables = tmp_path / "tables"
    tables.mkdir()
    (tables / "sm_90.json").write_text(launch.shipped("sm_90").read_text("utf-8"), "utf-8")
    if change:
        change(tests, ledger)
    monkeypatch.setattr(launch, "TABLES", tables)
    (tmp_path / "gpu-sm_90.json").write_text(json.dumps(tests))
    before = launch.read_table(tables / "sm_90.json")
    code = proven.main([str(tmp_path)])
    out = capsys.readouterr().out
    stored = json.loads((tables / "sm_90.json").read_text())
    assert code == (1 if said else 0)
    assert ("proven" in stored) == (said is None)
    assert launch.read_table(tables / "sm_90.json") == before
    if said:
        assert said in out
    else:
        assert stored["by"]["sources"] == digests.sources()
        assert len(stored["by"]["rows"]) == len(stored["rows"])


def test_missing_files_and_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert proven.main([str(tmp_path)]) == 2
    assert "gpu-ARCH.json" in capsys.readouterr().err
    (tmp_path / "gpu-sm_1.json").write_text("{}")
    assert proven.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == ("bench.gpu.proven: sm_1 has no launch table of its own\n")


def test_the_tests_that_have_to_pass() -> None:
    names = proven.wanted()
    assert len(names) > 350
    assert {name.split("::")[0].rpartition("/")[2] for name in names} == set(proven.FILES)
    assert not any("longest" in name for name in names)
    cases = proven.cases()
    assert ("smoke", "nomic swiglu") in cases
    assert ("parity", "graphs against launches") in cases
