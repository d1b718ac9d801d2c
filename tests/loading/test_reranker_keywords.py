"""loading.reranker_keywords: CrossEncoder's constructor as sentence-transformers has it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch
from torch import nn

from nomicbert import ConfigWarning, CrossEncoder, ModelCardData
from nomicbert.loading.reranker_keywords import wanted_reranker
from nomicbert.user_warnings import TruncationWarning
from tests.support.module_folders import build_modular_reranker
from tests.support.rerankers import build_reranker
from tests.support.sameness import same
from tests.support.vocabularies import SENTENCES, WORDS

PAIRS = [(SENTENCES[0], SENTENCES[1]), ("x", " ".join(WORDS * 9))]
LOCATION = {
    "path_or_repo_id": "some/model",
    "revision": None,
    "cache_dir": None,
    "token": None,
    "local_files_only": False,
}
TANH = "torch.nn.Tanh"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_reranker(tmp_path_factory.mktemp("r"))


@pytest.mark.filterwarnings("ignore::nomicbert.user_warnings.TruncationWarning")
@pytest.mark.parametrize(
    "keywords",
    [
        {"num_labels": 1, "max_length": 24},
        {"activation_fn": nn.Tanh()},
        {"default_activation_function": nn.ELU()},
        {"prompts": {"find": "what is: "}},
        {"prompts": {"find": "what is: "}, "default_prompt_name": "find"},
        {"processor_kwargs": {"model_max_length": 24}},
        {"tokenizer_args": {"model_max_length": 24, "use_fast": True}},
        {"automodel_args": {"torch_dtype": torch.float32, "attn_implementation": "eager"}},
        {"config_kwargs": {"classifier_dropout": 0.25, "num_labels": 1}},
        {"config_args": {"classifier_dropout": 0.25}},
        {"classifier_dropout": 0.25, "trust_remote_code": True, "backend": "torch"},
    ],
    ids=str,
)
def test_a_keyword_means_what_it_means_there(keywords: dict[str, Any], folder: Path) -> None:
    judge = sentence_transformers.CrossEncoder(str(folder), device="cpu", **dict(keywords))
    plain = CrossEncoder(folder).predict(PAIRS)
    for ours in (
        CrossEncoder(model_name_or_path=folder, **keywords),
        CrossEncoder.from_pretrained(folder, **keywords),
    ):
        assert ours.prompts == judge.prompts
        assert ours.default_prompt_name == judge.default_prompt_name
        assert ours.max_seq_length == judge.max_seq_length
        assert type(ours.activation_fn) is type(judge.activation_fn)
        assert ours.config.classifier_dropout == judge.config.classifier_dropout
        name = "find" if ours.prompts else None
        found, wanted = (model.predict(PAIRS, prompt_name=name) for model in (ours, judge))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    acts = {"max_length", "activation_fn", "default_activation_function", "prompts"}
    acts |= {"processor_kwargs", "tokenizer_args"}
    # the comparison above would not see a keyword that neither library honours
    assert (np.abs(found - plain).max() > 1e-4) is np.bool_(bool(acts & keywords.keys()))


def test_the_first_name_and_the_order_before_5_4(folder: Path) -> None:
    wanted = CrossEncoder(folder, activation_fn=TANH, max_length=24)
    found = CrossEncoder(folder, 1, 24, nn.Tanh(), "cpu")
    assert (found.max_seq_length, type(found.activation_fn)) == (24, nn.Tanh)
    for model in (found, CrossEncoder(model_name=str(folder), activation_fn=TANH, max_length=24)):
        with pytest.warns(TruncationWarning):
            scores = model.predict(PAIRS)
        with pytest.warns(TruncationWarning):
            assert same(scores, wanted.predict(PAIRS))


def test_dropout_counts_in_training_and_is_saved(folder: Path, tmp_path: Path) -> None:
    model = CrossEncoder(folder, config_kwargs={"classifier_dropout": 0.9})
    assert model.model.labels.dropout_p == 0.9
    batch = model.preprocess(PAIRS[:1] * 200)
    batch.pop("modality")  # type: ignore[misc]
    kept = {}
    for one in (model, CrossEncoder(folder)):
        torch.manual_seed(0)
        one.model.train()
        one.model.encoder.eval()
        logits = one.model(**batch).logits
        kept[one is model] = float(logits.detach().std())
    assert kept[True] > 2 * kept[False]
    model.save_pretrained(tmp_path)
    assert CrossEncoder(tmp_path).config.classifier_dropout == 0.9
    judge = sentence_transformers.CrossEncoder(str(tmp_path), device="cpu")
    assert judge.config.classifier_dropout == 0.9


def test_card_data_and_labels(folder: Path) -> None:
    data = ModelCardData(language="en")
    model = CrossEncoder(folder, model_card_data=data)
    assert model.model_card_data is data
    with pytest.raises(ValueError, match="num_labels"):
        CrossEncoder(folder, config_kwargs={"num_labels": 0})


def test_old_names_are_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        CrossEncoder(folder, automodel_args={"torch_dtype": "float32"}, classifier_dropout=0.2)
    assert [record.getMessage() for record in caplog.records] == [
        "CrossEncoder: the `automodel_args` argument was renamed and is now deprecated: give "
        "`model_kwargs`",
        "CrossEncoder: the `classifier_dropout` argument is deprecated: give "
        "config_kwargs={'classifier_dropout': 0.2}",
    ]


def test_a_tokenizers_limit_above_the_positions(folder: Path) -> None:
    with pytest.warns(ConfigWarning, match="model_max_length = 8192 is more than the 96 positions"):
        model = CrossEncoder(folder, processor_kwargs={"model_max_length": 8192})
    assert model.max_seq_length == 96


def test_one_limit_given_twice(folder: Path) -> None:
    model = CrossEncoder(folder, max_length=64, processor_kwargs={"model_max_length": 64})
    assert model.max_seq_length == 64


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"truncate_dim": 8}, TypeError, "no keyword 'truncate_dim': only Embedder has it"),
        ({"modules": []}, TypeError, "CrossEncoder has no keyword 'modules': write them into mod"),
        ({"num_label": 1}, TypeError, "no keyword 'num_label': did you mean 'num_labels'"),
        ({"num_labels": 1, "config_kwargs": {"num_labels": 2}}, TypeError, "num_labels and config"),
        ({"classifier_dropout": 0.1, "config_args": {"classifier_dropout": 0.2}}, TypeError,
         "classifier_dropout and config_kwargs"),
        ({"max_length": 64, "processor_kwargs": {"model_max_length": 80}}, TypeError,
         "max_length = 64 and model_max_length = 80 are given, with different values: give one"),
        ({"config": {}, "classifier_dropout": 0.4}, ValueError, "config is for a model alone"),
        ({"subfolder": "x"}, ValueError, "subfolder='x' is not supported, .* path of that folder"),
        ({"model_kwargs": {}, "automodel_args": {"a": 1}}, TypeError, "model_kwargs and automodel"),
        ({"config_kwargs": 3}, TypeError, "config_kwargs must be a dict with names"),
        ({"config_kwargs": {"hidden_size": 3}}, TypeError, "'hidden_size', which is not supported"),
        ({"model_kwargs": {"foo": 1}}, TypeError, "model_kwargs has 'foo', which is not supported"),
        ({"processor_kwargs": {"chat_template": ""}}, TypeError, "has 'chat_template', which is n"),
        ({"backend": "onnx"}, ValueError, "ONNX and OpenVINO files are made by `nomicbert export`"),
        ({"activation_fn": "mine.Squash"}, ValueError, "'mine.Squash' cannot be found by its path"),
        ({"activation_fn": nn.Tanh}, TypeError, r"a function: Tanh\(\), not the class"),
    ],
    ids=str,
)  # fmt: skip
def test_refusals_before_anything_is_looked_for(
    keywords: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        CrossEncoder("nowhere/nothing", **keywords)


def test_a_reranker_of_modules_has_no_classifier(tmp_path: Path) -> None:
    build_modular_reranker(tmp_path / "m", [("Dense", {"out_features": 1})])
    with pytest.raises(TypeError, match=r"classifier_dropout needs a classifier.*has modules"):
        CrossEncoder(tmp_path / "m", config_kwargs={"classifier_dropout": 0.1})


def test_known_repositories_need_no_organisation() -> None:
    location = {**LOCATION, "path_or_repo_id": "ms-marco-MiniLM-L6-v2"}
    found = wanted_reranker(location, None, None, None, {})
    assert found.common.location["path_or_repo_id"] == "cross-encoder/ms-marco-MiniLM-L6-v2"
