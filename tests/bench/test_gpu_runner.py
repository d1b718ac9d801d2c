"""Cases in child processes: whatever one does, all lines are kept and the others run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.gpu.runner import ledger as notes
from bench.gpu.runner.ledger import START, Ledger, ends, unfinished
from bench.gpu.runner.supervise import (
    ALL_RIGHT,
    FAULTY,
    LEFT,
    Stage,
    Supervisor,
    left,
    minutes,
)

ROOT = Path(__file__).parents[2]
CASES = "tests.support.bench_stages:cases"


@pytest.fixture(autouse=True)
def source_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def stage(name: str, limit: float = 20.0, box: float = 60.0, **more: Any) -> Stage:
    return Stage(name, more.pop("cases", CASES), box, limit, **more)


def run(
    folder: Path, stages: dict[str, list[str]], given: Sequence[Stage] = (), **more: Any
) -> tuple[int, Ledger]:
    """A run over stand-in cases."""
    ledger = Ledger(folder / "lines.jsonl")
    chosen = given or [stage(name) for name in stages]
    options = {"stages": stages, "folder": str(folder)}
    supervisor = Supervisor(ledger, chosen, options, more.pop("limit", 2.0), **more)
    return supervisor.run(), ledger


def starts(folder: Path) -> list[str]:
    return (folder / "starts").read_text().split()


def outcomes(ledger: Ledger) -> dict[str, str]:
    return {
        f"{stage}/{case}": line["status"] for (stage, case), line in ends(ledger.lines()).items()
    }


def reason(ledger: Ledger, stage: str, case: str) -> str:
    return str(ends(ledger.lines())[stage, case]["reason"])


def gone(pid: int) -> bool:
    """Whether a process has ended or is a zombie."""
    try:
        return "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True


def test_all_is_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[int] = []
    code, ledger = run(
        tmp_path, {"one": ["a", "b nan"], "two": ["c"]}, summarise=lambda x: told.append(len(x))
    )
    assert code == ALL_RIGHT
    assert starts(tmp_path) == ["one/a", "one/b", "two/c"]
    assert set(outcomes(ledger).values()) == {"ok"}
    lines = [json.loads(text) for text in ledger.path.read_text().splitlines()]
    assert [line["status"] for line in lines] == ["planned", *["begun", "ok"] * 2,
                                                  "planned", "begun", "ok"]  # fmt: skip
    assert ends(lines)["one", "b"]["figure"] == "nan"
    assert told == sorted(told)
    assert told[-1] == len(lines)
    out = capsys.readouterr().out
    assert "one: a: ok in 0.0 s: well\n" in out
    assert out.count(": ok in") == 3
    # a second run repeats nothing
    again, _ = run(tmp_path, {"one": ["a", "b nan"], "two": ["c"]})
    assert again == ALL_RIGHT
    assert len(starts(tmp_path)) == 3


@pytest.mark.parametrize(
    ("kind", "status", "why"),
    [
        ("wrong", "wrong", "off by 3, allowed 1"),
        ("raise", "failed", "KeyError: 'out of luck'"),
        ("kill", "failed", "killed by SIGSEGV"),
        ("exit", "failed", "exit code 9: the last words"),
    ],
)
def test_a_case_that_ends_badly(kind: str, status: str, why: str, tmp_path: Path) -> None:
    code, ledger = run(tmp_path, {"one": ["a", f"bad {kind}", "b"], "two": ["c"]})
    assert code == FAULTY
    assert outcomes(ledger) == {"one/a": "ok", "one/bad": status, "one/b": "ok", "two/c": "ok"}
    assert reason(ledger, "one", "bad") == why
    assert starts(tmp_path) == ["one/a", "one/bad", "one/b", "two/c"]


def test_a_hang_is_killed_with_all_it_started(tmp_path: Path) -> None:
    stages = {"one": ["a", "bad hang", "b"], "two": ["c"]}
    code, ledger = run(tmp_path, stages, [stage("one", limit=2.0), stage("two")])
    assert code == FAULTY
    assert outcomes(ledger) == {"one/a": "ok", "one/bad": "timeout", "one/b": "ok", "two/c": "ok"}
    assert reason(ledger, "one", "bad") == "not done after 2 s"
    assert gone(int((tmp_path / "grandchild").read_text()))


def test_the_limit_is_of_a_case(tmp_path: Path) -> None:
    """Not of all cases together."""
    names = ["a", "b", "c", "d", "e"]
    code, ledger = run(tmp_path, {"one": [f"{name} slow" for name in names]}, [stage("one", 1.5)])
    assert code == ALL_RIGHT
    assert [case for _, case in ends(ledger.lines())] == names


def test_a_sticky_error_costs_one_case(tmp_path: Path) -> None:
    """In the same process every later case would fail."""
    code, ledger = run(tmp_path, {"one": ["a", "bad sticky", "b", "c"]})
    assert code == FAULTY
    assert outcomes(ledger) == {"one/a": "ok", "one/bad": "failed", "one/b": "ok", "one/c": "ok"}
    assert "illegal memory access" in reason(ledger, "one", "bad")


def test_a_stage_that_cannot_start(tmp_path: Path) -> None:
    given = [stage("one", cases="tests.support.bench_stages:broken"), stage("two")]
    code, ledger = run(tmp_path, {"two": ["c"]}, given)
    assert code == FAULTY
    assert outcomes(ledger) == {f"one/{START}": "failed", "two/c": "ok"}
    assert reason(ledger, "one", START) == "exit code 1: ImportError: no module named luck"
    assert ledger.path.with_suffix(".log").read_text().startswith("Traceback")
    # it is retried at the end of the run, and in the next run
    assert [line["case"] for line in ledger.lines() if line["stage"] == "one"] == [START] * 2
    code, ledger = run(tmp_path, {"one": ["a"], "two": ["c"]})
    assert code == ALL_RIGHT
    assert outcomes(ledger) == {"two/c": "ok", "one/a": "ok"}


def test_a_box_is_full(tmp_path: Path) -> None:
    """Its remaining cases wait until all other stages are done."""
    stages = {"one": ["a slow", "b slow", "c slow"], "two": ["d"]}
    code, ledger = run(tmp_path, stages, [stage("one", box=0.5), stage("two")])
    assert code == ALL_RIGHT
    order = starts(tmp_path)
    assert sorted(order) == ["one/a", "one/b", "one/c", "two/d"]
    assert order[-1] == "one/c"
    assert set(outcomes(ledger).values()) == {"ok"}


def test_time_is_up(tmp_path: Path) -> None:
    """The running case stays unfinished: the next call tries it last."""
    stages = {"one": ["a", "b hang-once", "c"], "two": ["d"]}
    code, ledger = run(tmp_path, stages, limit=0.05)
    assert code == LEFT
    assert outcomes(ledger) == {"one/a": "ok"}
    assert list(unfinished(ledger.lines())) == [("one", "b")]
    chosen = [stage(name) for name in stages]
    assert left(chosen, ledger.lines()) == {"one": ["b", "c"], "two": ["all"]}
    code, ledger = run(tmp_path, stages)
    assert code == ALL_RIGHT
    assert starts(tmp_path) == ["one/a", "one/b", "one/c", "two/d", "one/b"]


def test_background(tmp_path: Path) -> None:
    """A stage runs concurrently with later ones, until an exclusive one."""
    stages = {"side": ["s hang"], "one": ["a"], "two": ["b"]}
    given = [stage("side", limit=3.0, background=True), stage("one"), stage("two", exclusive=True)]
    code, ledger = run(tmp_path, stages, given)
    assert code == FAULTY
    at = {case: line["at"] for (_, case), line in ends(ledger.lines()).items()}
    assert at["a"] < at["s"] < at["b"]
    # killed once: not repeated in the same run
    assert starts(tmp_path).count("side/s") == 1


def test_the_background_is_prepared_in_every_run(tmp_path: Path) -> None:
    """The next run may be on another machine."""
    stages = {"side": ["s"], "one": ["a"]}
    given = [stage("side", background=True), stage("one")]
    for _ in range(2):
        code, _ = run(tmp_path, stages, given)
        assert code == ALL_RIGHT
    assert sorted(starts(tmp_path)) == ["one/a", "side/s", "side/s"]


def test_a_failing_summary_does_not_end_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(lines: Any) -> None:
        raise KeyError("no figure")

    code, ledger = run(tmp_path, {"one": ["a"], "two": ["b"]}, summarise=fails)
    assert code == ALL_RIGHT
    assert len(outcomes(ledger)) == 2
    assert "KeyError: 'no figure'" in capsys.readouterr().err


def test_other_folders_are_the_same_run(tmp_path: Path) -> None:
    assert notes.digest({"dry": True, "out": "a"}) == notes.digest({"dry": True, "out": "b"})
    assert notes.digest({"dry": True}) != notes.digest({"dry": False})


def start(folder: Path, stages: dict[str, list[str]]) -> subprocess.Popen[bytes]:
    """Start a run in a subprocess."""
    script = (
        "import json, signal, sys\n"
        # background jobs of a shell ignore SIGINT
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pathlib import Path\n"
        "from bench.gpu.runner.ledger import Ledger\n"
        "from bench.gpu.runner.supervise import Stage, Supervisor\n"
        "folder, stages = Path(sys.argv[1]), json.loads(sys.argv[2])\n"
        f"given = [Stage(name, {CASES!r}, 60.0, 60.0) for name in stages]\n"
        "options = {'stages': stages, 'folder': str(folder)}\n"
        "sys.exit(Supervisor(Ledger(folder / 'lines.jsonl'), given, options, 2.0).run())\n"
    )
    command = [sys.executable, "-c", script, str(folder), json.dumps(stages)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)


def wait_for(path: Path) -> str:
    for _ in range(600):
        if path.is_file() and path.read_text():
            return path.read_text()
        time.sleep(0.05)
    raise AssertionError(f"{path} did not come")


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_parent_is_killed(end: signal.Signals, tmp_path: Path) -> None:
    """The child and its own children end too; a second run does the rest."""
    stages = {"one": ["a", "b hang-once", "c"], "two": ["d"]}
    process = start(tmp_path, stages)
    grandchild = int(wait_for(tmp_path / "grandchild"))
    os.kill(process.pid, end)
    assert process.wait(20) != 0
    for _ in range(100):
        if gone(grandchild):
            break
        time.sleep(0.05)
    assert gone(grandchild)
    code, ledger = run(tmp_path, stages)
    assert code == ALL_RIGHT
    assert starts(tmp_path) == ["one/a", "one/b", "one/c", "two/d", "one/b"]
    assert set(outcomes(ledger).values()) == {"ok"}


def test_a_torn_line_is_skipped(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "lines.jsonl")
    ledger.add("one", "a", notes.BEGUN, pid=1)
    with ledger.path.open("ab") as file:
        file.write(b'{"stage": "one", "case": "a", "sta')
    assert len(ledger.lines()) == 1
    ledger.add("one", "a", notes.OK)
    assert [line["status"] for line in ledger.lines()] == ["begun", "ok"]
    assert [line["status"] for line in Ledger(ledger.path).lines()] == ["begun", "ok"]
    assert unfinished(ledger.lines()) == {}


def test_failures_can_be_removed(tmp_path: Path) -> None:
    stages = {"one": ["a", "bad raise", "b hang-once"]}
    run(tmp_path, stages, [stage("one", limit=2.0)])
    ledger = Ledger(tmp_path / "lines.jsonl")
    assert outcomes(ledger) == {"one/a": "ok", "one/bad": "failed", "one/b": "timeout"}
    ledger.forget(notes.FAULTS)
    assert outcomes(ledger) == {"one/a": "ok"}
    _, ledger = run(tmp_path, {"one": ["a", "bad", "b hang-once"]})
    assert set(outcomes(ledger).values()) == {"ok"}


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("a shopping list\n")
    with pytest.raises(ValueError, match=r"notes\.txt holds no lines of a run"):
        Ledger(path).check()
    Ledger(tmp_path / "new").check()


def test_times_in_words() -> None:
    assert [minutes(seconds) for seconds in (3, 89.6, 90)] == ["3 s", "90 s", "1.5 min"]
