"""The proof run in tiny sizes on a CPU; its winners, its summary, and its errors."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.gpu import digests, machine, rivals
from bench.gpu.place import Place
from bench.gpu.proof import __main__ as proof
from bench.gpu.proof import cases as around
from bench.gpu.proof import parity, smoke, speed, summary
from bench.gpu.proof.stages import START, budget, stages
from bench.gpu.runner.ledger import Ledger, ends
from bench.harness import WrongValues
from bench.problem import poisoned
from nomicbert.benchmark.batching import by_count
from nomicbert.benchmark.workloads import Case as Texts
from nomicbert_kernels import launch
from nomicbert_kernels.backend import TORCH
from tests.gpu import conftest as gpu_conftest
from tests.ops.cases import INTERPRETS
from tests.support import stages_here
from tests.support.bench_lines import OURS, entry, measured

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
# Seconds of GPU time available for this command.
SECONDS = 480


@pytest.fixture(autouse=True)
def source_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "kernels")]))
    # restore what the command sets for its children
    for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "NOMICBERT_LAUNCH"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
        if not os.environ[name]:
            monkeypatch.delenv(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def dry(folder: Path, *more: str) -> int:
    words = ["--dry", "--out", str(folder / "proof.jsonl"), "--scratch", str(folder / "scratch")]
    interpreted = os.environ.get("TRITON_INTERPRET")
    try:
        return proof.main([*words, *more])
    finally:
        if interpreted is not None:
            os.environ["TRITON_INTERPRET"] = interpreted


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """`test_kernels_dry` and the tests of the runner start children."""
    if INTERPRETS:
        stages_here.install(monkeypatch)


def done(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return ends(Ledger(folder / "proof.jsonl").lines())


@pytest.mark.usefixtures("in_this_process")
def test_whole_models_dry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        dry(tmp_path, "--stage", "baseline", "inductor", "parity", "headline", "profile", "peers")
        == 0
    )
    found = done(tmp_path)
    assert {line["status"] for line in found.values()} == {"ok"}
    assert found["baseline", "machine"]["sources"] == digests.sources()
    assert found["baseline", "any 64^3"]["lines"][0]["flops"] == 2 * 64**3
    assert {case for stage, case in found if stage == "parity"} == {*parity.CHECKS}
    assert found["parity", "fp32 against transformers"]["error"] < 1e-6
    headline = {line["peer"]: line for line in found["headline", "fixed-16"]["lines"]}
    assert {*headline} == {"ours", "ours-texts"}
    assert headline["ours"]["tokens"] == 64
    peers = {line["peer"] for line in found["peers", "fixed-16"]["lines"]}
    assert {"ours", "transformers", "sentence-transformers", "sentence-transformers-32"} <= peers
    traced = found["profile", "queries"]
    assert traced["busy_us"] <= traced["span_us"]
    assert sum(row["us"] for row in traced["kernels"]) > 0
    text = (tmp_path / "summary.txt").read_text()
    assert capsys.readouterr().out.endswith(text)
    assert "\nheadline: fixed-16 0.0" in text
    assert len(text.splitlines()) <= summary.MOST


def test_kernels_dry(tmp_path: Path) -> None:
    """Ops in Triton's interpreter: compared with fp64, raced, and run with the winning table."""
    assert dry(tmp_path, "--stage", "smoke", "fp8") == 0
    found = done(tmp_path)
    place = dataclasses.replace(Place(CPU, torch.float16, "triton", True, lambda work: 0.0))
    names = [name for name, _ in smoke.calls(place)]
    assert [case for stage, case in found if stage == "smoke"] == names
    for name in names:
        errors = found["smoke", name]["errors"]
        assert [one["tokens"] for one in errors] == [5, 70]
        assert all(0 <= one["error"] <= one["bound"] for one in errors)
    assert any(one["error"] > 0 for name in names for one in found["smoke", name]["errors"])
    assert len([case for stage, case in found if stage == "fp8"]) == 5


@pytest.mark.usefixtures("in_this_process")
def test_variants_dry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter larger tiles win clearly: the table is written, and raced again.

    Time is that of the processor, which no other process has a part in.
    """
    processor = types.SimpleNamespace(perf_counter=time.process_time)
    monkeypatch.setattr("bench.timing.time", processor)
    assert dry(tmp_path, "--stage", "variants", "--match", "qkv_rotary, few") == 0
    assert dry(tmp_path, "--stage", "variants", "--match", "linear, layer_norm") == 0
    found = done(tmp_path)
    raced = found["variants", "linear, layer_norm, 16896"]
    right = {line["peer"] for line in raced["lines"] if line["status"] == "measured"}
    assert {"ours", "128x128x64 w8 s4", "128x256x64 w8 s2"} <= right
    assert raced["rows"]["128x256x64 w8 s2"]["exactly"] == {"n": 64, "k": 96}
    few = found["variants", "qkv_rotary, few rows, 32"]["rows"]["64x128x64 w4 s4"]
    assert (few["up_to"], few["BLOCK_N"], few["num_stages"]) == ({"rows": 64}, 128, 4)
    written = tmp_path / "launch/interpreter.json"
    assert launch.read_table(written)[-1].settings["BLOCK_N"] == 256
    assert dry(tmp_path, "--stage", "variants", "--match", "swiglu, fp8") == 0
    narrow = done(tmp_path)["variants", "swiglu, fp8, 16896"]
    assert {line["peer"] for line in narrow["lines"]} >= {"ours-fp8", "not flat"}
    assert narrow["ours"] == "ours-fp8"
    assert dry(tmp_path, "--stage", "tuned", "--match", "fixed") == 0
    again = {line["peer"] for line in done(tmp_path)["tuned", "fixed-16"]["lines"]}
    assert again == {"ours", "ours, tuned"}


WARM = """
import json
from bench.gpu.proof import precompile

options = {"dry": True, "arch": "sm_90", "scratch": "unused", "match": ""}
names = ["smoke/nomic swiglu", "model/bfloat16/triton", "variants/attention_long/8 x 2048"]
print(json.dumps([precompile.compile_one(name, options) for name in names]))
"""


def test_kernels_are_compiled_in_the_background(tmp_path: Path) -> None:
    """A later launch finds them in the cache."""
    environment = {
        **os.environ,
        "TRITON_CACHE_DIR": str(tmp_path),
        "NOMICBERT_LAUNCH": str(tmp_path),
    }
    environment.pop("TRITON_INTERPRET", None)

    def compiled() -> list[dict[str, Any]]:
        command = [sys.executable, "-c", WARM]
        found = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment
        )
        return list(json.loads(found.stdout.splitlines()[-1]))

    first, second = compiled(), compiled()
    assert [one["refused"] for one in first + second] == [""] * 6
    # for few rows and for many
    assert first[0]["compiled"] == 2
    assert first[1]["compiled"] > 3
    assert [one["compiled"] for one in second] == [0, 0, 0]
    assert all(one["from_cache"] for one in second)


def test_kernels_that_do_not_fit_are_named() -> None:
    from bench.gpu.proof import precompile

    record = {"error": "", "arch": "sm_90", "kernel": "linear_kernel", "shared": 232_448}
    assert precompile.problem(record) == ""
    assert precompile.problem(record | {"shared": 245_784}) == (
        "linear_kernel needs 245784 bytes of shared memory of 232448"
    )
    assert precompile.problem(record | {"error": "no such tile\nand more"}) == "no such tile"


def test_all_launched_kernels_are_compiled_in_the_background() -> None:
    options = {"dry": False}
    from bench.gpu.proof import precompile

    names = precompile.names(options)
    assert names[0] == "checkpoint"
    assert {name for name in names if name.startswith("model/")} == {
        "model/bfloat16/triton", "model/bfloat16/fp8", "model/float32/triton",
    }  # fmt: skip
    assert len(names) == len(set(names)) > 35


def test_the_boxes_fit() -> None:
    found = stages(False)
    assert budget(found) == SECONDS
    background = {stage.name: stage for stage in found if stage.background}
    assert {*background} == {"precompile", "inductor"}
    alone = next(index for index, stage in enumerate(found) if stage.exclusive)
    # background stages end before the first stage whose times matter
    before = sum(stage.box for stage in found[:alone] if not stage.background)
    assert background["precompile"].box <= before
    first = sum(stage.box for stage in found[:2] if not stage.background)
    assert first + background["inductor"].box <= before
    names = [stage.name for stage in found]
    assert names.index("smoke") < names.index("parity") < names.index("headline")
    assert all(stage.env.get("TRITON_INTERPRET") is None for stage in found)


@pytest.mark.parametrize("stage", stages(False), ids=lambda stage: stage.name)
def test_the_cases_of_a_real_run(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They can be listed, and their estimates fit the stage's box."""
    from bench.gpu.runner.child import function_of

    real = Place(CPU, torch.bfloat16, "triton", False, lambda work: 0.0)
    monkeypatch.setattr(Place, "here", classmethod(lambda cls, dry: real))
    monkeypatch.setattr(Place, "is_gpu", property(lambda self: True))
    monkeypatch.setattr(Path, "is_file", lambda self: True)
    options = {"dry": False, "match": "", "scratch": "s", "out": "o", "ledger": "l"}
    found = function_of(stage.cases)(stage.name, options)
    assert found
    assert len({case.name for case in found}) == len(found)
    assert START + sum(case.seconds for case in found) <= stage.box


def test_a_sticky_error_belongs_to_its_case(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(CPU, torch.float32, "torch", True, lambda work: 0.0)

    def lost(self: Place) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    one = around.case(place, "a", lambda: {"said": "well"}, 1.0)
    assert one.work() == {
        "said": "well", "compiled": 0, "from_cache": 0, "sources": digests.sources()
    }  # fmt: skip
    monkeypatch.setattr(Place, "finish", lost)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        one.work()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ([], "no GPU that torch can use"),
        (["--dry", "--out", "file/proof.jsonl"], "file"),
        (["--dry", "--out", "list"], "holds no lines of a run"),
    ],
)
def test_mistakes(
    arguments: list[str],
    what: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "list").write_text("milk\n")
    assert proof.main(arguments or ["--out", "proof.jsonl"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("bench.gpu.proof: ")
    assert what in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "list"]


def test_without_triton(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda name: None)
    assert dry(tmp_path) == 2
    assert "triton is not installed" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        dry(tmp_path, "--stage", "luck")
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "invalid choice: 'luck'" in err


def test_smoke_detects_wrong_results() -> None:
    place = Place(CPU, torch.float32, "torch", True, lambda work: 0.0)
    make = dict(smoke.calls(place))["nomic swiglu"]
    assert smoke.checked(place, make)["errors"][0]["error"] > 0
    right_one = TORCH.swiglu

    def off(*given: Any) -> Any:
        return right_one(*given) * 1.001

    vars(place)["ops"] = TORCH.replaced(swiglu=off)
    with pytest.raises(WrongValues, match="5 tokens: off by"):
        smoke.checked(place, make)

    def unwritten(x: Tensor, weight: Any) -> Tensor:
        found = right_one(x, weight)
        out = torch.empty_like(found)
        out[1:] = found[1:]
        return out

    vars(place)["ops"] = TORCH.replaced(swiglu=unwritten)
    with pytest.raises(WrongValues, match="off by nan"):
        smoke.checked(place, make)
    with poisoned():
        assert torch.empty(2).isnan().all()
        assert torch.zeros(2).new_empty(2).isnan().all()
    assert not smoke.texts(16896, 2048)[-1] > 2048
    assert sum(smoke.texts(16896, 2048)) == 16896
    assert smoke.texts(17, 2048) == [1, 16]


def test_parity_detects_wrong_results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = Place(CPU, torch.float32, "torch", True, lambda work: 0.0)
    suite = parity.Suite(place, {"scratch": str(tmp_path), "match": ""})
    suite.full()
    plain = parity.Suite.vectors
    monkeypatch.setattr(parity.Suite, "vectors", lambda self, dtype: plain(self, dtype)[::-1])
    for check in (suite.full, suite.half):
        with pytest.raises(WrongValues, match="off by"):
            check()
    noise = np.random.default_rng(0)

    def unsteady(self: Any, dtype: str) -> np.ndarray:
        found = plain(self, dtype)
        return found + noise.random(found.shape, np.float32)

    monkeypatch.setattr(parity.Suite, "vectors", unsteady)
    with pytest.raises(WrongValues, match="allowed 0"):
        suite.repeats()
    embedder = suite.embedder("float32")
    encode = type(embedder).encode

    def other(self: Any, texts: Any, **keywords: Any) -> Any:
        found = encode(self, texts, **keywords)
        return -found if os.environ.get("NOMICBERT_GRAPHS") == "0" else found + noise.random()

    monkeypatch.setattr(type(embedder), "encode", other)
    for check in (suite.graphs, suite.threads):
        with pytest.raises(WrongValues, match="off by"):
            check()


def test_graphs_have_to_be_recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A call without graphs frees recorded ones, so they are checked before it."""
    place = Place(CPU, torch.float32, "torch", True, lambda work: 0.0)
    suite = parity.Suite(place, {"scratch": str(tmp_path), "match": ""})
    suite.graphs()
    embedder = suite.embedder("float32")
    suite.vectors_of_transformers("float32")
    monkeypatch.setattr(Place, "is_gpu", property(lambda self: True))
    with pytest.raises(WrongValues, match="no graph was recorded"):
        suite.graphs()
    encode = type(embedder).encode

    def recorded(self: Any, *given: Any, **keywords: Any) -> Any:
        found = encode(self, *given, **keywords)
        kept: Any = {} if os.environ.get(parity.graphs.SWITCH) == "0" else {"key": "bucket"}
        self.graphs._kept = kept
        return found

    monkeypatch.setattr(type(embedder), "encode", recorded)
    assert suite.graphs()["error"] < 1e-6


def test_the_winning_rows_are_used_and_restored(tmp_path: Path) -> None:
    path = tmp_path / "interpreter.json"
    shipped = json.loads(launch.shipped("interpreter").read_text("utf-8"))["rows"]
    won = next(row for row in shipped if row["kernel"] == "swiglu" and row["bytes"] == 4)
    path.write_text(json.dumps({"rows": [{**won, "BLOCK_M": 128}, {**won, "BLOCK_M": 64}]}))
    sizes = {"rows": 70, "n": 96, "k": 64}
    before = launch.settings("swiglu", CPU, torch.float32, **sizes)
    seen: list[int] = []

    def encode(*given: Any) -> Tensor:
        seen.append(launch.settings("swiglu", CPU, torch.float32, **sizes)["BLOCK_M"])
        return torch.zeros(1, 2)

    graphs = types.SimpleNamespace(around=lambda model: encode)
    embedder: Any = types.SimpleNamespace(embedding_model="m", graphs=graphs)
    texts = Texts("passages", [[1, 2]], ["x"])
    tuned = speed.Tuned(embedder, path)
    for _ in range(2):
        tuned.vectors(texts, by_count(texts.lengths, 1))
        assert launch.settings("swiglu", CPU, torch.float32, **sizes) == before
    assert seen == [128, 128] != [before["BLOCK_M"]] * 2


def test_fp8_is_measured_without_its_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Model:
        def use(self, backend: str) -> None:
            asked.append(f"use {backend}")

    def load(folder: Any, **keywords: Any) -> Any:
        asked.append(keywords["backend"])
        return types.SimpleNamespace(model=Model())

    monkeypatch.setattr(rivals.Embedder, "from_pretrained", load)
    setting: Any = types.SimpleNamespace(loaded={}, folder="f", device=CPU)
    monkeypatch.setattr(rivals, "select_ops", lambda *chosen: asked.append(chosen[-1]))
    rivals.ours("fp8", False, setting, "bfloat16")
    assert asked == ["fp8", "triton", "use fp8"]
    rivals.ours("triton", False, setting, "bfloat16")
    assert asked[3:] == ["triton"]


def test_the_order_of_the_tests_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def item(file: str, name: str) -> Any:
        return types.SimpleNamespace(path=Path(f"test_{file}.py"), name=name)

    items = [
        item("sanitizer", "test_sanitizer[memcheck]"), item("models", "test_fp32"),
        item("values", "test_texts[float32-attention nomic-longest]"), item("graphs", "test_x"),
        item("values", "test_tokens[float32-linear]"), item("fp8", "test_ops"),
    ]  # fmt: skip
    assert [one.path.stem[5:] for one in sorted(items, key=gpu_conftest.rank)] == [
        "values", "graphs", "models", "fp8", "values", "sanitizer",
    ]  # fmt: skip


def test_a_summary_fits(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "proof.jsonl")
    for number in range(60):
        ledger.add("smoke", f"op {number}", "failed", reason="x" * 400, seconds=1.0)
    rate = {**measured("ours", 1.0), "tokens_per_second": 2.5e6, "cosine_min": 0.9}
    texts = {**rate, "peer": "ours-texts", "tokens_per_second": 2e6}
    narrow = {**rate, "peer": "ours-fp8", "tokens_per_second": 3e6, "cosine_min": 0.99971}
    ledger.add("headline", "fixed-512", "ok", lines=[rate, texts], seconds=0.1)
    ledger.add("fp8", "fixed-512", "ok", lines=[rate, narrow], seconds=0.1)
    for number in range(50):
        ledger.add("peers", f"more {number}", "ok", lines=[rate], seconds=0.1)
    ledger.add("smoke", "fine", "ok", seconds=1.0, compiled=2, from_cache=5)
    refused = {"smoke/nomic swiglu": "no such tile"}
    ledger.add("precompile", "kernels", "ok", seconds=9.0, compiled=80, refused=refused)
    for name, median in (("swiglu", 0.8), ("embed", 0.7)):
        more = entry(name, OURS, measured("a", median))
        if name == "embed":  # changes a module constant, not a launch row
            more["rows"] = {}
        ledger.add("variants", name, more.pop("status"), **more)
    summary.write(tmp_path / "summary.txt", ledger.lines(), stages(False))
    lines = (tmp_path / "summary.txt").read_text().splitlines()
    assert len(lines) == 40
    assert max(map(len, lines)) <= summary.WIDTH
    assert any(line.split()[:4] == ["smoke", "1", "0", "60"] for line in lines)
    assert "... and 52 more" in lines
    assert (
        "kernels: 80 compiled in the background in 9 s (smoke/nomic swiglu refused); "
        "then 2 compiled, 5 cache hits"
    ) in lines
    assert "headline: fixed-512 2.500 Mtok/s, 2.000 Mtok/s from strings" in lines
    assert "fp8: fixed-512: ours 2.500 Mtok/s, ours-fp8 3.000 Mtok/s (cosine 0.9997)" in lines
    assert "fastest variants, time / shipped (* taken): swiglu: a* 0.80; embed: a 0.70" in lines
