"""The report: a failure is in the file, runs add up, another commit starts a new file."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.gpu.report import Report, results_folder, worst

RECORDS = [
    {"op": "swiglu", "dtype": "float32", "check": "values", "error": 1.0, "bound": 4.0},
    {"op": "swiglu", "dtype": "float32", "check": "values", "error": 2.0, "bound": 4.0},
    {"op": "swiglu", "dtype": "bfloat16", "check": "values", "error": 0.0, "bound": 0.0},
]


@pytest.fixture(autouse=True)
def this_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOMICBERT_COMMIT", "abc")


def read(path: Path) -> dict:
    return json.loads((path / "gpu-sm_90.json").read_text())


def test_the_worst_is_kept_and_all_are_counted() -> None:
    full, half = worst([dict(record) for record in RECORDS])
    assert (full["error"], full["used"], full["cases"]) == (2.0, 0.5, 2)
    assert (half["used"], half["cases"]) == (0.0, 1)
    nan = RECORDS[0] | {"error": math.nan}
    for records in ([nan, RECORDS[1]], [RECORDS[1], nan]):
        (found,) = worst([dict(record) for record in records])
        assert math.isnan(found["error"])
    (beyond,) = worst([{"op": "x", "error": 1.0, "bound": 0.0}])
    assert beyond["used"] == float("inf")


def test_a_failure_is_in_the_file(tmp_path: Path) -> None:
    report = Report("sm_90", tmp_path)
    report.add("test_a", "passed", RECORDS[:1])
    report.add("test_b", "failed", [RECORDS[0] | {"error": math.nan}], "off by 9")
    report.add("test_b", "failed", [], "teardown")
    report.add("test_c", "skipped", [], "no tool")
    found = read(tmp_path)
    assert found["counts"] == {"failed": 1, "passed": 1, "skipped": 1}
    assert found["tests"]["test_b"]["verdict"] == "failed"
    assert found["tests"]["test_b"]["records"][0]["error"] == "nan"
    assert found["machine"]["commit"] == "abc"
    assert "NaN" not in (tmp_path / "gpu-sm_90.json").read_text()
    assert found["machine"]["versions"]["torch"]
    text = "\n".join(report.lines())
    assert "FAILED test_b: teardown" in text
    assert "inf%" in text  # the worst of the two, NaN
    assert "SKIPPED test_c: no tool" in text


def test_runs_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Report("sm_90", tmp_path)
    first.add("test_a", "failed", [], "x")
    first.add("test_b", "passed", [])
    second = Report("sm_90", tmp_path)
    second.add("test_a", "passed", [])
    assert read(tmp_path)["counts"] == {"passed": 2}
    assert "test_b" not in "\n".join(second.lines())
    monkeypatch.setenv("NOMICBERT_COMMIT", "other")
    Report("sm_90", tmp_path).add("test_a", "passed", [])
    assert set(read(tmp_path)["tests"]) == {"test_a"}


def test_where_it_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOMICBERT_RESULTS", str(tmp_path / "named"))
    assert results_folder() == tmp_path / "named"
