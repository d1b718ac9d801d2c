"""The op benchmarks: wrong values are refused, rounds are interleaved, padding is not counted."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import harness, problems, rooflines, timing
from bench.aot_cases import Model
from bench.bench_attention import LENGTHS, mixture, padded
from bench.harness import OURS, Bench, Peer, WrongValues
from bench.problem import Draw, Problem
from nomicbert_kernels import Ops
from nomicbert_kernels.backend import TORCH
from tests.support.warm_python import MODULE, WarmPython

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
MODEL = Model("tiny", 32, 2, 48, "swiglu", True)
TEXTS = [3, 17, 1, 8]
OPS = Ops.names()


class Benchmark:
    """Stands in for pytest-benchmark's fixture."""

    def __init__(self) -> None:
        self.extra_info: dict[str, Any] = {}
        self.calls = 0

    def pedantic(self, work: Callable[[], object], rounds: int, iterations: int) -> None:
        for _ in range(rounds * iterations):
            work()
            self.calls += 1


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the measurement of the roofline."""
    ceilings = rooflines.Ceilings(1e9, 1e10)
    monkeypatch.setattr(harness, "ceilings", lambda *_: ceilings)


def bench_with(ops: Ops) -> Bench:
    return Bench(Benchmark(), ops, CPU, torch.float32, quick=True, compiled=False)


def problem_of(op: str) -> Problem:
    make: Callable[..., Problem] = getattr(problems, op)
    draw = Draw(CPU, torch.float32, 3)
    if op == "embed":
        return problems.embed(MODEL, draw, 29, vocabulary=40)
    return make(MODEL, draw, TEXTS if op in ("attention", "pool") else 29)


def plain(problem: Problem) -> dict[str, Peer]:
    return {"plain": Peer(lambda tensors: problem.bind(TORCH, tensors))}


def scaled(result: Tensor) -> Tensor:
    return result * 1.001


def one_is_nan(result: Tensor) -> Tensor:
    out = result.clone()
    out.view(-1)[-1] = float("nan")
    return out


def short(result: Tensor) -> Tensor:
    return result[:-1]


def broken(op: str, fault: Callable[[Tensor], Tensor]) -> Ops:
    right = getattr(TORCH, op)
    return TORCH.replaced(**{op: lambda *a, **k: fault(right(*a, **k))})


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("fault", [scaled, one_is_nan, short])
@pytest.mark.parametrize("op", OPS)
def test_a_broken_op_is_not_timed(op: str, fault: Callable[[Tensor], Tensor]) -> None:
    problem = problem_of(op)
    right, wrong = bench_with(TORCH), bench_with(broken(op, fault))
    right.compare(problem, plain(problem))
    assert right.benchmark.calls == 3
    assert right.benchmark.extra_info["op"] == op
    with pytest.raises(WrongValues, match=OURS):
        wrong.compare(problem, plain(problem))
    assert wrong.benchmark.calls == 0
    assert not wrong.benchmark.extra_info


@pytest.mark.usefixtures("quiet")
def test_a_wrong_peer_is_left_out_and_named() -> None:
    problem = problem_of("swiglu")

    def refuses(_: Any) -> Any:
        raise RuntimeError("no such kernel\nand more")

    peers = plain(problem) | {
        "off": Peer(lambda tensors: problem.bind(broken("swiglu", scaled), tensors)),
        "absent": Peer(refuses),
    }
    bench = bench_with(TORCH)
    bench.compare(problem, peers)
    info = bench.benchmark.extra_info
    assert set(info["peers"]) == {"plain", "reference"}
    assert info["left_out"]["absent"] == "RuntimeError: no such kernel"
    assert "off is off by" in info["left_out"]["off"]


@pytest.mark.usefixtures("quiet")
def test_padding_is_not_counted() -> None:
    """In a mixture only real tokens count, also for a peer that pads."""
    problem = problem_of("attention")
    bench = bench_with(TORCH)
    bench.compare(problem, {"padded": padded(TEXTS, None, MODEL.head_dim**-0.5)})
    info = bench.benchmark.extra_info
    assert not info["left_out"]
    assert info["tokens"] == sum(TEXTS) == 29
    assert info["tokens_per_second"] == pytest.approx(29 / info["seconds"])
    assert info["tflops"] * 1e12 == pytest.approx(
        4 * MODEL.hidden * sum(n * n for n in TEXTS) / info["seconds"]
    )


def test_the_mixture_has_its_shares() -> None:
    lengths = mixture(16896)
    assert 15_800 < sum(lengths) <= 16896
    assert set(lengths) == {8, 70, 1024}
    assert sum(n for n in lengths if n == 70) == pytest.approx(0.6 * 16896, rel=0.02)
    assert max(LENGTHS) == 8192


@pytest.mark.usefixtures("quiet")
def test_figures_follow_from_the_time() -> None:
    problem = problem_of("swiglu")
    bench = bench_with(TORCH)
    figures = bench.figures(problem, 0.5)
    assert figures["tokens_per_second"] == 58
    assert figures["tflops"] == pytest.approx(2 * 29 * 32 * 96 / 0.5 / 1e12)
    # 29 rows in, 96 rows of weight, 29 rows of 48 out, 4 bytes each
    moved = 4 * (29 * 32 + 96 * 32 + 29 * 48)
    assert figures["gigabytes_per_second"] == pytest.approx(moved / 0.5 / 1e9)
    least = max(2 * 29 * 32 * 96 / 1e10, moved / 1e9)
    assert figures["roofline_percent"] == pytest.approx(100 * least / 0.5)
    assert figures["limit"] == "memory"


def test_rounds_are_interleaved_and_copies_rotate() -> None:
    seen: list[str] = []

    def call(name: str) -> Callable[[], None]:
        return lambda: seen.append(name)

    clock = itertools.count()

    def measure(work: timing.Work) -> float:
        work()
        return 2.0 + next(clock)

    candidates = {"a": [call("a0"), call("a1")], "b": [call("b0")]}
    times = timing.interleave(candidates, measure, rounds=3, seconds=1.0)
    warm_ups = ["a0", "a1", "a0", "b0", "b0", "b0"]
    calibration = ["a1", "b0"]
    assert seen == [*warm_ups, *calibration, "a0", "b0", "a1", "b0", "a0", "b0"]
    assert times["a"].seconds == (4.0, 6.0, 8.0)
    assert times["a"].median == 6.0
    assert times["b"].spread == 2.0


def test_a_block_lasts_as_long_as_asked() -> None:
    assert timing.calls_for(lambda: None, lambda work: 0.01, 0.1) == 10
    assert timing.calls_for(lambda: None, lambda work: 5.0, 0.1) == 1
    assert timing.calls_for(lambda: None, lambda work: 0.0, 0.1) == timing.MOST_CALLS


def test_copies_exceed_the_cache() -> None:
    assert timing.copies_needed(timing.CPU_CACHE / 4, CPU) == 9
    assert timing.copies_needed(timing.CPU_CACHE * 9.0, CPU) == 2
    assert timing.copies_needed(1.0, CPU) == timing.MOST_COPIES
    problem = problem_of("linear")
    copy = problem.copy()
    for name, tensor in problem.tensors.items():
        assert torch.equal(copy[name], tensor)
        assert copy[name].stride() == tensor.stride()
        assert copy[name].data_ptr() != tensor.data_ptr()


def test_ceilings_are_measured() -> None:
    found = rooflines.ceilings(CPU, torch.float32, quick=True)
    assert 1e8 < found.bytes < 1e13
    assert 1e8 < found.flops < 1e15
    assert found.seconds(found.flops * 2, found.bytes) == pytest.approx(2.0)
    assert found.limit(found.flops * 2, found.bytes) == "compute"


def test_every_op_has_its_benchmark() -> None:
    assert {path.stem for path in (ROOT / "bench").glob("bench_*.py")} == {
        f"bench_{name}" for name in (*OPS, "tokenizer")
    }


def run_bench(
    python: WarmPython,
    *arguments: str,
    what: tuple[str, ...] = ("bench/bench_gelu.py", "-k", "minilm"),
    first: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run a benchmark, after the code `first`."""
    # what this suite runs on does not hold for that one: its interpreter, its other processes
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment.pop("TRITON_INTERPRET", None)
    return python.run(
        first + MODULE,
        *("pytest", "-q", "-o", "python_files=bench_*.py"),
        *("-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:hypothesispytest"),
        *what,
        *("--device", "cpu", "--backend", "torch", "--quick"),
        *arguments,
        env=environment,
    )


def test_end_to_end(tmp_path: Path, warm_python: WarmPython) -> None:
    done = run_bench(warm_python, f"--benchmark-json={tmp_path / 'out.json'}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ours, and peers in multiples of its time" in done.stdout
    assert "linear, gelu" in done.stdout
    (found,) = json.loads((tmp_path / "out.json").read_text())["benchmarks"]
    info = found["extra_info"]
    assert found["stats"]["rounds"] == 3
    assert info["op"] == "gelu"
    assert info["model"] == "minilm"
    assert info["tokens"] == 33
    assert info["versions"]["torch"] == torch.__version__
    assert 0 < info["error"] <= info["bound"]
    assert info["roofline_percent"] > 0
    for peer in info["peers"].values():
        assert peer["ratio"] == pytest.approx(peer["seconds"] / info["seconds"])


def test_tokenizers_against_a_saved_run(tmp_path: Path, warm_python: WarmPython) -> None:
    what = ("bench/bench_tokenizer.py", f"--benchmark-storage={tmp_path}")
    saved = run_bench(warm_python, "--benchmark-save=before", what=what)
    assert saved.returncode == 0, saved.stdout + saved.stderr
    compared = run_bench(warm_python, "--benchmark-compare=0001", what=what)
    assert compared.returncode == 0, compared.stdout + compared.stderr
    for name in ("ours", "tokenizers", "transformers"):
        assert f"test_tokenizer[{name}] (NOW)" in compared.stdout
        assert f"test_tokenizer[{name}] (0001_before)" in compared.stdout


SABOTAGE = """
import dataclasses
from nomicbert_kernels import backend
right = backend.TORCH.gelu
wrong = lambda *a: right(*a) * 1.001
backend.TORCH = backend.TORCH.replaced(gelu=wrong)
"""


def test_end_to_end_with_a_broken_op(warm_python: WarmPython) -> None:
    done = run_bench(warm_python, first=SABOTAGE)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "WrongValues: ours is off by" in done.stdout
