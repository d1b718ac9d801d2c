"""modules.json and its folders: custom code and unsupported settings are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nomicbert import Embedder
from nomicbert.errors import ConfigError
from nomicbert.loading.folder import read_folder
from nomicbert.modeling.packing import pack
from nomicbert.vectors.modules import read_pooling
from nomicbert.vectors.pooling import Finish
from tests.support.checkpoints import build_checkpoint

MODULE = "sentence_transformers.models."


def _change(file: Path, **changes: Any) -> None:
    stated = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    file.write_text(json.dumps(stated | changes), "utf-8")


def _lists(folder: Path, *kinds: str) -> None:
    paths = {"Pooling": "1_Pooling", "Dense": "2_Dense", "Normalize": "3_Normalize"}
    entries = [{"type": kind, "path": paths.get(kind.rpartition(".")[2], "")} for kind in kinds]
    (folder / "modules.json").write_text(json.dumps(entries), "utf-8")


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (["custom_st.Transformer", MODULE + "Pooling"], "asks for custom_st.Transformer, which is"),
        ([MODULE + "Transformer", "my.Pooling"], "asks for my.Pooling, which is custom code"),
        ([], "lists nothing: supported are"),
        ([MODULE + "Pooling"], "lists Pooling: supported are"),
        ([MODULE + "Transformer"], "lists Transformer: supported are"),
        (
            [MODULE + "Transformer", *[MODULE + "Pooling"] * 2],
            "lists Transformer, Pooling, Pooling",
        ),
    ],
)
def test_unsupported_modules_are_refused(kinds: list[str], message: str, tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "conan-v1")
    _lists(tmp_path, *kinds)
    with pytest.raises(ConfigError, match=message):
        Embedder(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_residual": "no"}, "use_residual must be true or false, not 'no'"),
        ({"module_output_name": "other"}, "module_output_name = 'other' is not supported"),
        ({"gated": 1, "extra": 2}, "has settings that are not supported: extra, gated"),
        ({"activation_function": "my_repo.code.Tanh"}, "'my_repo.code.Tanh' is not supported"),
        ({"bias": "false"}, "bias must be true or false, not 'false'"),
    ],
)
def test_unsupported_dense_settings_are_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    build_checkpoint(tmp_path, "conan-v1")
    assert read_pooling(read_folder(tmp_path), torch.float32).embedding_dimension == 112
    _change(tmp_path / "2_Dense" / "config.json", **change)
    with pytest.raises(ConfigError, match=message):
        read_pooling(read_folder(tmp_path), torch.float32)


def test_a_dense_loaded_under_inference_mode_can_be_trained(tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "conan-v1", num_hidden_layers=1)
    with torch.inference_mode():
        embedder = Embedder(tmp_path)
    vectors = embedder.embedding_model(pack([[5, 6], [7]]), Finish())
    vectors.square().sum().backward()
    assert all(parameter.grad is not None for parameter in embedder.pooling.parameters())


def test_a_list_of_one_mode(tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "conan-v1")
    file = tmp_path / "1_Pooling" / "config.json"
    file.write_text(json.dumps({"embedding_dimension": 64, "pooling_mode": ["lasttoken"]}))
    assert read_pooling(read_folder(tmp_path), torch.float32).mode == "lasttoken"
    for wrong in ([], ["mean", "median"], [["mean"]], 3):
        _change(file, pooling_mode=wrong)
        with pytest.raises(ConfigError, match=r"is not supported; supported are cls, last.*list"):
            read_pooling(read_folder(tmp_path), torch.float32)


def test_an_encoder_in_a_folder_of_its_own(tmp_path: Path) -> None:
    """The old layout of sentence-transformers, with all encoder files in a subfolder."""
    folder = build_checkpoint(tmp_path / "all", "minilm")
    wanted = Embedder(folder).encode("the quick fox")
    inner = folder / "0_Transformer"
    inner.mkdir()
    for file in folder.iterdir():
        if file.is_file() and file.name not in (
            "modules.json",
            "config_sentence_transformers.json",
        ):
            file.rename(inner / file.name)
    entries = json.loads((folder / "modules.json").read_text("utf-8"))
    entries[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(entries), "utf-8")
    embedder = Embedder(folder)
    assert embedder.max_seq_length == 256
    assert (embedder.encode("the quick fox") == wanted).all()
