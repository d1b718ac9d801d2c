"""Each peer that can be loaded here computes our vectors, in all candidate batchings.

The libraries are optional: a peer whose library is missing is skipped, with the library as reason.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nomicbert.benchmark import measure
from nomicbert.benchmark.exports import MADE
from nomicbert.benchmark.peers import OURS, PEERS, AbsentError, Peer, Setting
from nomicbert.benchmark.plan import Checkpoint, Options
from nomicbert.benchmark.workloads import Case
from tests.support.checkpoints import build_checkpoint

CPU = torch.device("cpu")
MODELS = ("nomic-v1.5", "conan-v1")
LIBRARIES = {
    "sentence-transformers": ("sentence_transformers",),
    "onnxruntime": ("onnxruntime", "onnx", "onnxscript"),
    "onnxruntime-ours": ("onnxruntime", "onnx"),
    "light-embed": ("light_embed", "onnxruntime", "onnx", "onnxscript"),
    "infinity-emb": ("infinity_emb", "sentence_transformers"),
    "openvino": ("openvino",),
    "openvino-weights": ("openvino", "nncf"),
    "openvino-ptq": ("openvino", "nncf"),
    "ctranslate2": ("ctranslate2",),
}
# Minimum cosine of a text, and maximum difference of an element relative to the largest element.
BOUNDS = {"float32": (0.9999999, 5e-6), "bfloat16": (0.9995, 0.03), "int8": (0.995, 0.1)}
# Calibrated scales of activations are coarser than scales per row.
COARSE = (0.98, 0.2)
# CTranslate2 supports BERT only; torch.compile is slow, so it is tested once, in float32.
ONLY = {"ctranslate2": "conan-v1", "transformers-compile": "nomic-v1.5"}
PAIRS = [
    (peer, model)
    for peer in PEERS
    for model in MODELS
    if not peer.is_ours
    and "cpu" in peer.devices
    and ONLY.get(peer.family, model) == model
    and (peer.dtype == "float32" or not peer.slow)
]


@pytest.fixture(scope="module")
def settings(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, tuple[Case, Setting]]]:
    found = {}
    for name in MODELS:
        more = {"dialect": "both"} if name == "nomic-v1.5" else {}
        folder = build_checkpoint(tmp_path_factory.mktemp(name), name, num_hidden_layers=1, **more)
        checkpoint = Checkpoint.of(name, folder)
        options = Options(["passages"])
        # enough texts of several lengths for batches of more than one text
        case = checkpoint.case("passages", 1200, CPU)
        assert case is not None
        assert len(set(case.lengths)) > 8
        found[name] = case, checkpoint.setting(options, tmp_path_factory.mktemp("exports"))
    yield found
    for _, setting in found.values():
        setting.closing.close()


def bounds(peer: Peer) -> tuple[float, float]:
    return COARSE if peer.family == "openvino-ptq" else BOUNDS[peer.dtype]


def need(peer: Peer) -> None:
    for library in LIBRARIES.get(peer.family, ("transformers",)):
        pytest.importorskip(library, reason=f"{peer.name} needs {library}, which is not installed")
    if peer.family == "transformers-compile" and not shutil.which("g++"):
        pytest.skip("torch.compile needs a C++ compiler, and there is no g++")


# raised inside torch.compile
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("peer", "model"), PAIRS, ids=[f"{p.name} {model}".replace(" ", "-") for p, model in PAIRS]
)
def test_vectors(peer: Peer, model: str, settings: dict[str, tuple[Case, Setting]]) -> None:
    need(peer)
    case, setting = settings[model]
    truth = OURS.load(setting).vectors(case, OURS.load(setting).ways(case)[0])
    runner = peer.load(setting)
    ways = runner.ways(case)
    assert len({way.parts for way in ways}) == len(ways)
    if len(ways) > 1:
        assert {1, 16} <= {len(way.parts[0]) for way in ways}
    least, furthest = bounds(peer)
    for way in ways:
        found = runner.vectors(case, way)
        assert (found.dtype, found.shape) == (np.float32, truth.shape)
        assert measure.cosines(found, truth)[1] > least, way.name
        difference = np.abs(found - truth).max() / np.abs(truth).max()
        assert difference < furthest, way.name
        # a peer that claims int8 and computes in float32 would be too exact
        assert (difference > 1e-4) == (peer.dtype != "float32"), way.name
        assert not measure.is_wrong(least, measure.norm_ratio(found, truth), peer.dtype), way.name


@pytest.mark.parametrize("family", ["onnxruntime", "onnxruntime-ours", "openvino-ptq"])
def test_exports_are_reused(
    family: str, settings: dict[str, tuple[Case, Setting]], tmp_path: Path
) -> None:
    """A checkpoint that has changed under the same name is exported again."""
    peer = next(p for p in reversed(PEERS) if p.family == family)
    need(peer)
    case, setting = settings["nomic-v1.5"]
    folder = shutil.copytree(setting.folder, tmp_path / "checkpoint")
    setting = replace(setting, folder=folder, encoder=folder, cache=tmp_path / "cache", loaded={})
    first = peer.load(setting)
    assert setting.loaded[MADE]
    before = first.vectors(case, first.ways(case)[0])
    again = replace(setting, loaded={})
    second = peer.load(again)
    assert MADE not in again.loaded
    assert np.array_equal(second.vectors(case, second.ways(case)[0]), before)
    build_checkpoint(folder, "nomic-v1.5", num_hidden_layers=1, dialect="both", seed=1)
    changed = replace(setting, loaded={})
    third = peer.load(changed)
    truth = OURS.load(changed).vectors(case, OURS.load(changed).ways(case)[0])
    found = third.vectors(case, third.ways(case)[0])
    assert measure.cosines(found, truth)[1] > bounds(peer)[0]
    assert measure.cosines(before, truth)[1] < 0.9


@pytest.mark.parametrize("family", LIBRARIES)
def test_missing_library(
    family: str, settings: dict[str, tuple[Case, Setting]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names it, whatever else is installed."""
    library = LIBRARIES[family][0]
    right = importlib.util.find_spec

    def find(name: str) -> object:
        return None if name == library else right(name)

    for module in ("onnx_peers", "sentence", "torch_peers"):
        monkeypatch.setattr(f"nomicbert.benchmark.{module}.find_spec", find)
    peer = next(p for p in PEERS if p.family == family)
    name = library.replace("_", "-")
    with pytest.raises(AbsentError, match=f"{name} is not installed"):
        peer.load(settings["conan-v1"][1])


def test_unsupported_architecture(settings: dict[str, tuple[Case, Setting]]) -> None:
    pytest.importorskip("ctranslate2", reason="ctranslate2 is not installed")
    peer = next(p for p in PEERS if p.family == "ctranslate2")
    with pytest.raises(AbsentError, match="does not support the architecture"):
        peer.load(settings["nomic-v1.5"][1])
