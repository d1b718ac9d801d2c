"""The texts of the whole-model benchmark, how peers are cut, timed, judged and compared."""

from __future__ import annotations

import itertools
import json
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

from bench import throughput_report
from nomicbert.benchmark import batching, measure, memory, torch_peers, workloads
from nomicbert.benchmark.batching import Batching, by_count, by_tokens, fastest, ways
from nomicbert.benchmark.group import Group
from nomicbert.benchmark.lines import as_json, put, ratios, read
from nomicbert.benchmark.peers import ANCHOR, OURS, PEERS, AbsentError, Peer, choose
from nomicbert.benchmark.plan import Checkpoint, Options
from nomicbert.benchmark.run import run
from nomicbert.benchmark.table import as_table, left_out
from nomicbert.benchmark.workloads import Case, Words
from tests.support.checkpoints import build_checkpoint
from tests.support.cpus import pretend

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    found = {}
    for name in ("nomic-v1.5", "conan-v1"):
        more = {"dialect": "both"} if name == "nomic-v1.5" else {}
        folder = build_checkpoint(tmp_path_factory.mktemp(name), name, num_hidden_layers=1, **more)
        found[name] = Checkpoint.of(name, folder)
    return found


@pytest.mark.parametrize("model", ["nomic-v1.5", "conan-v1"])
@pytest.mark.parametrize("name", ["fixed-16", "fixed-128", "passages", "queries", "mixture"])
def test_texts_have_the_ids_that_they_stand_for(
    name: str, model: str, checkpoints: dict[str, Checkpoint]
) -> None:
    checkpoint = checkpoints[model]
    case = checkpoint.case(name, 2048, CPU)
    assert case is not None
    assert checkpoint.tokenizer.encode(case.texts, 8192) == (case.ids, [])
    assert case.tokens == 2048
    assert len(set(case.texts)) > len(case.texts) // 2
    again = checkpoint.case(name, 2048, CPU)
    other = checkpoint.case(name, 2048, CPU, seed=1)
    assert again == case
    assert other is not None
    assert other.texts != case.texts
    if not name.startswith("fixed"):
        assert other.lengths != case.lengths


def test_chinese_texts_are_characters(checkpoints: dict[str, Checkpoint]) -> None:
    case = checkpoints["conan-v1"].case("fixed-16", 64, CPU)
    assert case is not None
    assert all(len(text) == 14 and "\u4e00" <= min(text) for text in case.texts)
    english = checkpoints["nomic-v1.5"].case("fixed-16", 64, CPU)
    assert english is not None
    assert all(len(text.split()) == 14 for text in english.texts)


def test_words_that_fall_into_pieces_are_not_drawn(
    checkpoints: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, right = checkpoints["nomic-v1.5"].tokenizer, workloads._bodies
    assert "river" in Words.of(tokenizer).pieces

    def in_pieces(tokenizer: Any, texts: Any) -> list[list[int]]:
        bodies = right(tokenizer, texts)
        return [
            ids * (2 if text == "river" else 1) for text, ids in zip(texts, bodies, strict=True)
        ]

    monkeypatch.setattr(workloads, "_bodies", in_pieces)
    words = Words.of(tokenizer).pieces
    assert "river" not in words
    assert "red" in words


def test_lengths_of_each_kind() -> None:
    rng = np.random.default_rng(0)
    queries = workloads.lengths_of("queries", 40_000, rng, 8192)
    passages = workloads.lengths_of("passages", 200_000, rng, 8192)
    documents = workloads.lengths_of("documents", 200_000, rng, 8192)
    assert min(queries) == 3
    assert 14 < max(queries) <= 20
    assert np.mean(queries) == pytest.approx(8, rel=0.03)
    assert (min(passages), max(passages)) == (16, 256)
    assert np.mean(passages) == pytest.approx(70, rel=0.03)
    assert min(documents[:-1]) >= 512
    assert max(documents) <= 2048
    # as many in each octave: the mean of a log-uniform draw is (b - a) / log(b / a)
    assert np.mean(documents) == pytest.approx(1536 / math.log(4), rel=0.08)
    on_gpu = workloads.lengths_of("documents", 400_000, rng, 8192, long_documents=True)
    assert 6000 < max(on_gpu) <= 8192
    assert workloads.lengths_of("fixed-128", 1000, rng, 8192) == [128] * 7
    assert workloads.lengths_of("fixed-8192", 1000, rng, 8192) == [8192]
    assert workloads.lengths_of("latency-32", 1000, rng, 8192) == [32]


def test_a_mixture_is_shared_out_by_tokens(checkpoints: dict[str, Checkpoint]) -> None:
    case = checkpoints["nomic-v1.5"].case("mixture", 10_000, CPU)
    assert case is not None
    assert case.kinds == {"queries": 1000, "passages": 6000, "documents": 3000}
    assert case.tokens == 10_000
    # not in the order of their kinds
    long = [place for place, length in enumerate(case.lengths) if length > 256]
    assert long
    assert long != list(range(len(case.ids) - len(long), len(case.ids)))


def test_texts_beyond_the_limit(checkpoints: dict[str, Checkpoint]) -> None:
    bert = checkpoints["conan-v1"]
    assert bert.longest == 512
    assert bert.case("fixed-2048", 4096, CPU) is None
    assert bert.case("fixed-512", 512, CPU) is not None
    mixture = bert.case("mixture", 4096, CPU)
    assert mixture is not None
    assert max(mixture.lengths) <= 512
    with pytest.raises(ValueError, match="unknown case 'fixed-17'"):
        bert.case("fixed-17", 64, CPU)


def case_of(lengths: list[int], name: str = "mixture") -> Case:
    return Case(name, [[1] * length for length in lengths], ["x"] * len(lengths))


def test_ways_to_cut_a_case() -> None:
    assert by_count([5, 9, 7], 2).parts == ((1, 2), (0,))
    assert by_tokens([5, 9, 7, 1], 18).parts == ((1, 2), (0, 3))
    assert [way.name for way in ways(case_of([16] * 4), "cpu")] == ["1", "4"]
    for device in ("cpu", "cuda"):
        assert [way.name for way in ways(case_of([16], "latency-16"), device)] == ["1"]
    # eight texts of 4096 would be 32768 padded tokens
    assert [way.name for way in ways(case_of([4096] * 9), "cpu")] == ["1", "4"]
    mixed = ways(case_of([2000, *[10] * 100]), "cpu")
    assert "4096 tokens" in [way.name for way in mixed]
    for way in mixed:
        assert sorted(itertools.chain(*way.parts)) == list(range(101))


def test_a_gpu_gets_larger_batches() -> None:
    many = case_of([16] * 2048)
    few = ["1", "4", "8", "16", "32", "64"]
    # 64 texts of 16 are 1024 padded tokens, 256 are 4096
    assert [way.name for way in ways(many, "cpu")] == [*few, "4096 tokens"]
    assert [way.name for way in ways(many, "cuda")] == [
        *few, "128", "256", "512", "1024", "65536 tokens",
    ]  # fmt: skip
    long = [way.name for way in ways(case_of([512] * 1024), "cuda")]
    # 512 texts of 512 would be 262144 padded tokens
    assert long[-3:] == ["64", "128", "256"]
    mixed = [way.name for way in ways(case_of([4096, *[10] * 4096]), "cuda")]
    assert "16384 tokens" in mixed
    assert "65536 tokens" in mixed


def test_padding() -> None:
    ids, mask = batching.padded([[5, 6, 7], [8]], pad=2)
    assert ids.tolist() == [[5, 6, 7], [8, 2, 2]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_the_fastest_way() -> None:
    cost = {"1": [4.0], "4": [2.0], "8": [2.2], "16": [3.0], "32": [1.0]}
    tried: list[str] = []

    def seconds(way: Batching) -> float:
        tried.append(way.name)
        return cost[way.name][0]

    choices = [Batching(name, ()) for name in cost]
    assert fastest(choices, seconds).name == "4"
    # 16 is hopeless, and so is what comes after it
    assert tried == ["1", "1", "4", "4", "8", "8", "16", "16"]
    # the better of two passes counts
    turns = iter([0.5, 0.1, 0.4, 0.3])
    assert fastest(choices[:2], lambda way: next(turns)).name == "1"


class FakeClock:
    """Time that passes only as works say."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_turns_alternate() -> None:
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


def test_several_calls_in_a_turn_begin_uncounted() -> None:
    clock, costs = FakeClock(), iter([50.0, 1.0, 2.0, 60.0, 3.0, 4.0])

    def once() -> None:
        clock.now += next(costs)

    assert measure.in_turns({"a": once}, 2, clock, calls=2) == {"a": [1.0, 2.0, 3.0, 4.0]}


def test_operations_of_a_model(checkpoints: dict[str, Checkpoint]) -> None:
    case = case_of([3, 5])
    config = checkpoints["nomic-v1.5"].config
    assert (config.hidden_size, config.intermediate_size) == (64, 96)
    weights = 4 * 64 * 64 + 3 * 64 * 96
    assert measure.flops(config, case) == 2 * weights * 8 + 4 * 64 * (9 + 25)
    config = checkpoints["conan-v1"].config
    weights = 4 * 64 * 64 + 2 * 64 * 96
    assert measure.flops(config, case) == 2 * weights * 8 + 4 * 64 * (9 + 25)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "fp8"])
def test_matrix_products_have_the_shape_that_is_counted(
    dtype: str, checkpoints: dict[str, Checkpoint]
) -> None:
    config = checkpoints["nomic-v1.5"].config
    result: Any = measure.matrix_work(config, dtype, CPU, 40)()
    assert tuple(result.shape) == (40, 96)
    assert measure.matrix_flops(config, 40) == 2 * 40 * 64 * 96
    assert measure.matrix_rows(10**6) == measure.MATRIX_ROWS


@pytest.mark.parametrize("found", [True, False])
def test_products_are_computed_as_ours_are(
    found: bool, checkpoints: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, found)
    result: Any = measure.matrix_work(checkpoints["conan-v1"].config, "bfloat16", CPU, 40)()
    assert result.dtype == (torch.bfloat16 if found else torch.float32)


def test_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The most at any time, less what was held before; an earlier peak does not count."""
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


@pytest.mark.skipif(not memory.STATUS.is_file(), reason="Linux says it of a process alone")
def test_a_peak_is_the_process_s_own() -> None:
    """What its parent has had counts towards its ru_maxrss."""
    code = "from nomicbert.benchmark.memory import peak; print(peak())"
    alone = int(subprocess.check_output([sys.executable, "-c", code], env=environment()))
    fat = (
        "import subprocess, sys; ballast = bytearray(2 << 30); "
        f"print(subprocess.check_output([sys.executable, '-c', {code!r}]).decode())"
    )
    below = int(subprocess.check_output([sys.executable, "-c", fat], env=environment()))
    assert below == pytest.approx(alone, rel=0.1)


def environment() -> dict[str, str]:
    roots = Path(__file__).parents[2]
    return os.environ | {"PYTHONPATH": os.pathsep.join((str(roots), str(roots / "kernels")))}


def test_ours_stand_in_for_the_reference(
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
    # a quarter too long is as far off as a fifth too short
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


def test_who_takes_part() -> None:
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
    """A peer that copies the truth, with a fault."""

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


def test_only_right_peers_are_ranked(
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
    assert first["scaled"]["reason"].endswith("norm 2.0000 times that of transformers-32 float32")
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
    assert "swapped float32: WRONG, not ranked: computes something else" in text
    assert "missing float32: nobody has written it\n" in text
    table = as_table(blocks[0])
    assert table.startswith("fixed-16: 4 texts, 64 tokens\n")
    assert "scaled" not in table
    assert max(map(len, f"{text}\n{table}".splitlines())) <= 100


def test_a_fault_of_ours_is_no_absence(
    checkpoints: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise RuntimeError("our own fault")

    monkeypatch.setattr("nomicbert.benchmark.ours.Ids.vectors", refuse)
    options = Options(["fixed-16"], ["float32"], families=["ours"], tokens=16, quick=True)
    with pytest.raises(RuntimeError, match="our own fault"):
        list(run(checkpoints["conan-v1"], options))


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


def test_ratios() -> None:
    best, over_best, over_naive = ratios(LINES, LINES[0])
    assert best is not None
    assert (best["peer"], over_best, over_naive) == ("fast", 0.5, 3.0)
    assert ratios(LINES[:1], LINES[0]) == (None, None, None)
    # measured again: the later line counts
    again = [*LINES, line_of("fast", "float32", 200.0)]
    assert ratios(again, LINES[0])[1:] == (1.5, 3.0)


def test_lines_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    put(LINES[:2], path)
    assert read(path) == LINES[:2]
    path.write_text('{"model": "m"}\n')
    with pytest.raises(ValueError, match="line 1 is no result"):
        read(path)
    path.write_text("{}\n{")
    with pytest.raises(ValueError, match="line 1 is no result"):
        read(path)
    path.write_text(json.dumps(LINES[0]) + "\n{")
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        read(path)


def test_a_case_s_lines_replace_those_that_were_there(tmp_path: Path) -> None:
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


def test_a_case_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
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
    assert rows[0] == ["c", "ours float32", "300", "fast 200", "1.50", "3.00", "25 / 75"]
    found = {row[1]: row for row in rows[1:]}
    assert set(found) == {
        "ours float32", "transformers-32 float32", "fast float32", "faster int8",
        "from strings float32",
    }  # fmt: skip
    assert found["fast float32"][2:] == [
        "4", "200", "1.0", "10.0%", "2", "50%", "1.00000 / 0.50000", "0.67",
    ]  # fmt: skip
    text = path.with_suffix(".md").read_text("utf-8")
    assert "- gone float32: none (c)" in text
    assert text.count("abacus, avx2; 3 threads. torch 2.") == 1
    assert "- bad float32: wrong, not ranked: none (c)" in text


def test_the_report_names_all_that_lines_come_from(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    machine = LINES[0]["machine"] | {"threads": 4}
    put(LINES[:1], path)
    put([line_of("ours", "float32", 1.0, case="d", machine=machine, commit="0123456789abcd")], path)
    throughput_report.main([str(path)])
    text = path.with_suffix(".md").read_text("utf-8")
    assert "\nabacus, avx2; 3 threads. torch 2.\n" in text
    assert "\nabacus, avx2; 4 threads. torch 2. Commit 0123456789ab.\n" in text


def test_limits_that_hold_no_text_of_a_kind(checkpoints: dict[str, Checkpoint]) -> None:
    rng = np.random.default_rng(0)
    for kind, least, most in (("queries", 3, 2), ("passages", 16, 15), ("documents", 16, 15)):
        said = "passages" if kind == "documents" else kind
        with pytest.raises(ValueError, match=f"{said} have {least} tokens or more: {most} do not"):
            workloads.lengths_of(kind, 100, rng, most)
        assert max(workloads.lengths_of(kind, 100, rng, least)) == least
    for name in workloads.NAMES:
        needed = workloads.shortest(name)
        short = replace(checkpoints["nomic-v1.5"], longest=needed - 1)
        assert short.case(name, 200, CPU) is None
        enough = replace(short, longest=needed).case(name, 200, CPU)
        assert enough is not None
        assert max(enough.lengths) == needed


def test_what_a_gpu_has_no_memory_for_ends_the_search(checkpoints: dict[str, Checkpoint]) -> None:
    """And is no reason to leave a peer out."""
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
def test_numbers_below_one(name: str, checkpoints: dict[str, Checkpoint]) -> None:
    options = replace(Options(["fixed-16"], ["float32"]), **{name: 0})
    with pytest.raises(ValueError, match=f"{name} 0: it must be 1 or more"):
        list(run(checkpoints["nomic-v1.5"], options))
