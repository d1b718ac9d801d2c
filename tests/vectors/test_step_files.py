"""Files of the modules after pooling: what is not supported is refused by file and key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from nomicbert import Embedder
from nomicbert.describe import describe
from nomicbert.errors import CheckpointError, ConfigError, NomicBertError
from nomicbert.user_warnings import WeightWarning
from tests.support.module_folders import build_modules, change

STEPS: list[Any] = [
    ("Dense", {"out_features": 48, "use_residual": True}),
    ("LayerNorm", {}),
    ("Dropout", {"dropout": 0.1}),
    ("Normalize", {}),
]
DENSE, NORM, DROP, UNIT = "2_Dense", "3_LayerNorm", "4_Dropout", "5_Normalize"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("steps") / "a"
    build_modules(where, STEPS, width=64, pooling_mode=["mean", "cls"])
    return where


@pytest.fixture
def changed(folder: Path) -> Any:
    """Change one settings file for a test."""
    before: dict[Path, str] = {}

    def changing(place: str, **changes: Any) -> Path:
        file = folder / place / "config.json"
        before.setdefault(file, file.read_text("utf-8"))
        change(file, **changes)
        return file

    yield changing
    for file, text in before.items():
        file.write_text(text, "utf-8")


def refused(folder: Path, *words: str) -> None:
    for load in (Embedder, describe):
        with pytest.raises(NomicBertError) as caught:
            load(folder)  # type: ignore[operator]
        for word in words:
            assert word in str(caught.value)


@pytest.mark.parametrize(
    ("place", "key"),
    [
        ("1_Pooling", "embedding_dimension"),
        (DENSE, "in_features"),
        (DENSE, "out_features"),
        (NORM, "dimension"),
    ],
)
def test_absurd_sizes(
    place: str, key: str, folder: Path, changed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused before a layer of that size is built: that would need memory, time, or overflow."""

    def never(*args: Any, **keywords: Any) -> None:
        raise AssertionError(f"a layer of {args} was built")

    for kind in (nn.Linear, nn.LayerNorm):
        inner = kind.__init__

        def small(
            self: nn.Module, size: int, *args: Any, _inner: Any = inner, **keywords: Any
        ) -> None:
            never(size, *args) if max(size, *args[:1], 0) > 3000 else None
            _inner(self, size, *args, **keywords)

        monkeypatch.setattr(kind, "__init__", small)
    for size in (10**7, 2**63, 10**400, -1, 0, float("nan"), float("inf"), 1e300, "48", True, [48]):
        file = changed(place, **{key: size})
        refused(folder, str(file), key)


def test_a_file_without_columns(folder: Path, changed: Any) -> None:
    file = changed(DENSE, out_features=0, use_residual=False)
    held = load_file(folder / DENSE / "model.safetensors")
    none = {"linear.weight": torch.zeros(0, 128), "linear.bias": torch.zeros(0)}
    save_file(none, folder / DENSE / "model.safetensors")
    refused(folder, str(file), "out_features must be at least 1, not 0")
    save_file(held, folder / DENSE / "model.safetensors")


@pytest.mark.parametrize(
    ("place", "changes", "words"),
    [
        (DENSE, {"bias": False}, ["linear.bias", "bias = False"]),
        (DENSE, {"use_residual": False}, ["residual.weight", "use_residual = False"]),
        (DENSE, {"out_features": 128}, ["wanted", "out_features = 128"]),
        (DENSE, {"in_features": 64}, ["in_features = 64, but the module before it gives 128"]),
        (DENSE, {"in_features": ...}, ["lacks in_features"]),
        (DENSE, {"gate": 1}, ["has settings that are not supported: gate"]),
        (DENSE, {"module_input_name": "token_embeddings"}, ["module_input_name = 'token_embeddin"]),
        (DENSE, {"module_output_name": "x"}, ["module_input_name = 'sentence_embedding' is not"]),
        (DENSE, {"module_input_name": 3}, ["module_input_name must be a name, not 3"]),
        (NORM, {"dimension": 64}, ["dimension = 64, but the module before it gives 48 columns"]),
        (NORM, {"eps": 1e-3}, ["has settings that are not supported: eps"]),
        (DROP, {"dropout": 1.5}, ["dropout must be 0 to 1, not 1.5"]),
        (DROP, {"dropout": "0.1"}, ["dropout must be a number"]),
        (UNIT, {"module_input_name": "token_embeddings"}, ["module_input_name = 'token_embedd"]),
        (UNIT, {"module_output_name": "unit"}, ["module_output_name = 'unit' is not supported"]),
    ],
)
def test_settings(
    place: str, changes: dict[str, Any], words: list[str], folder: Path, changed: Any
) -> None:
    refused(folder, str(changed(place, **changes)), *words)


@pytest.mark.parametrize(
    "kind", ["WordEmbeddings", "CNN", "LSTM", "BoW", "WeightedLayerPooling", "Router", "Pooling"]
)
def test_other_modules_are_named(kind: str, folder: Path) -> None:
    file = folder / "modules.json"
    text = file.read_text("utf-8")
    entries = json.loads(text)
    for place in (1, len(entries)):
        more = {"idx": 9, "name": "9", "path": "9", "type": f"sentence_transformers.models.{kind}"}
        file.write_text(json.dumps([*entries[:place], more, *entries[place:]]), "utf-8")
        supported = "supported are Transformer, Pooling, and any of Dense, LayerNorm, Dropout, Norm"
        refused(folder, f"{file} lists Transformer, ", kind, supported)
    file.write_text(text, "utf-8")


def test_more_modes_or_modules_than_any_model_has(folder: Path, changed: Any) -> None:
    """Each would take time and memory in every call."""
    file = changed("1_Pooling", pooling_mode=["mean"] * 101)
    refused(folder, str(file), "pooling_mode lists 101 modes: supported are up to 100")
    changed("1_Pooling", pooling_mode=["mean", "cls"])
    file = folder / "modules.json"
    text = file.read_text("utf-8")
    entries = json.loads(text)
    file.write_text(json.dumps([*entries, *[entries[-1]] * 95]), "utf-8")
    refused(folder, f"{file} lists 101 modules: supported are up to 100")
    file.write_text(json.dumps([*entries, *[entries[-1]] * 94]), "utf-8")
    assert len(describe(folder).steps) == 98
    file.write_text(text, "utf-8")


def test_tensors(folder: Path) -> None:
    for place, name in ((DENSE, "residual.weight"), (NORM, "norm.bias")):
        file = folder / place / "model.safetensors"
        held = load_file(file)
        save_file({k: t for k, t in held.items() if k != name}, file)
        refused(folder, f"the tensors of {folder / place} are", name)
        save_file({**held, name: held[name].to(torch.int8)}, file)
        with pytest.raises(CheckpointError, match=f"{name} of .* holds torch.int8"):
            Embedder(folder)
        broken = held[name].clone()
        broken.view(-1)[0] = float("nan")
        save_file({**held, name: broken}, file)
        with pytest.warns(WeightWarning, match=rf"{name} \(1\)"):
            Embedder(folder)
        save_file(held, file)
    Embedder(folder)


def test_files_that_may_be_missing(folder: Path, tmp_path: Path) -> None:
    """Before version 5 sentence-transformers wrote none for Normalize."""
    for place, share in ((UNIT, 0.1), (DROP, 0.2)):
        (folder / place / "config.json").rename(tmp_path / place)
        steps = Embedder(folder).pooling.steps
        assert steps[2].p == share
    for place in (UNIT, DROP):
        (tmp_path / place).rename(folder / place / "config.json")
    (folder / NORM / "config.json").rename(tmp_path / "config.json")
    with pytest.raises(ConfigError, match=r"3_LayerNorm.*is missing"):
        Embedder(folder)
    (tmp_path / "config.json").rename(folder / NORM / "config.json")
