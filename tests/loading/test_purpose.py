"""loading.purpose: a checkpoint of another kind is refused by the name of the class that fits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers

from nomicbert import CrossEncoder, Embedder
from nomicbert.describe import describe
from nomicbert.errors import ConfigError
from nomicbert.loading.folder import read_folder
from nomicbert.loading.purpose import is_reranker
from tests.support.checkpoints import build_checkpoint, edit_config
from tests.support.rerankers import build_reranker

MODEL = "config_sentence_transformers.json"
PAIRS = [("what is", "the river"), ("deep", "learning is long")]


def embedder(folder: Path, **settings: Any) -> Path:
    build_checkpoint(folder, "minilm", num_hidden_layers=1)
    (folder / MODEL).write_text(json.dumps(settings))
    return folder


def reranker(folder: Path, **settings: Any) -> Path:
    build_reranker(folder)
    (folder / MODEL).write_text(json.dumps(settings))
    return folder


def modules(folder: Path, *kinds: str) -> None:
    listed = [{"type": f"sentence_transformers.models.{kind}", "path": ""} for kind in kinds]
    (folder / "modules.json").write_text(json.dumps(listed))


def headed(folder: Path, architecture: str) -> Path:
    embedder(folder)
    (folder / "modules.json").unlink()
    shutil.rmtree(folder / "1_Pooling")
    edit_config(folder, architectures=[architecture])
    return folder


def saved_reranker(folder: Path) -> Path:
    judge = sentence_transformers.CrossEncoder(str(reranker(folder / "a")), device="cpu")
    judge.save_pretrained(str(folder / "b"), create_model_card=False)
    return folder / "b"


def saved_by_us(folder: Path) -> Path:
    CrossEncoder(reranker(folder / "a")).save_pretrained(folder / "b")
    return folder / "b"


def scoring(folder: Path) -> Path:
    """Only the Transformer module's file says what it is for."""
    task = {"transformer_task": "sequence-classification"}
    (embedder(folder) / "sentence_bert_config.json").write_text(json.dumps(task))
    return folder


SPARSE = "holds a SparseEncoder, which is not supported: .* sentence_transformers.SparseEncoder"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (reranker, "BertForSequenceClassification.*: load it with CrossEncoder"),
        (saved_reranker, "holds a reranker: load it with CrossEncoder"),
        (saved_by_us, "holds a reranker: load it with CrossEncoder"),
        (scoring, "holds a reranker: load it with CrossEncoder"),
        (lambda f: embedder(f, model_type="CrossEncoder"), "load it with CrossEncoder"),
        (lambda f: embedder(f, model_type="SparseEncoder"), SPARSE),
        (lambda f: headed(f, "BertForTokenClassification"), "load it with NomicBertForToken"),
        (lambda f: headed(f, "BertForQuestionAnswering"), "load it with NomicBertForQuestion"),
    ],
)
def test_what_an_embedder_is_not(
    build: Callable[[Path], Path], message: str, tmp_path: Path
) -> None:
    folder = build(tmp_path)
    for load in (Embedder, Embedder.from_pretrained, describe):
        with pytest.raises(ConfigError, match=message):
            load(folder)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (embedder, "holds an embedding model: load it with Embedder, or give num_labels"),
        (lambda f: reranker(f, model_type="SentenceTransformer"), "load it with Embedder"),
        (lambda f: reranker(f, model_type="SparseEncoder"), SPARSE),
        (lambda f: reranker(f, model_type="MultiVectorEncoder"), "holds a MultiVectorEncoder"),
    ],
)
def test_what_a_reranker_is_not(
    build: Callable[[Path], Path], message: str, tmp_path: Path
) -> None:
    folder = build(tmp_path)
    for load in (CrossEncoder, CrossEncoder.from_pretrained):
        with pytest.raises(ConfigError, match=message):
            load(folder)


def test_a_reranker_with_other_modules(tmp_path: Path) -> None:
    """Their part of the scores would be missing."""
    folder = reranker(tmp_path, model_type="CrossEncoder")
    for kinds in (["Transformer", "LogitScore"], ["Transformer", "Dense"], ["Router"]):
        modules(folder, *kinds)
        for num_labels in (None, 1):
            told = f"modules.json lists {', '.join(kinds)}: a reranker is supported as"
            with pytest.raises(ConfigError, match=told):
                CrossEncoder(folder, num_labels=num_labels)
    modules(folder, "Transformer")
    assert CrossEncoder(folder).num_labels == 1


@pytest.mark.parametrize(
    ("build", "wanted"),
    [
        (reranker, True),
        (saved_reranker, True),
        (saved_by_us, True),
        (embedder, False),
        (lambda f: embedder(f, model_type="SentenceTransformer"), False),
        (lambda f: reranker(f, model_type="SentenceTransformer"), False),
        (lambda f: headed(f, "BertModel"), False),
        (lambda f: headed(f, "BertForMaskedLM"), False),
        (lambda f: headed(f, "BertForTokenClassification"), False),
    ],
)
def test_which_class_a_checkpoint_is_for(
    build: Callable[[Path], Path], wanted: bool, tmp_path: Path
) -> None:
    folder = build(tmp_path)
    assert is_reranker(read_folder(folder)) == wanted
    if wanted:
        assert CrossEncoder(folder).num_labels == 1


def test_bare_encoders_are_embedders(tmp_path: Path) -> None:
    """With a masked head or none, as sentence-transformers pools them by mean."""
    for name in ("BertModel", "BertForMaskedLM", "BertForPreTraining"):
        folder = headed(tmp_path / name, name)
        judge = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
        texts = ["what is", "the river is long"]
        found = Embedder(folder, pooling="mean").encode(texts)
        np.testing.assert_allclose(found, judge.encode(texts), rtol=0, atol=1e-5)


def test_a_new_head_has_no_prompts_of_the_embedding_model(tmp_path: Path) -> None:
    stated = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    folder = embedder(tmp_path / "a", **stated, activation_fn="torch.nn.modules.activation.Tanh")
    model = CrossEncoder(folder, num_labels=1)
    judge = sentence_transformers.CrossEncoder(str(folder), device="cpu")
    assert model.prompts == judge.prompts == {}
    assert model.default_prompt_name is judge.default_prompt_name is None
    scores = model.predict(PAIRS)
    raw = model.predict(PAIRS, activation_fn=lambda x: x)
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-raw)), atol=1e-6)
