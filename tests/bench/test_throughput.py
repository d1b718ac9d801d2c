"""bench/throughput.py: which lines are reused, which are measured again, and its messages."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import throughput as driver
from nomicbert.benchmark import lines as found
from nomicbert.benchmark.lines import Line, put, read
from nomicbert.benchmark.plan import Checkpoint, Options
from tests.support.checkpoints import build_checkpoint

Driver = Callable[..., list[str]]

CASES, DTYPES = ["fixed-16", "latency-16"], ["float32", "int8"]
OPTIONS = Options(CASES, DTYPES, families=["transformers-32"], tokens=64, rounds=2, threads=1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = build_checkpoint(tmp_path_factory.mktemp("driver"), "conan-v1", num_hidden_layers=1)
    return Checkpoint.of("m", folder)


class Measured:
    """Replaces `run`: returns invented lines, and records the requested cases."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[str], list[str]]] = []
        self.stop_before = ""

    def __call__(self, checkpoint: Checkpoint, part: Options, step: Any) -> Iterator[list[Line]]:
        self.asked.append((list(part.cases), list(part.dtypes)))
        around = found.surroundings(part.device)
        around["machine"]["threads"] = part.threads
        for group, dtypes, names in part.groups():
            for name in names:
                if name == self.stop_before:
                    raise KeyboardInterrupt
                case = checkpoint.case(name, part.tokens, part.device)
                assert case is not None
                yield [
                    {
                        "model": checkpoint.name,
                        "case": name,
                        "group": group,
                        "peer": peer.family,
                        "dtype": peer.dtype,
                        "status": "absent",
                        "reason": "nobody measured",
                        "tokens": case.tokens,
                        "texts": len(case.texts),
                        "rounds": part.rounds,
                        **around,
                    }
                    for peer in part.peers(dtypes)
                ]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Measured:
    measured = Measured()
    monkeypatch.setattr(driver, "run", measured)
    return measured


@pytest.fixture
def measure(tmp_path: Path, checkpoint: Checkpoint, run: Measured) -> Driver:
    """Run the driver on lines.jsonl; return its messages about kept and replaced lines."""

    def call(options: Options = OPTIONS) -> list[str]:
        said: list[str] = []
        run.asked.clear()
        assert driver.measure(tmp_path / "lines.jsonl", checkpoint, options, said.append) == []
        return [line for line in said if not line.endswith("nobody measured")]

    return call


def test_existing_lines_are_not_measured_again(
    measure: Driver, run: Measured, tmp_path: Path
) -> None:
    assert measure() == []
    assert run.asked == [(CASES, ["float32"]), (CASES, ["int8"])]
    before = (tmp_path / "lines.jsonl").read_bytes()
    assert measure() == []
    # a subset of the peers, cases and dtypes
    assert measure(replace(OPTIONS, cases=["fixed-16"], families=["ours"])) == []
    assert run.asked == []
    assert (tmp_path / "lines.jsonl").read_bytes() == before
    # latency of all dtypes together is a separate group
    assert measure(replace(OPTIONS, together=True)) == []
    assert run.asked == [(["latency-16"], DTYPES)]
    assert measure(replace(OPTIONS, together=True)) == []
    assert run.asked == []


def test_a_stopped_run_continues(measure: Driver, run: Measured, tmp_path: Path) -> None:
    run.stop_before = "latency-16"
    with pytest.raises(KeyboardInterrupt):
        measure()
    run.stop_before = ""
    assert measure() == []
    assert run.asked == [(["latency-16"], ["float32"]), (CASES, ["int8"])]


def test_no_case_is_started_when_time_is_up(
    measure: Driver, run: Measured, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    path = tmp_path / "lines.jsonl"

    def until(cases: int) -> list[str]:
        """Time is up once so many lines of fp32 and int8 are there."""
        run.asked.clear()

        def over() -> bool:
            lines = read(path) if path.is_file() else []
            return len({(line["case"], line["group"]) for line in lines}) >= cases

        return driver.measure(path, checkpoint, OPTIONS, lambda _: None, over)

    everything = [f"{case} of {dtype}" for dtype in DTYPES for case in CASES]
    for cases in range(5):
        assert until(cases) == everything[cases:]
    # int8 was loaded for its second case only
    assert run.asked == [(["latency-16"], ["int8"])]
    assert until(0) == []
    assert measure() == []
    assert run.asked == []


def test_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(driver.time, "monotonic", lambda: now)
    over, never = driver.over_after(2), driver.over_after(None)
    now += 119
    assert not over()
    now += 1
    assert over()
    now += 1e9
    assert not never()


def test_what_is_left_is_printed(
    run: Measured, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model is not even built once time is up."""
    folder = build_checkpoint(tmp_path / "tiny", "conan-v1", num_hidden_layers=1)
    words = (
        f"--out {tmp_path / 'lines.jsonl'} --models {folder} nomic-v1.5 --cases fixed-16 "
        f"--dtypes float32 --device cpu --tokens 32 --scratch {tmp_path / 'x'} --minutes"
    )
    driver.main([*words.split(), "0"])
    assert capsys.readouterr().out.splitlines() == [
        "left, to be measured by the same command:",
        "  tiny: cases that the file lacks",
        "  nomic-v1.5: cases that the file lacks",
    ]
    assert run.asked == []
    assert not (tmp_path / "x").exists()


def test_a_case_that_lacks_a_peer_is_measured_again(
    measure: Driver, run: Measured, tmp_path: Path
) -> None:
    """A file may lack one if an older run was stopped while writing."""
    path = tmp_path / "lines.jsonl"
    measure()
    whole = read(path)
    lost = next(i for i, x in enumerate(whole) if (x["case"], x["dtype"]) == ("fixed-16", "int8"))
    path.write_text(found.as_json(whole[:lost] + whole[lost + 1 :]))
    assert measure() == [
        "fixed-16 of int8 is measured again, and its lines replaced: no line of ours int8"
    ]
    assert run.asked == [(["fixed-16"], ["int8"])]
    assert sorted(map(str, read(path))) == sorted(map(str, whole))


@pytest.mark.parametrize(
    ("changes", "reason", "cases"),
    [
        ({"families": ["openvino"]}, "no line of openvino float32", CASES),
        ({"slow": True, "families": None}, "no line of transformers float32", CASES),
        ({"tokens": 80}, "tokens 64, not 80", ["fixed-16"]),
        ({"rounds": 3}, "rounds 2, not 3", CASES),
        ({"threads": 2}, "threads 1, not 2", CASES),
    ],
)
def test_other_options(
    changes: dict[str, Any],
    reason: str,
    cases: list[str],
    measure: Driver,
    run: Measured,
    tmp_path: Path,
) -> None:
    """--tokens does not apply to a latency case, which is one text."""
    path, options = tmp_path / "lines.jsonl", replace(OPTIONS, dtypes=["float32"])
    measure(options)
    said = measure(replace(options, **changes))
    assert [line.split(" is measured again")[0] for line in said] == [
        f"{case} of float32" for case in cases
    ]
    assert all(reason in line for line in said)
    assert run.asked == [(cases, ["float32"])]
    # no line with the old options is left
    for case in cases:
        lines = [line for line in read(path) if line["case"] == case]
        assert len({(line["tokens"], line["rounds"]) for line in lines}) == 1
        assert len(lines) == len({line["peer"] for line in lines}) >= 3
    assert measure(replace(options, **changes)) == []


def test_lines_of_a_gpu_are_not_reused_for_a_cpu(measure: Driver, tmp_path: Path) -> None:
    path, options = tmp_path / "lines.jsonl", replace(OPTIONS, dtypes=["int8"], cases=["fixed-16"])
    measure(options)
    block = [line | {"machine": line["machine"] | {"gpu": "abacus"}} for line in read(path)]
    put(block, path)
    assert measure(options) == [
        "fixed-16 of int8 is measured again, and its lines replaced: device cuda, not cpu"
    ]


def test_kept_lines_from_elsewhere_are_noted_once(measure: Driver, tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    measure()
    for line in read(path):
        assert line["commit"] == found.surroundings(torch.device("cpu"))["commit"]
    old = [
        line
        | {
            "commit": "0123456789abcdef",
            "versions": line["versions"] | {"torch": "0.1"},
            "machine": line["machine"] | {"cpu": "abacus"},
        }
        for line in read(path)
        if line["case"] == "fixed-16"
    ]
    put(old, path)
    said = measure()
    assert said == ["lines that are kept come from commit 0123456789ab, torch 0.1, another machine"]
    # lines of other cases are ignored
    assert measure(replace(OPTIONS, cases=["latency-16"])) == []


def test_cases_that_the_checkpoint_does_not_allow(measure: Driver, run: Measured) -> None:
    """No peer is loaded for them."""
    assert measure(replace(OPTIONS, cases=["fixed-2048"])) == [
        "fixed-2048 is left out: the model takes at most 512 tokens per text"
    ]
    assert run.asked == []


def test_peak_memory_is_measured_once(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, calls = tmp_path / "lines.jsonl", []

    def alone(given: dict[str, Any]) -> dict[str, Any]:
        calls.append(given["peer"])
        return {"peak_bytes": 7}

    monkeypatch.setattr("nomicbert.benchmark.memory._alone", alone)
    options, said = replace(OPTIONS, dtypes=["float32"], cache=tmp_path / "exports"), []

    def measure(options: Options) -> list[str]:
        calls.clear()
        said.clear()
        driver.measure_peaks(path, checkpoint, options, said.append)
        return list(calls)

    peers = ["ours float32", "ours-texts float32", "transformers-32 float32"]
    over = driver.measure_peaks(path, checkpoint, options, said.append, lambda: True)
    assert (over, calls) == (["peak memory"], [])
    assert measure(options) == peers
    assert measure(options) == []
    assert driver.measure_peaks(path, checkpoint, options, said.append, lambda: True) == []
    assert measure(replace(options, tokens=80)) == peers
    assert said[0].endswith("its lines replaced: tokens 64, not 80")
    assert [line["peak_bytes"] for line in read(path)] == [7, 7, 7]
    short = replace(checkpoint, longest=8)
    driver.measure_peaks(path, short, options, said.append)
    assert said[-1] == "peak memory is left out: the model takes at most 8 tokens per text"


def test_the_whole_driver(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A real measurement, from the command line to the file."""
    folder = build_checkpoint(tmp_path / "tiny", "conan-v1", num_hidden_layers=1)
    path = tmp_path / "results" / "lines.jsonl"
    words = (
        f"--out {path} --models {folder} --cases fixed-16 --dtypes float32 --device cpu "
        f"--peers transformers-32 --tokens 32 --rounds 1 --threads 1 --scratch {tmp_path / 'x'}"
    )
    driver.main(words.split())
    said = capsys.readouterr().out
    assert re.search(r"^tiny: fixed-16: transformers-32 float32: [\d,]+ tokens/s$", said, re.M)
    lines = read(path)
    assert {(x["peer"], x["status"], x["tokens"], x["rounds"]) for x in lines} == {
        (peer, "measured", 32, 1) for peer in ("ours", "ours-texts", "transformers-32")
    }
    driver.main(words.split())
    assert capsys.readouterr().out == ""
    assert read(path) == lines
