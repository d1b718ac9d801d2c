"""A run of the GPU benchmark on a CPU: its cases, how it resumes, and what it refuses."""

# An imported fixture is named again as an argument.
# ruff: noqa: F811

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu import __main__ as driver
from bench.gpu import gemm, machine, plan, race, report
from bench.gpu.place import Place
from bench.gpu.runner.ledger import Ledger, ends
from nomicbert.errors import HubError
from tests.bench.gpu_cases import here, line_of  # noqa: F401
from tests.support import stages_here

ROOT = Path(__file__).parents[2]


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("on_cpu")
def test_without_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert driver.main(["--out", str(tmp_path / "lines.jsonl")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "no GPU that torch can use" in err
    assert not list(tmp_path.iterdir())


def dry(path: Path, *more: str) -> int:
    return driver.main(["--dry", "--out", str(path), "--scratch", str(path.parent), *more])


def cases(path: Path) -> dict[str, str]:
    return {case: line["status"] for (_, case), line in ends(Ledger(path).lines()).items()}


@pytest.mark.usefixtures("on_cpu")
def test_it_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stages_here.install(monkeypatch)
    path = tmp_path / "new" / "lines.jsonl"
    words = ("--part", "gemm", "--match", "nomic")
    assert dry(path, *words) == 0
    wanted = [f"nomic {name} 32" for name in ("qkv", "out", "up", "down")]
    assert cases(path) == dict.fromkeys(wanted, "ok")
    found = report.read(path)
    assert [line["case"] for line in found if line["peer"] == gemm.LIBRARY] == [
        name.removeprefix("nomic ") for name in wanted
    ]
    before = path.read_text()
    assert dry(path, *words) == 0
    assert path.read_text() == before
    entries = [line for line in Ledger(path).lines() if line["case"] != "nomic out 32"]
    path.write_text("".join(json.dumps(line) + "\n" for line in entries))
    capsys.readouterr()
    assert dry(path, *words) == 0
    assert "gemm: 1 of 4 cases wait, about 2 s\n" in capsys.readouterr().out
    assert cases(path) == dict.fromkeys(wanted, "ok")


def test_status_of_a_case(here: Place, tmp_path: Path) -> None:
    """A case is wrong if ours is, and failed if ours is absent; peers do not matter."""

    def measured(peer: str, **more: Any) -> dict[str, Any]:
        return {**line_of(peer, "c", 1.0), **more}

    good = [measured("ours"), measured("library", status="wrong", reason="off by 9")]
    assert "status" not in race.facts_of(good)
    assert race.facts_of(good)["lines"] == good
    wrong = race.facts_of([measured("ours", status="wrong", reason="off by 9")])
    assert (wrong["status"], wrong["reason"]) == ("wrong", "ours: off by 9")
    form = race.facts_of([*good, measured("ours-fp8", status="wrong", reason="off by 8")])
    assert (form["status"], form["reason"]) == ("wrong", "ours-fp8: off by 8")
    missing = race.facts_of([*good, measured("ours-fp8", status="absent", reason="no e4m3")])
    assert "status" not in missing
    absent = race.facts_of([measured("ours", status="absent", reason="no kernel")])
    assert (absent["status"], absent["reason"]) == ("failed", "no kernel")


def test_a_case_waits_for_the_device(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work that is still running may fail; the failure belongs to this case."""
    done: list[str] = []
    monkeypatch.setattr(Place, "finish", lambda self: done.append("finish"))

    def measure(task: race.Task) -> list[dict[str, Any]]:
        done.append("measure")
        return [line_of("ours", "c", 1.0)]

    task = race.Task("gemm", "m", "c", "gemm")
    assert plan.measured(here, measure, task)["said"] == "ours 1e-06 Mtok/s"
    assert done == ["measure", "finish"]
    assert plan.measured(here, lambda task: [], task) == race.TOO_LONG

    def missing(task: race.Task) -> list[dict[str, Any]]:
        raise HubError("weights are not installed")

    found = plan.measured(here, missing, task)
    assert found == {"lines": [], "said": "left out: weights are not installed"}


@pytest.mark.usefixtures("on_cpu")
def test_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "list").write_text("milk\n")
    for path, what in (("file/lines.jsonl", "file"), ("list", "holds no lines of a run")):
        assert dry(tmp_path / path) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert len(err.splitlines()) == 1
        assert what in err
    with monkeypatch.context() as patch:
        patch.setattr(machine.importlib.util, "find_spec", lambda name: None)
        assert dry(tmp_path / "lines.jsonl") == 2
    assert "triton is not installed" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        dry(tmp_path / "lines.jsonl", "--part", "luck")


def test_a_broken_device_ends_the_run(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(self: Place) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    def broken() -> Any:
        raise ValueError("the first to notice")

    task = race.Task("ops", "m", "c", "op")
    found = race.run(here, task, {"x": broken})
    assert found[0]["reason"] == "ValueError: the first to notice"
    monkeypatch.setattr(Place, "finish", lost)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        race.run(here, task, {"x": broken})


@pytest.mark.usefixtures("on_cpu")
def test_a_dry_run_leaves_real_figures_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lines.jsonl"
    ledger = Ledger(path)
    ledger.add("models", "fixed-32", "ok", lines=[line_of("ours", "fixed-32", 1.0)])
    before = path.read_text()
    assert dry(path, "--part", "gemm") == 2
    assert "give a dry run its own file" in capsys.readouterr().err
    assert path.read_text() == before
    other = line_of("ours", "fixed-32", 1.0)
    other["machine"] = {**other["machine"], "gpu": None}
    Ledger(tmp_path / "dry.jsonl").add("models", "fixed-32", "ok", lines=[other])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert driver.main(["--out", str(tmp_path / "dry.jsonl")]) == 2
    assert "holds figures of a dry run" in capsys.readouterr().err


def test_results_from_elsewhere(here: Place, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "lines.jsonl")
    own = gemm.measure(here, next(gemm.tasks(here)))
    ledger.add("gemm", "a", "ok", lines=own)
    assert machine.elsewhere(ledger) == ""
    other = {**own[0], "versions": {**own[0]["versions"], "torch": "1.0"}}
    ledger.add("gemm", "b", "ok", lines=[other])
    assert machine.elsewhere(ledger) == "kept results come from torch 1.0"


def test_parts(here: Place, tmp_path: Path) -> None:
    options = {"dry": True, "match": "", "models": ["nomic-v1.5"], "scratch": str(tmp_path),
               "compile": True, "slow": False}  # fmt: skip
    for part in plan.SECONDS:
        known = [task for task, _ in plan.tasks(part, here, options)]
        assert known
        assert {task.part for task in known} == {part}
        names = [case.name for case in plan.cases(part, options)]
        assert names == [f"{task.model} {task.case}" for task in known]
        assert len(set(names)) == len(names)
    few = plan.cases("gemm", options | {"match": "bert-large up"})
    assert [case.name for case in few] == ["bert-large up 32"]
