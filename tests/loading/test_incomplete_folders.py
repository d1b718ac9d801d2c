"""Folders that lack a file, or hold one that cannot be read: an error or a warning."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from nomicbert import Embedder, NomicBert, PoolingWarning
from nomicbert.errors import CheckpointError, ConfigError, NomicBertError
from nomicbert.loading.folder import read_folder
from tests.support.checkpoints import build_checkpoint


def _dangling(path: Path) -> None:
    path.symlink_to(path.with_name("gone"))


def _cyclic(path: Path) -> None:
    path.symlink_to(path)


def _directory(path: Path) -> None:
    path.mkdir()


def test_a_bare_encoder(tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "code-rank-embed", num_hidden_layers=1)
    (tmp_path / "modules.json").unlink()
    shutil.rmtree(tmp_path / "1_Pooling")
    found = read_folder(tmp_path)
    assert found.modules is None
    assert found.encoder == tmp_path
    with pytest.warns(PoolingWarning, match="assumed to be plain means .*pooling='mean', 'cls'"):
        assert Embedder(tmp_path).pooling.mode == "mean"


@pytest.mark.parametrize("mode", ["mean", "cls", "max", "mean_sqrt_len", "lasttoken"])
def test_the_pooling_of_a_bare_encoder_may_be_chosen(mode: Any, tmp_path: Path) -> None:
    """Without a warning, and saved: sentence-transformers reads the choice."""
    build_checkpoint(tmp_path / "bare", "e5", num_hidden_layers=1)
    shutil.rmtree(tmp_path / "bare" / "1_Pooling")
    (tmp_path / "bare" / "modules.json").unlink()
    embedder = Embedder(tmp_path / "bare", pooling=mode)
    texts = ["a fox", "the lazy dog"]
    name = mode.replace("sqrt_len", "sqrt_len_tokens")
    pooling = Pooling(embedder.pooling.embedding_dimension, name)
    bare = Transformer(str(tmp_path / "bare"))
    theirs = SentenceTransformer(modules=[bare, pooling], device="cpu")
    np.testing.assert_allclose(embedder.encode(texts), theirs.encode(texts), atol=2e-6)
    embedder.save_pretrained(tmp_path / "saved")
    saved = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    np.testing.assert_allclose(saved.encode(texts), theirs.encode(texts), atol=2e-6)


def test_a_chosen_pooling_must_not_contradict(tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "e5", num_hidden_layers=1)
    with pytest.raises(ValueError, match=r"modules\.json states the pooling: leave out pooling="):
        Embedder(tmp_path, pooling="cls")
    with pytest.raises(ValueError, match=r"pooling must be one of cls, max, .*, not 'median'"):
        Embedder(tmp_path, pooling="median")  # type: ignore[arg-type]


def test_a_folder_that_lost_its_modules_json(tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "e5", num_hidden_layers=1)
    (tmp_path / "modules.json").unlink()
    with pytest.raises(ConfigError, match=r"has 1_Pooling but no modules\.json, .* not complete"):
        Embedder(tmp_path)


@pytest.mark.parametrize("break_file", [_dangling, _cyclic, _directory])
@pytest.mark.parametrize(
    "name",
    [
        "modules.json",
        "config_sentence_transformers.json",
        "sentence_bert_config.json",
        "tokenizer_config.json",
        "tokenizer.json",
        "added_tokens.json",
        "1_Pooling/config.json",
        "model.safetensors",
    ],
)
def test_an_unreadable_file_is_not_a_missing_one(
    name: str, break_file: Callable[[Path], None], tmp_path: Path
) -> None:
    build_checkpoint(tmp_path, "e5", num_hidden_layers=1)
    (tmp_path / name).unlink(missing_ok=True)
    break_file(tmp_path / name)
    with pytest.raises(NomicBertError, match=re.escape(Path(name).name)):
        Embedder(tmp_path)


@pytest.mark.parametrize("load", [Embedder, NomicBert.from_pretrained])
def test_an_adapter_next_to_the_weights(load: Callable[[Path], object], tmp_path: Path) -> None:
    """transformers adds it to the weights; without it the vectors are others."""
    build_checkpoint(tmp_path, "e5", num_hidden_layers=1)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}', "utf-8")
    with pytest.raises(CheckpointError, match=r"holds an adapter next to the weights .* merge_and"):
        load(tmp_path)
