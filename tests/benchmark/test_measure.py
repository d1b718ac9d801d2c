"""The benchmark of whole models: timing, checks and comparison of peers."""

# An imported fixture is named again as an argument.
# ruff: noqa: F811

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nomicbert.benchmark import measure, memory, torch_peers
from nomicbert.benchmark.batching import Batching, by_count
from nomicbert.benchmark.group import Group
from nomicbert.benchmark.peers import ANCHOR, OURS, PEERS, AbsentError, Peer, choose
from nomicbert.benchmark.plan import Checkpoint, Options
from nomicbert.benchmark.run import run
from nomicbert.benchmark.table import as_table, left_out
from nomicbert.benchmark.workloads import Case
from tests.benchmark.measure_cases import CPU, case_of, checkpoints  # noqa: F401
from tests.support.cpus import pretend


class FakeClock:
    """A clock that advances only when a work says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_timing_is_interleaved() -> None:
    clock, order = FakeClock(), []
    costs = {"a": iter([1.0, 9.0, 2.0]), "b": iter([5.0, 5.0, 7.0])}

    def work(name: str) -> measure.Work:
        def once() -> None:
            order.append(name)
            clock.now += next(costs[name])

        return once

    times = measure.in_turns({"a": work("a"), "b": work("b")}, 3, clock)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert times == {"a": [1.0, 9.0, 2.0], "b": [5.0, 5.0, 7.0]}
    assert measure.spread([1.0, 2.0, 9.0]) == pytest.approx(4 / 2)
    assert measure.spread([1.0]) == 0.0


def test_first_of_several_calls_is_untimed() -> None:
    clock, costs = FakeClock(), iter([50.0, 1.0, 2.0, 60.0, 3.0, 4.0])

    def once() -> None:
        clock.now += next(costs)

    assert measure.in_turns({"a": once}, 2, clock, calls=2) == {"a": [1.0, 2.0, 3.0, 4.0]}


def test_flops(checkpoints: dict[str, Checkpoint]) -> None:
    case = case_of([3, 5])
    config = checkpoints["nomic-v1.5"].config
    assert (config.hidden_size, config.intermediate_size) == (64, 96)
    weights = 4 * 64 * 64 + 3 * 64 * 96
    assert measure.flops(config, case) == 2 * weights * 8 + 4 * 64 * (9 + 25)
    config = checkpoints["conan-v1"].config
    weights = 4 * 64 * 64 + 2 * 64 * 96
    assert measure.flops(config, case) == 2 * weights * 8 + 4 * 64 * (9 + 25)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "fp8"])
def test_matmul_shape_matches_its_flops(dtype: str, checkpoints: dict[str, Checkpoint]) -> None:
    config = checkpoints["nomic-v1.5"].config
    result: Any = measure.matrix_work(config, dtype, CPU, 40)()
    assert tuple(result.shape) == (40, 96)
    assert measure.matrix_flops(config, 40) == 2 * 40 * 64 * 96
    assert measure.matrix_rows(10**6) == measure.MATRIX_ROWS


@pytest.mark.parametrize("found", [True, False])
def test_matmul_uses_our_compute_dtype(
    found: bool, checkpoints: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, found)
    result: Any = measure.matrix_work(checkpoints["conan-v1"].config, "bfloat16", CPU, 40)()
    assert result.dtype == (torch.bfloat16 if found else torch.float32)


def test_gpu_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peak minus the memory allocated before; an earlier peak does not count."""
    held = {"now": 100, "peak": 900}

    def use(count: int) -> None:
        held["now"] += count
        held["peak"] = max(held["peak"], held["now"])

    def work() -> None:
        use(250)
        use(-200)

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(
        torch.cuda, "reset_peak_memory_stats", lambda: held.update(peak=held["now"])
    )
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: held["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: held["peak"])
    assert measure.gpu_bytes(work) == 250


@pytest.mark.skipif(not memory.STATUS.is_file(), reason="needs VmHWM, which only Linux has")
def test_peak_excludes_the_parent() -> None:
    """The parent's memory would count towards ru_maxrss."""
    code = "from nomicbert.benchmark.memory import peak; print(peak())"
    alone = int(subprocess.check_output([sys.executable, "-c", code], env=environment()))
    fat = (
        "import subprocess, sys; ballast = bytearray(1 << 30); "
        f"print(subprocess.check_output([sys.executable, '-c', {code!r}]).decode())"
    )
    below = int(subprocess.check_output([sys.executable, "-c", fat], env=environment()))
    assert below == pytest.approx(alone, rel=0.1)


def environment() -> dict[str, str]:
    roots = Path(__file__).parents[2]
    return os.environ | {"PYTHONPATH": os.pathsep.join((str(roots), str(roots / "kernels")))}


def test_ours_replaces_a_missing_reference(
    checkpoints: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any) -> Any:
        raise AbsentError("transformers is not installed")

    monkeypatch.setattr(torch_peers, "load", missing)
    assert OURS in PEERS
    assert "cuda" in OURS.devices
    options = Options(cases=["fixed-16"], dtypes=["float32"], families=["ours"], tokens=32)
    lines = [line for block in run(checkpoints["nomic-v1.5"], options) for line in block]
    assert {line["reference"] for line in lines if line["status"] == "measured"} == {OURS.name}


def test_cosines() -> None:
    truth = np.array([[1.0, 0.0], [0.0, 2.0]], dtype=np.float32)
    found = np.array([[3.0, 0.0], [3.0, 4.0]], dtype=np.float32)
    assert measure.cosines(found, truth) == (pytest.approx(0.9), pytest.approx(0.8))
    assert measure.is_wrong(0.8, 1.0, "int8")
    assert not measure.is_wrong(0.95, 1.0, "int8")
    assert measure.is_wrong(0.95, 1.0, "float32")
    assert measure.is_wrong(math.nan, 1.0, "int8")


def test_norms() -> None:
    truth = np.array([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]], dtype=np.float32)
    lengths = np.array([[1.1], [0.8], [1.0]], dtype=np.float32)
    # 1.25 is as far from 1 as 0.8, in logarithms
    assert measure.norm_ratio(truth * lengths, truth) == pytest.approx(0.8)
    assert measure.norm_ratio(truth[:, ::-1] * 1.3, truth) == pytest.approx(1.3)
    for other in (truth[:, :1], truth * np.nan, truth * 0.0):
        assert math.isnan(measure.norm_ratio(other, truth))
    assert math.isnan(measure.norm_ratio(truth, truth * 0.0))
    for dtype, bound in (("float32", 0.01), ("bfloat16", 0.05), ("float16", 0.05), ("int8", 0.05)):
        for sign in (-1, 1):
            assert not measure.is_wrong(1.0, 1 + sign * bound * 0.9, dtype)
            assert measure.is_wrong(1.0, 1 + sign * bound * 1.1, dtype)
    assert measure.is_wrong(1.0, math.nan, "int8")
    assert measure.is_wrong(1.0, math.inf, "int8")


def test_choice_of_peers() -> None:
    names = [peer.name for peer in PEERS]
    assert len(set(names)) == len(names)
    everyone = {peer.family for peer in choose(None, ["float32", "int8"], CPU, slow=False)}
    assert {"ours", "ours-texts", "onnxruntime", "openvino-ptq", "ctranslate2"} <= everyone
    assert "transformers-compile" not in everyone
    assert ANCHOR in choose(None, ["float32"], CPU, slow=False)
    assert choose(None, ["float16"], CPU, slow=False) == []
    few = [peer.name for peer in choose(["openvino"], ["bfloat16"], CPU, slow=False)]
    assert few == ["ours bfloat16", "ours-texts bfloat16", "openvino bfloat16"]
    named = choose(["transformers-compile"], ["float32"], CPU, slow=False)
    assert "transformers-compile float32" in [peer.name for peer in named]
    with pytest.raises(ValueError, match="unknown peer 'abacus'"):
        choose(["abacus"], ["float32"], CPU, slow=False)


class Fake:
    """A peer that returns the correct vectors with a planted fault."""

    from_texts = False

    def __init__(self, truth: Any, fault: Any) -> None:
        self.truth, self.fault = truth, fault

    def ways(self, case: Case) -> list[Batching]:
        return [by_count(case.lengths, 1), by_count(case.lengths, 4)]

    def vectors(self, case: Case, way: Batching) -> np.ndarray:
        vectors: np.ndarray = self.fault(self.truth.vectors(case, self.truth.ways(case)[0]))
        return vectors


FAULTS: dict[str, Any] = {
    "right": lambda vectors: 1.005 * vectors,
    "scaled": lambda vectors: 2 * vectors,
    "swapped": lambda vectors: vectors[::-1].copy(),
    "nan": lambda vectors: vectors * np.where(vectors == vectors[0, 0], np.nan, 1),
    "narrow": lambda vectors: vectors[:, :-1],
    "breaks": lambda vectors: vectors.reshape(7, -1, 11),
}


def test_only_correct_peers_are_ranked(
    checkpoints: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = [peer for peer in PEERS if peer.name in ("ours float32", "transformers-32 float32")]
    fakes = [Peer(name, "float32", "fakes") for name in (*FAULTS, "missing")]
    right = Peer.load

    def load(peer: Peer, setting: Any) -> Any:
        if peer.family == "missing":
            raise AbsentError("nobody has written it")
        if peer.family in FAULTS:
            return Fake(right(known[0], setting), FAULTS[peer.family])
        return right(peer, setting)

    monkeypatch.setattr(Peer, "load", load)
    monkeypatch.setattr(Options, "peers", lambda *_: [*known, *fakes])
    options = Options(["fixed-16", "latency-16"], ["float32"], tokens=64, rounds=2, quick=True)
    blocks = list(run(checkpoints["nomic-v1.5"], options))
    assert [{line["case"] for line in block} for block in blocks] == [{"fixed-16"}, {"latency-16"}]
    lines = [line for block in blocks for line in block]
    first = {line["peer"]: line for line in lines if line["case"] == "fixed-16"}
    status = {name: line["status"] for name, line in first.items()}
    assert status == {
        "ours": "measured",
        "transformers-32": "measured",
        "right": "measured",
        "scaled": "wrong",
        "swapped": "wrong",
        "nan": "wrong",
        "narrow": "wrong",
        "breaks": "absent",
        "missing": "absent",
    }
    assert first["missing"]["reason"] == "nobody has written it"
    assert first["breaks"]["reason"].startswith("failed: cannot reshape")
    assert first["nan"]["cosine_min"] is None
    assert first["nan"]["norm_ratio"] is None
    assert first["scaled"]["norm_ratio"] == pytest.approx(2, abs=1e-3)
    assert first["scaled"]["reason"].endswith("norm 2.0000 times as large")
    assert "to transformers-32 float32" in first["scaled"]["reason"]
    assert first["right"]["norm_ratio"] == pytest.approx(1.005, abs=1e-3)
    ours = first["ours"]
    assert (ours["tokens"], ours["texts"], len(ours["seconds"])) == (64, 4, 2)
    assert ours["tokens_per_second"] == pytest.approx(64 / np.median(ours["seconds"]))
    assert ours["texts_per_second"] == pytest.approx(4 / np.median(ours["seconds"]))
    assert ours["matrix_share"] == pytest.approx(ours["model_flops"] / ours["matrix_flops"])
    assert set(ours["shares"]) == {"tokenise", "encode", "pool"}
    assert min(ours["shares"].values()) > 0
    assert ours["cosine_min"] == pytest.approx(1, abs=1e-5)
    assert ours["reference"] == "transformers-32 float32"
    latency = next(x for x in lines if (x["case"], x["peer"]) == ("latency-16", "ours"))
    assert latency["p50"] == pytest.approx(np.median(latency["seconds"]))
    assert latency["p99"] >= latency["p50"]
    text = left_out(lines)
    assert "swapped float32: WRONG, not ranked: wrong vectors" in text
    assert "missing float32: nobody has written it\n" in text
    table = as_table(blocks[0])
    assert table.startswith("fixed-16: 4 texts, 64 tokens\n")
    assert "scaled" not in table
    assert max(map(len, f"{text}\n{table}".splitlines())) <= 100


@pytest.mark.parametrize("interrupted", [False, True])
def test_peers_are_closed(
    interrupted: bool, checkpoints: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer's own threads would keep the process from ending, also if the run is interrupted."""
    right, closed = Peer.load, []

    def load(peer: Peer, setting: Any) -> Any:
        setting.closing.callback(closed.append, peer.name)
        return right(peer, setting)

    monkeypatch.setattr(Peer, "load", load)
    options = Options(["fixed-16"] * 2, ["float32"], families=["ours"], tokens=16, quick=True)
    blocks = run(checkpoints["conan-v1"], options)
    next(blocks)
    assert closed == []
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            blocks.throw(KeyboardInterrupt())
    else:
        list(blocks)
    assert {"ours float32", "ours-texts float32"} <= set(closed)


def test_errors_of_ours_are_raised(
    checkpoints: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise RuntimeError("our own fault")

    monkeypatch.setattr("nomicbert.benchmark.ours.Ids.vectors", refuse)
    options = Options(["fixed-16"], ["float32"], families=["ours"], tokens=16, quick=True)
    with pytest.raises(RuntimeError, match="our own fault"):
        list(run(checkpoints["conan-v1"], options))


def test_out_of_memory_ends_the_search(checkpoints: dict[str, Checkpoint]) -> None:
    """The peer still takes part, with smaller batches."""
    checkpoint, tried = checkpoints["nomic-v1.5"], []
    case = checkpoint.case("fixed-16", 256, CPU)
    assert case is not None

    class Small(Fake):
        def ways(self, case: Case) -> list[Batching]:
            return [by_count(case.lengths, count) for count in (1, 4, 8, 16)]

        def vectors(self, case: Case, way: Batching) -> np.ndarray:
            tried.append(way.count)
            if way.count > 4:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return np.zeros((len(case.texts), 2), dtype=np.float32)

    options = Options(["fixed-16"], ["float32"])
    setting = checkpoint.setting(options, Path("nowhere"))
    found = Group(checkpoint, options, setting, "float32", ["float32"])
    assert found._best_way(Small(None, None), case).count in (1, 4)
    assert set(tried) <= {1, 4, 8}


@pytest.mark.parametrize("name", ["tokens", "rounds", "threads"])
def test_options_below_one(name: str, checkpoints: dict[str, Checkpoint]) -> None:
    options = replace(Options(["fixed-16"], ["float32"]), **{name: 0})
    with pytest.raises(ValueError, match=f"{name} 0: it must be 1 or more"):
        list(run(checkpoints["nomic-v1.5"], options))
