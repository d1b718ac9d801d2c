"""The benchmark on a GPU, run tiny on a CPU: what its lines say, whom it ranks, how it goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from bench.gpu import __main__ as driver
from bench.gpu import (
    attention,
    gemm,
    launches,
    machine,
    ops,
    place,
    plan,
    race,
    report,
    rivals,
    stream,
)
from bench.gpu.goals import ROWS, Goal, goals, ratio, reached
from bench.gpu.models import AnyLength, Models
from bench.gpu.place import Place
from bench.gpu.runner.ledger import Ledger, ends
from bench.gpu.stream import Streams
from nomicbert.benchmark.batching import by_count
from nomicbert.benchmark.plan import Checkpoint
from nomicbert.benchmark.workloads import Case
from nomicbert.errors import HubError
from nomicbert.vectors.pooling import Finish
from nomicbert_kernels.backend import TORCH
from tests.support.checkpoints import build_checkpoint

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
SECONDS = 0.5
# What every line says, whoever made it.
FIELDS = {
    "part", "model", "case", "group", "peer", "dtype", "status", "reason", "tokens", "repeats",
    "versions", "machine", "commit", "clocks",
}  # fmt: skip


def limits() -> Any:
    """Settings of torch.compile that are changed and set back."""
    import torch._dynamo

    return torch._dynamo.config.patch(recompile_limit=8, fail_on_recompile_limit_hit=False)


def half_a_second(work: Callable[[], object]) -> float:
    work()
    return SECONDS


@pytest.fixture
def here() -> Place:
    """A CPU on which all takes half a second."""
    return Place(CPU, torch.float32, "torch", True, half_a_second)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def one(tasks: Iterator[race.Task], model: str, case: str) -> race.Task:
    return next(task for task in tasks if (task.model, task.case) == (model, case))


def by_peer(lines: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    assert all(set(line) >= FIELDS for line in lines)
    return {line["peer"]: line for line in lines}


@pytest.mark.usefixtures("on_cpu")
def test_without_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert driver.main(["--out", str(tmp_path / "lines.jsonl")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "no GPU that torch can use" in err
    assert not list(tmp_path.iterdir())


def test_products(here: Place) -> None:
    found = by_peer(gemm.measure(here, one(gemm.tasks(here), "nomic", "qkv 32")))
    library = found[gemm.LIBRARY]
    # 32 rows of 64 by 192 columns, in fp32
    assert library["flops"] == 2 * 32 * 192 * 64
    assert library["bytes"] == 4 * (32 * 64 + 192 * 64 + 32 * 192)
    assert library["tflops"] == pytest.approx(2 * 32 * 192 * 64 / SECONDS / 1e12)
    assert library["tokens_per_second"] == 64
    assert (library["median"], library["iqr"], library["repeats"]) == (SECONDS, 0, 2)
    assert (library["dtype"], library["copies"]) == ("float32", 2)
    for name in (gemm.WHOLE, gemm.BY_ROW):
        assert found[name]["status"] == "measured"
        assert found[name]["dtype"] == "float8_e4m3fn"
        assert found[name]["error"] < 1e-5
        assert "roofline_percent" not in found[name]


def test_sizes_of_a_real_run() -> None:
    real = Place(CPU, torch.bfloat16, "torch", False, half_a_second)
    shapes = {(task.model, task.case): task for task in gemm.tasks(real)}
    assert len(shapes) == 2 * 4 * 7
    up = shapes["nomic", "up 65536"]
    assert up.flops == 2 * 65536 * 6144 * 768
    assert up.bytes == 2 * (65536 * 768 + 6144 * 768 + 65536 * 6144)
    assert shapes["bert-large", "down 256"].more == {"shape": [256, 1024, 4096]}
    found = {(task.model, task.case): task for task in attention.tasks(real)}
    long = found["nomic", "S=8192"]
    assert (long.flops, long.tokens) == (4 * 768 * 8 * 8192**2, 65536)
    assert found["minilm", "S=32"].flops == 4 * 384 * 2048 * 32**2
    assert {task.more["head_dim"] for task in found.values() if task.more} == {32, 64}
    mixed = found["nomic", "mixture"]
    assert mixed.more is not None
    assert mixed.tokens < mixed.more["padded_tokens"] == 1024 * mixed.more["texts"]
    cases = [(task.model, task.case) for task in ops.tasks(real)]
    assert ("nomic", "swiglu, 16896") in cases
    assert ("minilm", "gelu, 16896") in cases
    assert ("minilm", "gelu, 256") not in cases
    assert ("nomic", "pool 512, 256") not in cases
    assert {case for model, case in cases if model == "nomic-moe"} == {"moe, 16896"}
    assert len(set(cases)) == len(cases)
    kernels = [task.more for task in launches.tasks(real)]
    assert kernels[1:3] == [{"kernels": 86}, {"kernels": 170}]


def test_attention(here: Place) -> None:
    found = by_peer(attention.measure(here, one(attention.tasks(here), "nomic", "S=8")))
    # 32 texts of 8 tokens, 64 wide
    assert found["ours"]["flops"] == 4 * 64 * 32 * 8 * 8
    assert found["ours"]["tokens"] == 256
    assert found["ours"]["bytes"] == 4 * 256 * 64 * 4
    assert found["sdpa math"]["status"] == "measured"
    absent = found["flash-attn-4"]
    assert absent["reason"] == "ImportError: flash-attn-4 is not installed"
    assert "median" not in absent
    mixed = by_peer(attention.measure(here, one(attention.tasks(here), "minilm", "mixture")))
    assert mixed["ours"]["status"] == mixed["padded sdpa auto"]["status"] == "measured"
    lengths = attention.lengths_of(here, "mixture")
    assert len(set(lengths)) > 1
    assert mixed["ours"]["flops"] == 4 * 32 * sum(n * n for n in lengths)


def attend(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, scale: float) -> Tensor:
    """Plain attention over packed texts, for libraries that are not here."""
    out = torch.empty_like(q)
    for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        logits = torch.einsum("ihd,jhd->hij", q[a:b], k[a:b]) * scale
        out[a:b] = torch.einsum("hij,jhd->ihd", logits.softmax(-1), v[a:b])
    return out


def test_flash_attention_4_and_torch_on_packed_texts(
    here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch.nn.attention.varlen as varlen

    cute = types.ModuleType("flash_attn.cute")

    def flash(q: Any, k: Any, v: Any, **given: Any) -> Any:
        assert torch.equal(given["cu_seqlens_q"], given["cu_seqlens_k"])
        assert given["max_seqlen_q"] == given["max_seqlen_k"] == max(lengths)
        return attend(q, k, v, given["cu_seqlens_q"], given["softmax_scale"]), None

    def packed(q: Any, k: Any, v: Any, a: Any, b: Any, most: int, _: int) -> Any:
        return attend(q, k, v, a, q.shape[-1] ** -0.5)

    cute.flash_attn_varlen_func = flash  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", types.ModuleType("flash_attn"))
    monkeypatch.setitem(sys.modules, "flash_attn.cute", cute)
    monkeypatch.setattr(attention, "find_spec", lambda name: name)
    monkeypatch.setattr(varlen, "varlen_attn", packed)
    right = attention.peers_of
    more = lambda *a: right(*a) | {"varlen_attn": None}  # noqa: E731
    monkeypatch.setattr(attention, "peers_of", more)
    lengths = attention.lengths_of(here, "mixture")
    found = by_peer(attention.measure(here, one(attention.tasks(here), "nomic", "mixture")))
    assert found["flash-attn-4"]["status"] == "measured"
    assert found["varlen_attn"]["status"] == "measured"


@pytest.mark.parametrize(
    ("model", "case", "flops"),
    [
        ("nomic", "qkv_rotary, 70", 2 * 70 * 192 * 64),
        ("nomic", "swiglu, 70", 2 * 70 * 192 * 64),
        ("bert-large", "gelu, 70", 2 * 70 * 96 * 64),
        ("nomic", "linear, layer_norm, 70", 2 * 70 * 64 * 96),
        ("nomic", "embed, 70", None),
        ("minilm", "pool 70, 70", None),
        ("nomic-moe", "moe, 70", 2 * 70 * 32 * (8 + 2 * 2 * 48)),
    ],
)
def test_ops(model: str, case: str, flops: float | None, here: Place) -> None:
    found = by_peer(ops.measure(here, one(ops.tasks(here), model, case)))
    assert {line["status"] for line in found.values()} == {"measured"}
    assert len(found) >= 3
    assert found["ours"].get("flops") == flops
    assert 0 < found["ours"]["error"] <= found["ours"]["bound"]


def test_break_even(here: Place) -> None:
    lines = ops.measure(here, one(ops.tasks(here), "nomic", "swiglu, 70"))
    own = by_peer(lines)["ours"]
    assert own["break_even_tflops"] == 465.0
    own["tflops"], by_peer(lines)["linear, silu * up"]["tflops"] = 930.0, 620.0
    (row,) = report.break_even(lines)
    assert row[2:] == ("930.0", "465", "2.00", "linear, silu * up", "620.0", "1.50")
    other = ops.measure(here, one(ops.tasks(here), "minilm", "gelu, 70"))
    assert list(report.break_even(other)) == []
    plain = one(ops.tasks(here), "bert-large", "qkv_rotary, 70").more
    assert plain
    assert plain["break_even_tflops"] is None


def scaled(factor: float, right: Any) -> Any:
    return lambda *a, **k: right(*a, **k) * factor


def test_a_wrong_kernel_is_listed_and_not_ranked(here: Place) -> None:
    wrong = dataclasses.replace(TORCH, swiglu=scaled(1.001, TORCH.swiglu))
    vars(here)["ops"] = wrong
    lines = ops.measure(here, one(ops.tasks(here), "nomic", "swiglu, 70"))
    found = by_peer(lines)
    assert found["ours"]["status"] == "wrong"
    assert "ours is off by" in found["ours"]["reason"]
    assert "median" not in found["ours"]
    assert found["linear, silu * up"]["status"] == "measured"
    assert race.in_words(lines).endswith("ours: wrong")
    text = report.as_markdown(lines)
    assert "- ours float32: wrong: ours is off by" in text
    assert "| nomic | swiglu, 70 | ours |" not in text


@pytest.mark.parametrize(
    ("where", "name", "peer"),
    [
        (gemm.F, "linear", gemm.LIBRARY),
        (torch, "_scaled_mm", gemm.WHOLE),
        (torch, "_scaled_mm", gemm.BY_ROW),
    ],
)
def test_a_wrong_product(
    where: Any, name: str, peer: str, here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, name, scaled(1.05, getattr(where, name)))
    found = by_peer(gemm.measure(here, one(gemm.tasks(here), "nomic", "out 32")))
    assert found[peer]["status"] == "wrong"
    monkeypatch.setattr(where, name, scaled(float("nan"), getattr(where, name)))
    found = by_peer(gemm.measure(here, one(gemm.tasks(here), "nomic", "out 32")))
    assert found[peer]["status"] == "wrong"


def test_launches(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = list(launches.tasks(here))
    copy = by_peer(launches.measure(here, tasks[0]))["copy_"]
    # read once and written once
    assert copy["gigabytes_per_second"] == pytest.approx(2 * 2**20 / SECONDS / 1e9)
    monkeypatch.setattr(launches, "launching", lambda place, work: half_a_second(work))
    single = by_peer(launches.measure(here, tasks[-1]))
    assert single["torch"]["median"] == SECONDS
    assert single["triton"]["status"] == "absent"
    graphs = by_peer(launches.measure(here, tasks[1]))
    assert {line["reason"] for line in graphs.values()} == {
        "RuntimeError: Triton's kernels are compiled for a GPU only"
    }
    with monkeypatch.context() as patch:
        patch.setattr(torch, "equal", lambda *_: False)
        assert by_peer(launches.measure(here, tasks[0]))["copy_"]["status"] == "wrong"


def test_a_graph_holds_all_launches(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[str] = []
    capturing: list[Any] = []

    class Graph:
        def replay(self) -> None:
            recorded.append("replay")

    @contextlib.contextmanager
    def capture(graph: Any) -> Iterator[None]:
        capturing.append(graph)
        yield
        capturing.pop()

    def launch() -> None:
        assert capturing
        recorded.append("launch")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    replay = launches.graph_of(here, launch, 86)
    assert recorded == ["launch"] * 86
    replay()
    assert recorded[86:] == ["replay"]


def pretend_gpu(monkeypatch: pytest.MonkeyPatch) -> Place:
    facts = types.SimpleNamespace(uuid="ab-12", L2_cache_size=60 * 10**6)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: facts)
    cuda = torch.device("cuda", 0)
    return Place(cuda, torch.bfloat16, "triton", False, half_a_second)


def test_copies_leave_l2(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = pretend_gpu(monkeypatch)
    # the smallest product: 256 rows, and 768 by 768 weights
    size = 2 * (256 * 768 + 768 * 768)
    assert gpu.copies(size) * size > 2 * 60 * 10**6
    assert gpu.copies(1e9) == 2
    assert gpu.copies(1.0) == place.MOST_COPIES


def test_clocks_are_read_and_never_set(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = pretend_gpu(monkeypatch)
    seen: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        seen.append(command)
        text = "1980, 3201, 1980, 512.25, 700.00, 41, 0x0000000000000000\n"
        return types.SimpleNamespace(stdout=text)

    monkeypatch.setattr(subprocess, "run", run)
    found = place.clocks(gpu.device)
    assert found is not None
    assert (found["clocks.sm"], found["power.draw"]) == (1980.0, 512.25)
    assert found["clocks_event_reasons.active"] == "0x0000000000000000"
    (command,) = seen
    assert command[:2] == ["nvidia-smi", "--id=GPU-ab-12"]
    assert [word.split("=")[0] for word in command[2:]] == ["--query-gpu", "--format"]

    def missing(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(subprocess, "run", missing)
    assert place.clocks(gpu.device) is None
    assert place.clocks(CPU) is None


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    names = ("nomic-v1.5", "conan-v1")
    return {
        name: build_checkpoint(tmp_path_factory.mktemp("x") / name, name, num_hidden_layers=1)
        for name in names
    }


@pytest.mark.parametrize("name", ["nomic-v1.5", "conan-v1"])
def test_latency_of_any_length(name: str, folders: dict[str, Path]) -> None:
    checkpoint = AnyLength(**vars(Checkpoint.of(name, folders[name])))
    case = checkpoint.case("latency-64", 1, CPU)
    assert case is not None
    assert case.is_latency
    assert case.lengths == [64]
    assert checkpoint.tokenizer.encode(case.texts, 8192)[0] == case.ids
    assert checkpoint.case("latency-32", 1, CPU) == Checkpoint.case(
        checkpoint, "latency-32", 1, CPU
    )
    short = dataclasses.replace(checkpoint, longest=63)
    assert short.case("latency-64", 1, CPU) is None


def models_of(here: Place, folders: dict[str, Path], tmp_path: Path, *names: str) -> Models:
    return Models(here, [str(folders[name]) for name in names], tmp_path)


def test_whole_models(
    here: Place, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tidied: list[int] = []
    monkeypatch.setattr(Place, "tidy", lambda self: tidied.append(1))
    monkeypatch.setattr(rivals, "Backend", Literal["auto", "torch", "triton"])
    models = models_of(here, folders, tmp_path, "nomic-v1.5")
    first, second = models.tasks("models")
    found = by_peer(models.measure(first))
    rows = {"ours", "ours-texts", "transformers", "transformers-32", "sentence-transformers",
            "sentence-transformers-32"}  # fmt: skip
    assert {name for name, line in found.items() if line["status"] == "measured"} == rows
    assert found["ours-fp8"]["status"] == found["sentence-transformers-fa4"]["status"] == "absent"
    ours = found["ours"]
    assert (ours["part"], ours["case"], ours["group"]) == ("models", "fixed-16", "float32")
    assert (ours["tokens"], ours["texts"], ours["repeats"]) == (64, 4, 1)
    weights = 4 * 64 * 64 + 3 * 64 * 96
    work = 2 * weights * 64 + 4 * 64 * 4 * 16**2
    assert ours["model_flops"] * ours["median"] == pytest.approx(work)
    assert ours["iqr"] == 0
    loaded = models.group("models", models.names[0]).setting.loaded["runner of ours float32"]
    by_peer(models.measure(second))
    again = models.group("models", models.names[0]).setting.loaded["runner of ours float32"]
    # compiled graphs, and all that is loaded, stay from case to case of one model
    assert again is loaded
    assert len(tidied) == 1
    (latency,) = models.tasks("latency")
    found = by_peer(models.measure(latency))
    assert found["ours"]["tokens"] == 24
    assert found["ours"]["p99"] >= found["ours"]["p50"] > 0
    assert len(tidied) == 2


def test_faults_of_whole_models_end_nothing(
    here: Place, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = rivals.Budgets.vectors
    swap = lambda self, case, way: right(self, case, way)[::-1].copy()  # noqa: E731
    monkeypatch.setattr(rivals.Budgets, "vectors", swap)

    def fails(*_: Any) -> Any:
        raise RuntimeError("no such kernel\nand more")

    monkeypatch.setattr(rivals.Texts, "vectors", fails)
    models = models_of(here, folders, tmp_path, "conan-v1")
    found = by_peer(models.measure(next(models.tasks("models"))))
    assert found["ours"]["status"] == "wrong"
    assert "median" not in found["ours"]
    assert found["ours-texts"]["reason"] == "failed: no such kernel"
    assert found["transformers"]["status"] == "measured"


def test_who_takes_part(monkeypatch: pytest.MonkeyPatch) -> None:
    def names(**options: bool) -> set[str]:
        return {rival.family for rival in rivals.rows("triton", "bfloat16", **options)}

    many = names(latency=False, compiles=True, slow=False)
    assert "transformers-compile" in many
    assert "transformers-reduce-overhead" not in many
    assert "transformers-reduce-overhead" in names(latency=True, compiles=True, slow=False)
    assert names(latency=False, compiles=True, slow=True) - many == {"transformers-max-autotune"}
    assert many - names(latency=False, compiles=False, slow=True) == {"transformers-compile"}
    # every peer of a goal exists
    assert {goal.over for goal in goals() if goal.over} <= many | names(
        latency=True, compiles=True, slow=False
    )


def test_vectors_of_ours_come_by_way_of_graphs() -> None:
    """Where `Embedder` records them: a small batch would take its launches' time without."""
    given: list[Any] = []

    def encode(texts: list[list[int]], finish: Finish) -> Tensor:
        given.append((texts, finish))
        return torch.tensor([[float(sum(text)), 1.0] for text in texts])

    around = {"m": encode}.__getitem__
    graphs = types.SimpleNamespace(around=around)
    embedder: Any = types.SimpleNamespace(embedding_model="m", graphs=graphs)
    case = Case("passages", [[1], [2, 3], [4, 5, 6]], ["x"] * 3)
    found = rivals.Budgets(embedder).vectors(case, by_count(case.lengths, 2))
    assert found.tolist() == [[1, 1], [5, 1], [15, 1]]
    assert given == [
        ([[4, 5, 6], [2, 3]], Finish()),
        ([[1]], Finish()),
    ]


def test_fp8_has_a_bound_of_its_own() -> None:
    found = rivals.rows("triton", "bfloat16", latency=False, compiles=False, slow=False)
    dtypes = {rival.family: rival.dtype for rival in found}
    assert dtypes.pop("ours-fp8") == "fp8"
    assert set(dtypes.values()) == {"bfloat16"}


def test_compiling_beyond_the_limit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Fake:
        def __init__(self, *_: Any, **__: Any) -> None:
            self.model = "model"

    monkeypatch.setattr(rivals, "Best", Fake)
    monkeypatch.setattr(torch, "compile", lambda model, **given: asked.append((model, given)))
    with limits():
        rivals.compiled("reduce-overhead", False, None, "bfloat16")  # type: ignore[arg-type]
        config: Any = torch._dynamo.config
        assert config.recompile_limit == place.RECOMPILES
        assert config.fail_on_recompile_limit_hit
    assert asked == [("model", {"mode": "reduce-overhead", "dynamic": False})]


def test_batches_that_are_tried() -> None:
    ways = [by_count([8] * 300, count) for count in (1, 4, 8, 64)]
    assert [way.name for way in rivals.few(ways)] == ["8", "64"]
    assert [way.name for way in rivals.few(ways[:1])] == ["1"]
    case = Case("passages", [[1] * 100] * 120, ["x"] * 120)
    # 12,000 tokens: two cuts of them differ, larger budgets hold all
    own = rivals.Budgets(None).ways(case)  # type: ignore[arg-type]
    assert [(way.name, len(way.parts)) for way in own] == [
        ("5632 tokens", 3), ("11264 tokens", 2), ("16896 tokens", 1),
    ]  # fmt: skip


def test_streams(
    here: Place, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = models_of(here, folders, tmp_path, "nomic-v1.5")
    streams = Streams(here, models)
    monkeypatch.setattr(Streams, "until_done", lambda self, work: half_a_second(work))
    task = one(streams.tasks(), "nomic-v1.5", "queries")
    found = by_peer(streams.measure(task))
    assert {line["status"] for line in found.values()} == {"measured"}
    assert {line["tokens_per_second"] for line in found.values()} == {512 / SECONDS}
    assert found[stream.STREAM]["error"] < 1e-5
    right = stream.Embedder.encode_iter

    def turned(self: Any, texts: Any, **given: Any) -> Any:
        return reversed(list(right(self, texts, **given)))

    monkeypatch.setattr(stream.Embedder, "encode_iter", turned)
    found = by_peer(streams.measure(task))
    assert found[stream.STREAM]["status"] == "wrong"
    assert found[stream.MODEL]["status"] == "measured"
    (embedder,) = streams._loaded.values()
    case = models.checkpoint(models.names[0]).case("latency-32", 1, CPU)
    assert case is not None
    stream.tokenised(embedder, case)
    with pytest.raises(stream.WrongValues, match="other token ids"):
        stream.tokenised(embedder, Case("queries", [case.ids[0][::-1]], case.texts))


def dry(path: Path, *more: str) -> int:
    return driver.main(["--dry", "--out", str(path), "--scratch", str(path.parent), *more])


def cases(path: Path) -> dict[str, str]:
    return {case: line["status"] for (_, case), line in ends(Ledger(path).lines()).items()}


@pytest.mark.usefixtures("on_cpu")
def test_it_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "kernels")]))
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


def test_what_a_case_says_of_ours(here: Place, tmp_path: Path) -> None:
    """Ours wrong is a wrong case, ours absent a failed one; peers are what they are."""

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
    """What is still running may fail: that is this case's failure, and no later one's."""
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


def test_a_device_beyond_help_ends_the_run(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_copies_are_compiled_once(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers of ops have a call for each of many copies: torch.compile has to find them alike."""
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    right = torch.compile
    monkeypatch.setattr(torch, "compile", lambda work, **k: right(work, backend=backend, **k))
    monkeypatch.setattr(Place, "copies", lambda *_: 20)
    vars(here)["bench"] = dataclasses.replace(here.bench, compiled=True)
    with limits():
        found = by_peer(ops.measure(here, one(ops.tasks(here), "nomic", "swiglu, 70")))
    assert found["linear, silu * up, compiled"]["status"] == "measured"
    assert len(graphs) == 1


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


def line_of(peer: str, case: str, rate: float, **more: Any) -> dict[str, Any]:
    return {
        "part": "models", "model": "nomic-v1.5", "case": case, "group": "bfloat16", "peer": peer,
        "dtype": "bfloat16", "status": "measured", "reason": None, "tokens": 10, "texts": 2,
        "from_texts": "texts" in peer or peer.startswith("sentence"), "batch": "32",
        "tokens_per_second": rate, "texts_per_second": rate / 10, "model_flops": rate * 2e8,
        "median": 10 / rate, "spread": 0.01, "seconds": [10 / rate], "cosine_min": 0.999,
        "commit": None, "versions": {"torch": "2"}, "clocks": {"clocks.sm": 1980.0},
        "machine": {"gpu": "NVIDIA H200", "cpu": "abacus", "threads": 3, "instructions": []},
        **more,
    }  # fmt: skip


LINES = [
    line_of("ours", "fixed-512", 2.46e6),
    line_of("ours-texts", "fixed-512", 2.1e6),
    line_of("transformers-compile", "fixed-512", 2e6),
    line_of("transformers", "fixed-512", 1.23e6),
    line_of("sentence-transformers-32", "fixed-512", 0.7e6),
    line_of("ours-fp8", "fixed-512", 9e6, status="wrong", reason="computes something else"),
    line_of("ours", "latency-32", 1.6e5, part="latency", p50=2e-4, p99=3e-4),
    line_of("transformers", "latency-32", 1e4, part="latency", p50=2.1e-3, p99=3e-3),
]


def goal(case: str, field: str, peer: str = "ours", over: str | None = None) -> Goal:
    (found,) = [
        x for x in goals()
        if (x.model, x.case, x.field, x.peer, x.over) == ("nomic-v1.5", case, field, peer, over)
    ]  # fmt: skip
    return found


@pytest.mark.parametrize(
    ("what", "value", "share"),
    [
        (goal("fixed-512", "tokens_per_second"), 2.46, 1.2),
        (goal("fixed-512", "tokens_per_second", over="transformers-compile"), 1.23, 1.23 / 1.15),
        (goal("fixed-512", "tokens_per_second", over="transformers"), 2.0, 2 / 1.4),
        (
            goal("fixed-512", "tokens_per_second", "ours-texts", "sentence-transformers-32"),
            3.0,
            3 / 1.4,
        ),
        (goal("fixed-512", "model_flops"), 492.0, 0.984),
        # of seconds fewer are better, plain or as a multiple
        (goal("latency-32", "p50"), 0.2, 1.1),
        (goal("latency-32", "p50", over="transformers"), 10.5, 1.5),
    ],
    ids=lambda what: what.what if isinstance(what, Goal) else "",
)
def test_goals_that_were_measured(what: Goal, value: float, share: float) -> None:
    found = reached(what, LINES)
    assert found == pytest.approx(value)
    assert found is not None
    assert ratio(what, found) == pytest.approx(share)


def test_goals_that_were_not_measured() -> None:
    missing = (
        goal("fixed-32", "tokens_per_second"),
        goal("fixed-512", "tokens_per_second", "ours-fp8"),  # wrong, so not measured
        goal("latency-32", "p50", over="transformers-reduce-overhead"),
    )
    assert [reached(one, LINES) for one in missing] == [None] * 3
    faster = [*LINES, line_of("ours", "fixed-512", 3e6)]
    assert reached(goal("fixed-512", "tokens_per_second"), faster) == 3.0
    assert len(list(goals())) == len(set(goals()))
    assert {one.case for one in goals() if one.model == "nomic-v1.5"} == {*ROWS, "latency-32"}


def test_the_report(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    for number, line in enumerate(LINES):
        Ledger(path).add(line["part"], str(number), "ok", lines=[line])
    report.main([str(path)])
    text = path.with_suffix(".md").read_text()
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines()]
    assert ["nomic-v1.5", "fixed-512", "ours, Mtok/s", "2.46", "2.05", "2.6", "1.20"] in rows
    assert ["nomic-v1.5", "fixed-32", "ours, Mtok/s", "not measured", "2", "2.6", "-"] in rows
    (ours,) = [row for row in rows if row[1:3] == ["fixed-512", "ours bfloat16"]]
    assert ours[3:] == [
        "32", "2.460", "246,000", "-", "1.0%", "492.0", "62%", "50%", "0.99900", "1.00",
    ]  # fmt: skip
    (naive,) = [row for row in rows if row[2:3] == ["sentence-transformers-32 bfloat16"]]
    assert naive[-1] == "3.00"
    (latency,) = [row for row in rows if row[1:3] == ["latency-32", "ours bfloat16"]]
    assert latency[6] == "0.200 / 0.300"
    assert "- ours-fp8 bfloat16: wrong: computes something else (nomic-v1.5 fixed-512)" in text
    assert "NVIDIA H200. torch 2. SM clock after a case: 1980 to 1980 MHz." in text
    assert path.with_suffix(".png").is_file() == (find_spec("matplotlib") is not None)
