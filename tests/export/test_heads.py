"""Exported heads in onnxruntime next to the heads themselves, and the choice of one.

Bound of fp32: 1e-5 of the largest logit; measured at most 1e-6.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from nomicbert import (
    ConfigError,
    CrossEncoder,
    Embedder,
    ExportError,
    NomicBertForMaskedLM,
    NomicBertForQuestionAnswering,
    NomicBertForTokenClassification,
)
from nomicbert.errors import CheckpointError
from nomicbert.export import onnx as export
from nomicbert.modeling.heads.head import Head
from tests.support import vocabularies
from tests.support.checkpoints import build_checkpoint, edit_config, read_config
from tests.support.heads import build_head, change_tensors
from tests.support.module_folders import build_modular_reranker
from tests.support.onnx_batches import draw, least_cosine, open_session, outputs
from tests.support.rerankers import build_reranker

BOUND = 1e-5
LENGTHS = (9, 24, 1, 15)
LEFT = 3


def build_task(folder: Path, family: str, task: str, **config: Any) -> Path:
    """A head with a tokenizer."""
    rows = vocabularies.ENGLISH_SIZE
    build_head(folder, family, task, vocab_size=rows, **config)
    text = vocabularies.tokenizer_json("english", rows, None, None)
    (folder / "tokenizer.json").write_text(text, "utf-8")
    return folder


def untied(folder: Path) -> Path:
    """A decoder that is another tensor than the word table."""
    build_task(folder, "Bert", "MaskedLM", tie_word_embeddings=False)
    name = "cls.predictions.decoder.weight"
    change_tensors(folder, lambda tensors: {**tensors, name: tensors[name].roll(7, 0)})
    return folder


def modular(folder: Path) -> Path:
    steps = [
        ("Dense", {"out_features": 24, "activation_function": nn.GELU()}),
        ("LayerNorm", {}),
        ("Dense", {"out_features": 1, "activation_function": nn.Identity()}),
    ]
    build_modular_reranker(folder, steps, pooling_mode=["cls", "max"])
    return folder


BUILD: dict[str, Callable[[Path], Path]] = {
    "reranker": build_reranker,
    "three labels": lambda folder: build_reranker(folder, labels=3),
    "modular": modular,
    "tokens": lambda folder: build_task(folder, "Bert", "TokenClassification", num_labels=5),
    "nomic tokens": lambda folder: build_task(folder, "NomicBert", "TokenClassification"),
    "answers": lambda folder: build_task(folder, "Bert", "QuestionAnswering"),
    "nomic answers": lambda folder: build_task(folder, "NomicBert", "QuestionAnswering"),
    "tied": lambda folder: build_checkpoint(folder, "bert-base-uncased"),
    "untied": untied,
    "without biases": lambda folder: build_checkpoint(folder, "nomic-bert-2048"),
    "bare": lambda folder: build_checkpoint(folder, "chinese-roberta-wwm-ext-large"),
    "embedder": lambda folder: build_checkpoint(folder, "minilm"),
}


def load(folder: Path, task: str) -> Head:
    if task == "text-classification":
        return CrossEncoder(folder).model
    kinds: dict[str, type[Head]] = {
        "token-classification": NomicBertForTokenClassification,
        "question-answering": NomicBertForQuestionAnswering,
        "fill-mask": NomicBertForMaskedLM,
    }
    return kinds[task].from_pretrained(folder)


def relative(given: Tensor, truth: Tensor) -> float:
    assert given.shape == truth.shape
    return float((given - truth).abs().max() / truth.abs().max())


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("reranker", "text-classification"),
        ("three labels", "text-classification"),
        ("modular", "text-classification"),
        ("tokens", "token-classification"),
        ("nomic tokens", "token-classification"),
        ("answers", "question-answering"),
        ("nomic answers", "question-answering"),
        ("tied", "fill-mask"),
        ("untied", "fill-mask"),
        ("without biases", "fill-mask"),
    ],
)
def test_logits(kind: str, task: Any, tmp_path: Path, seed: int) -> None:
    """Padding on both sides, pairs of token types; in fewer bits cosines of all logits together."""
    folder = BUILD[kind](tmp_path / "model")
    made = export(folder, tmp_path / "onnx", dtypes=("fp32", "fp16", "q8"), task=task)
    assert (made.task, made.fingerprint) == (task, "")
    head = load(folder, task)
    config = head.config
    batch = draw(seed, LENGTHS, words=config.vocab_size, types=config.type_vocab_size, left={LEFT})
    texts, _ = batch.packed()
    with torch.inference_mode():
        logits = head.packed_logits(texts)
    kept = torch.from_numpy(batch.mask) > 0
    for file in made.files:
        given = outputs(open_session(tmp_path / "onnx" / file.name), batch)
        if task == "question-answering":
            assert list(given) == ["start_logits", "end_logits"]
            found = torch.stack([given["start_logits"], given["end_logits"]], -1)[kept]
        else:
            assert list(given) == ["logits"]
            found = given["logits"]
            found = found if task == "text-classification" else found[kept]
        if file.dtype == "fp32":
            assert relative(found, logits) <= BOUND
        else:
            least = {"fp16": 0.9999, "q8": 0.98}[file.dtype]
            assert least <= least_cosine(found.reshape(1, -1), logits.reshape(1, -1))


def test_a_reranker_of_padding_only(tmp_path: Path) -> None:
    """Zeros, as from the model."""
    export(build_reranker(tmp_path / "model"), tmp_path / "onnx")
    batch = draw(0, (5, 0), words=300)
    given = outputs(open_session(tmp_path / "onnx/onnx/model.onnx"), batch)["logits"]
    assert given[0] != 0
    assert given[1] == 0


def test_a_tied_decoder_is_stored_once(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path / "model", "bert-base-uncased")
    export(folder, tmp_path / "onnx", task="fill-mask")
    stored = onnx.load(tmp_path / "onnx/onnx/model.onnx").graph.initializer
    rows = NomicBertForMaskedLM.from_pretrained(folder).config.vocab_size
    assert [tensor.name for tensor in stored if rows in tensor.dims and len(tensor.dims) > 1] == [
        "word"
    ]


AUTO = {
    "reranker": "text-classification",
    "modular": "text-classification",
    "tokens": "token-classification",
    "nomic answers": "question-answering",
    "bare": "feature-extraction",
    "embedder": "feature-extraction",
}


@pytest.mark.filterwarnings("ignore::nomicbert.user_warnings.PoolingWarning")
@pytest.mark.parametrize("kind", AUTO)
def test_auto_takes_what_the_facades_load(kind: str, tmp_path: Path) -> None:
    folder = BUILD[kind](tmp_path / "model")
    facades = {"feature-extraction": Embedder, "text-classification": CrossEncoder}
    for task, facade in facades.items():
        if task == AUTO[kind]:
            facade(folder)
        else:
            with pytest.raises((ConfigError, CheckpointError)):
                facade(folder)
    assert export(folder, tmp_path / "onnx").task == AUTO[kind]


def test_modules_decide_before_an_architecture(tmp_path: Path) -> None:
    """As for `Embedder`: encoders of some embedding models keep the name of their old head."""
    folder = build_checkpoint(tmp_path / "model", "minilm")
    edit_config(folder, architectures=["BertForTokenClassification"])
    assert export(folder, tmp_path / "onnx").task == "feature-extraction"


@pytest.mark.parametrize(
    ("kind", "task", "message"),
    [
        ("embedder", "text-classification", "holds an embedding model"),
        ("embedder", "token-classification", "no head for TokenClassification .it has none"),
        ("embedder", "question-answering", "no head for QuestionAnswering"),
        ("embedder", "fill-mask", "no head for MaskedLM"),
        ("tied", "token-classification", "no head for TokenClassification .it has MaskedLM"),
        ("reranker", "feature-extraction", "holds a reranker|holds a BertForSequenceClass"),
        ("tokens", "feature-extraction", "load it with NomicBertForTokenClassification"),
        ("tokens", "text-classification", "no head for SequenceClassification"),
    ],
)
def test_a_head_that_is_not_there(kind: str, task: Any, message: str, tmp_path: Path) -> None:
    folder = BUILD[kind](tmp_path / "model")
    with pytest.raises((ConfigError, CheckpointError), match=message):
        export(folder, tmp_path / "onnx", task=task)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_pooling_is_for_vectors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pooling is for vectors, and the task is text-class"):
        export(build_reranker(tmp_path / "model"), tmp_path / "onnx", pooling="mean")


def test_a_modular_reranker_that_leaves_out_its_prompt(tmp_path: Path) -> None:
    """A graph of token ids cannot know where the prompt ends."""
    folder = modular(tmp_path / "model")
    place = folder / "1_Pooling/config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"include_prompt": False}))
    with pytest.raises(ExportError, match="leaves out the tokens of the prompt"):
        export(folder, tmp_path / "onnx")


@pytest.mark.parametrize("kind", ["three labels", "tokens", "nomic answers", "untied"])
def test_settings_of_a_head(kind: str, tmp_path: Path) -> None:
    """config.json names the head and its labels, and the limit of the tokenizer is the model's."""
    folder = BUILD[kind](tmp_path / "model")
    task: Any = "fill-mask" if kind == "untied" else "auto"
    made = export(folder, tmp_path / "onnx", task=task)
    config = read_config(made.folder)
    head = load(folder, made.task)
    assert config["architectures"] == read_config(folder)["architectures"]
    if kind != "untied":
        assert list(config["id2label"].values()) == list(head.labels.names)
    assert config.get("tie_word_embeddings", True) is (kind != "untied")
    stated = json.loads((made.folder / "tokenizer_config.json").read_text())
    record = json.loads((made.folder / "nomicbert_export.json").read_text())
    assert stated["model_max_length"] == record["max_length"]
    assert record["max_length"] == (96 if kind == "three labels" else 64)
