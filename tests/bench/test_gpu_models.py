"""The GPU benchmark of whole models in tiny sizes on a CPU, and its rivals."""

# An imported fixture is named again as an argument.
# ruff: noqa: F811

from __future__ import annotations

import dataclasses
import types
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from bench.gpu import place, rivals, stream
from bench.gpu.goals import goals
from bench.gpu.models import AnyLength, Models
from bench.gpu.place import Place
from bench.gpu.stream import Streams
from nomicbert.benchmark.batching import by_count
from nomicbert.benchmark.plan import Checkpoint
from nomicbert.benchmark.workloads import Case
from nomicbert.vectors.pooling import Finish
from tests.bench.gpu_cases import CPU, SECONDS, by_peer, half_a_second, here, limits, one  # noqa: F401
from tests.support.checkpoints import build_checkpoint


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
    # loaded peers and compiled graphs are kept for all cases of a model
    assert again is loaded
    assert len(tidied) == 1
    (latency,) = models.tasks("latency")
    found = by_peer(models.measure(latency))
    assert found["ours"]["tokens"] == 24
    assert found["ours"]["p99"] >= found["ours"]["p50"] > 0
    assert len(tidied) == 2


def test_faults_of_whole_models_do_not_end_the_run(
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


def test_rivals_of_each_part(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_our_vectors_use_graphs() -> None:
    """As in `Embedder`: without graphs a small batch would be bound by its launches."""
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
    # 12,000 tokens: two budgets cut them differently, larger ones hold all
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
