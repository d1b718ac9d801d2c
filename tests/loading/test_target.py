"""A backend that cannot run raises nomicbert's BackendError, wherever ops are selected."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import nomicbert_kernels
from bench.gpu import rivals
from nomicbert import (
    CrossEncoder,
    Embedder,
    NomicBert,
    NomicBertError,
    NomicBertForSequenceClassification,
)
from nomicbert.benchmark import ours
from nomicbert.benchmark.peers import AbsentError, Setting
from nomicbert.describe import describe
from nomicbert.errors import BackendError
from nomicbert.loading.target import choose_ops, select_ops
from nomicbert.runtime.worker import portable
from tests.support.checkpoints import build_checkpoint, edit_config
from tests.support.cpus import pretend
from tests.support.rerankers import build_reranker

CPU = torch.device("cpu")
IDS = torch.tensor([[5, 6, 7]])

FACADES: dict[str, Callable[..., Any]] = {
    "NomicBert": NomicBert.from_pretrained,
    "head": NomicBertForSequenceClassification.from_pretrained,
    "Embedder": Embedder,
    "Embedder.from_pretrained": Embedder.from_pretrained,
    "CrossEncoder": CrossEncoder,
    "describe": describe,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint that every class can load."""
    return build_reranker(tmp_path)


@pytest.fixture
def not_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")


def check(found: BaseException, dtype: torch.dtype, backend: Any) -> None:
    """Check for our error with the message of the kernels' error, which is its cause."""
    with pytest.raises(nomicbert_kernels.BackendError) as kernels:
        nomicbert_kernels.select_ops(CPU, dtype, backend)
    assert type(found) is BackendError
    assert type(found.__cause__) is nomicbert_kernels.BackendError
    assert str(found) == str(found.__cause__) == str(kernels.value)
    assert str(found).startswith(f"backend {backend!r} cannot run here: ")


@pytest.mark.parametrize("tree", [NomicBertError, RuntimeError])
@pytest.mark.parametrize("backend", ["triton", "fp8", "invariant"])
@pytest.mark.parametrize("facade", FACADES)
def test_loading_refuses_it(
    facade: str, backend: str, tree: type[Exception], folder: Path, not_interpreted: None
) -> None:
    with pytest.raises(tree) as raised:
        FACADES[facade](folder, backend=backend)
    check(raised.value, torch.float32, backend)


@pytest.mark.parametrize("facade", FACADES)
@pytest.mark.parametrize("asked", ["bfloat16", "auto"])
def test_loading_refuses_it_for_a_dtype(
    asked: str, facade: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With "auto" the dtype is known only when config.json has been read."""
    pretend(monkeypatch, True)
    # also on a CPU that has no int8 instructions: nothing is computed
    monkeypatch.setattr("nomicbert_kernels.linear_int8.why_not", lambda: None)
    edit_config(folder, dtype="bfloat16", architectures=...)  # any class may load it
    with pytest.raises(NomicBertError) as raised:
        FACADES[facade](folder, backend="int8", dtype=asked)
    check(raised.value, torch.bfloat16, "int8")


def test_a_loaded_model_refuses_it(folder: Path, not_interpreted: None) -> None:
    """Ops are selected at the first use."""
    model = NomicBert.from_pretrained(folder)
    wanted = model(IDS)[0]
    model.use("triton")
    for _ in range(2):
        with pytest.raises(NomicBertError) as raised:
            model(IDS)
        check(raised.value, torch.float32, "triton")
    model.use("auto")
    assert torch.equal(model(IDS)[0], wanted)


def test_it_can_be_sent_to_another_process() -> None:
    with pytest.raises(BackendError) as raised:
        select_ops(CPU, torch.bfloat16, "int8")
    assert portable(raised.value) is raised.value
    copy = pickle.loads(pickle.dumps(raised.value))
    assert type(copy) is BackendError
    assert str(copy) == str(raised.value)


def test_what_runs_is_chosen_as_by_the_kernels(caplog: pytest.LogCaptureFixture) -> None:
    for backend in ("auto", "torch", "reference"):
        wanted = nomicbert_kernels.choose_ops(CPU, torch.float32, backend)
        assert choose_ops(CPU, torch.float32, backend) == wanted
        caplog.clear()
        with caplog.at_level(logging.INFO, "nomicbert_kernels"):
            assert select_ops("cpu", torch.float32, backend) is wanted[0]
        assert [record.name for record in caplog.records] == ["nomicbert_kernels.backend"]
    assert choose_ops(CPU, torch.float32) == choose_ops(CPU, torch.float32, "auto")


@pytest.mark.parametrize("choose", [choose_ops, select_ops])
def test_a_wrong_argument_stays_a_plain_error(choose: Callable[..., Any]) -> None:
    for arguments in ((CPU, torch.int8), (CPU, torch.float32, "cuda")):
        with pytest.raises(ValueError, match="choose one of") as raised:
            choose(*arguments)
        assert not isinstance(raised.value, NomicBertError)


@pytest.mark.parametrize(
    "load",
    [
        lambda setting: ours.load("ours", "int8", setting),
        lambda setting: rivals.ours("fp8", False, setting, "float32"),
    ],
    ids=["nomicbert bench", "make bench-gpu"],
)
def test_a_bench_leaves_it_out(
    load: Callable[[Setting], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    not_interpreted: None,
) -> None:
    monkeypatch.setattr("nomicbert_kernels.backend.why_not_int8", lambda *_: "no such bytes")
    folder = build_checkpoint(tmp_path, "minilm", num_hidden_layers=1)
    setting = Setting(folder, folder, CPU, 1, tmp_path / "cache", [])
    with pytest.raises(AbsentError, match=r"^backend '(int8|fp8)' cannot run here: ") as raised:
        load(setting)
    assert type(raised.value.__cause__) is BackendError
