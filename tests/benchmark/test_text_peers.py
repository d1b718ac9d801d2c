"""light-embed and infinity-emb: what the benchmark asks of them, with stand-ins for the libraries.

The real ones are tested in test_peers.py where they are installed.
"""

# An imported fixture is named again as an argument.
# ruff: noqa: F811

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nomicbert import export
from nomicbert.benchmark import infinity_peers, light_embed_peers
from nomicbert.benchmark.peers import PEERS, AbsentError, Runner, Setting
from nomicbert.benchmark.plan import Checkpoint, Options
from nomicbert.benchmark.workloads import Case
from nomicbert.errors import ExportError
from tests.benchmark.measure_cases import CPU, checkpoints  # noqa: F401

INFINITY = """
import asyncio, logging
from types import SimpleNamespace

logging.getLogger().handlers.clear()
logging.getLogger().setLevel(logging.INFO)
EngineArgs = SimpleNamespace
silent = False

class AsyncEmbeddingEngine:
    def __init__(self, args):
        self.args, self.running = args, False
        self._model_replicas = [SimpleNamespace(normalize_embeddings=True)]

    from_args = classmethod(lambda cls, args: cls(args))

    async def astart(self):
        self.running = True

    async def astop(self):
        self.running = False

    async def embed(self, sentences):
        assert self.running
        if silent:
            await asyncio.Event().wait()
        return [__import__("numpy").full(3, len(text), "float32") for text in sentences], 0
"""
LIGHT = """
import numpy as np
import onnxruntime

class TextEmbedding:
    def __init__(self, folder, model_config, device):
        self.folder, self.config, self.device = folder, model_config, device
        self.session = onnxruntime.InferenceSession(model_config["onnx_file"])

    def encode(self, texts, batch_size):
        return np.array([[len(text), batch_size] for text in texts], "float32")
"""
TEXTS = ["a", "bbb", "cc"]


@pytest.fixture
def setting(checkpoints: dict[str, Checkpoint], tmp_path: Path) -> Setting:
    return checkpoints["conan-v1"].setting(Options(["passages"], threads=3), tmp_path / "cache")


def library(name: str, code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a stand-in, in place of a real one; it is imported when a peer is loaded."""
    (folder / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(folder)
    # what is there now comes back at the end, and what the peer imports goes
    monkeypatch.setitem(sys.modules, name, sys)
    del sys.modules[name]


def load(name: str, setting: Setting) -> Any:
    runner: Runner = next(peer for peer in PEERS if peer.name == name).load(setting)
    assert runner.from_texts
    return runner


def case_of(name: str) -> Case:
    return Case(name, [[1] * len(text) for text in TEXTS], TEXTS)


def test_infinity(setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    library("infinity_emb", INFINITY, tmp_path, monkeypatch)
    root = logging.getLogger()
    before = root.handlers[:], root.level
    runner = load("infinity-emb bfloat16", setting)
    # the library's import must not change the logging of the process
    assert (root.handlers, root.level) == before
    args = runner.engine.args
    assert args.model_name_or_path == str(setting.folder)
    assert (args.dtype, args.engine, args.device) == ("bfloat16", "torch", "cpu")
    assert args.trust_remote_code is False
    assert args.batch_size == infinity_peers.BATCH
    # only the checkpoint's own modules
    assert [model.normalize_embeddings for model in runner.engine._model_replicas] == [False]
    for name, count in (("passages", "32"), ("latency-8", "1")):
        (way,) = runner.ways(case_of(name))
        assert way.name == count
        found = runner.vectors(case_of(name), way)
        assert found.dtype == np.float32
        assert found[:, 0].tolist() == [1, 3, 2]
    assert runner.engine.running
    setting.closing.close()
    assert not runner.engine.running
    assert runner.loop.is_closed()


def test_infinity_without_an_answer(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its threads may die of another library's version: the benchmark goes on without it."""
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    monkeypatch.setattr(infinity_peers, "PATIENCE", 0.01)
    silent = INFINITY.replace("silent = False", "silent = True")
    library("infinity_emb", silent, tmp_path, monkeypatch)
    with pytest.raises(AbsentError, match="its engine gives no answer in"):
        load("infinity-emb float32", setting)
    setting.closing.close()


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_light_embed(
    dtype: str, setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    library("light_embed", LIGHT, tmp_path, monkeypatch)
    for name, file in (("exported", "float32.onnx"), ("quantized", "int8.onnx")):
        monkeypatch.setattr(light_embed_peers, name, lambda _, file=file: tmp_path / file)
    monkeypatch.setattr(light_embed_peers, "session_of", lambda *given: given)
    runner = load(f"light-embed {dtype}", setting)
    path = tmp_path / f"{dtype}.onnx"
    assert runner.model.folder == str(setting.encoder)
    assert runner.model.config["onnx_file"] == str(path)
    # pooling and L2 are in the file
    assert runner.model.config["normalize"] is False
    assert "pooling_config_path" not in runner.model.config
    assert runner.model.session == (path, 3)
    case = case_of("passages")
    ways = runner.ways(case)
    assert [way.name for way in ways] == ["1", "4"]
    assert runner.vectors(case, ways[1]).tolist() == [[1, 4], [3, 4], [2, 4]]


def test_light_embed_needs_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    library("light_embed", LIGHT, tmp_path, monkeypatch)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in light_embed_peers.FILES[:-1]:
        (folder / name).touch()
    with pytest.raises(AbsentError, match=r"it needs special_tokens_map\.json, which the check"):
        load("light-embed float32", Setting(folder, folder, CPU, 1, tmp_path, []))


def test_a_checkpoint_that_we_cannot_export(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

    def refuse(*_: Any, **__: Any) -> Any:
        raise ExportError("the pooling leaves out the tokens of the prompt")

    monkeypatch.setattr(export, "onnx", refuse)
    peer = next(peer for peer in PEERS if peer.name == "onnxruntime-ours int8")
    with pytest.raises(AbsentError, match="the pooling leaves out the tokens"):
        peer.load(setting)
