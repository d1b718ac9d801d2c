"""A model's configuration: what may be read and written on it, and what a write does."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from pathlib import Path

import pytest
import torch
import transformers

from nomicbert import (
    EncoderConfig,
    NomicBert,
    NomicBertForMaskedLM,
    NomicBertForSequenceClassification,
)
from nomicbert.modeling.model_config import FLAGS, TOKENS, ModelConfig
from tests.support.checkpoints import read_config
from tests.support.heads import build_head, theirs

IDS = torch.tensor([[5, 6, 7]])
NAMES = {0: "bad", 1: "fair", 2: "good"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return build_head(tmp_path / "m", "Bert", "SequenceClassification", num_labels=3)


@pytest.fixture
def model(folder: Path) -> NomicBertForSequenceClassification:
    return NomicBertForSequenceClassification.from_pretrained(folder)


def test_what_is_read(model: NomicBertForSequenceClassification, folder: Path) -> None:
    wanted = theirs(folder).config
    for name in (
        "hidden_size", "vocab_size", "num_labels", "id2label", "label2id", "problem_type",
        "use_cache", "architectures", "pad_token_id", "eos_token_id", "classifier_dropout",
        "hidden_dropout_prob", "model_type", "return_dict",
    ):  # fmt: skip
        assert getattr(model.config, name) == getattr(wanted, name), name
    assert model.config.get_text_config(decoder=True) is model.config
    assert getattr(model.config, "quantization_config", None) is None
    with pytest.raises(AttributeError, match="has no setting 'hiden_size'"):
        assert model.config.hiden_size
    assert NomicBert.from_pretrained(folder, strict=False).config.num_labels == 3


def test_a_write_of_labels_has_an_effect(
    model: NomicBertForSequenceClassification, tmp_path: Path
) -> None:
    assert model.labels.names == ("LABEL_0", "LABEL_1", "LABEL_2")
    model.config.id2label = NAMES
    assert model.labels.names == tuple(NAMES.values())
    assert model.config.label2id == {name: i for i, name in NAMES.items()}
    model.config.label2id = {"a": 0, "b": 1, "c": 2}
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    model.config.num_labels = 3
    assert model.labels.names == ("a", "b", "c")
    three = torch.tensor([[1.0, 0.0, 1.0]])
    multi = model(IDS, labels=three).loss
    model.config.problem_type = "regression"
    assert model.labels.problem_type == "regression"
    assert not torch.equal(model(IDS, labels=three).loss, multi)
    model.save_pretrained(tmp_path / "saved")
    saved = theirs(tmp_path / "saved").config
    assert (saved.id2label, saved.problem_type) == ({0: "a", 1: "b", 2: "c"}, "regression")
    model.config.problem_type = None
    assert torch.equal(model(IDS, labels=three).loss, multi)
    assert model.labels.names == ("a", "b", "c")


def test_another_number_of_labels_is_refused(model: NomicBertForSequenceClassification) -> None:
    for name, value in {
        "id2label": {0: "a"},
        "label2id": {"a": 0, "b": 1},
        "num_labels": 2,
    }.items():
        with pytest.raises(
            ValueError, match=f"the model has 3 labels, .*: give {name} to from_pre"
        ):
            setattr(model.config, name, value)
    for name, value in {"id2label": ["a", "b", "c"], "problem_type": 3}.items():
        with pytest.raises(TypeError, match=f"{name} must be a"):
            setattr(model.config, name, value)
    with pytest.raises(ValueError, match="problem_type must be one of"):
        model.config.problem_type = "ranking"
    with pytest.raises(ValueError, match="num_labels must be at least 1"):
        model.config.num_labels = "3"
    assert model.labels.names == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_a_write_of_flags_has_an_effect(model: NomicBertForSequenceClassification) -> None:
    assert len(model(IDS)) == 1
    model.config.output_hidden_states = True
    assert list(model(IDS)) == ["logits", "hidden_states"]
    assert len(model(IDS, output_hidden_states=False)) == 1
    model.config.write(use_return_dict=True)  # the older key, as config.json may have it
    model.config.return_dict = False
    assert (model.config.return_dict, model.config.output_hidden_states) == (False, True)
    assert isinstance(model(IDS), tuple)
    model.config.return_dict = None
    model.config.output_hidden_states = None
    assert list(model(IDS)) == ["logits"]
    for name in FLAGS:
        with pytest.raises(TypeError, match=f"{name} must be True, False or None, not 'no'"):
            setattr(model.config, name, "no")
    model.config.use_cache = True
    assert model.config.use_cache
    model.config.use_cache = False
    assert model.config.use_cache is False


@pytest.mark.parametrize("name", TOKENS)
def test_ids_of_special_tokens_are_saved(
    name: str, model: NomicBertForSequenceClassification, tmp_path: Path
) -> None:
    for value in (7, None):
        setattr(model.config, name, value)
        model.save_pretrained(tmp_path / "saved")
        assert read_config(tmp_path / "saved")[name] == value
        assert getattr(transformers.BertConfig.from_pretrained(tmp_path / "saved"), name) == value
        table = NomicBert.from_pretrained(tmp_path / "saved", strict=False).embeddings.word
        assert table.padding_idx == (value if name == "pad_token_id" else 0)
    for wrong in (-1, 120):
        with pytest.raises(ValueError, match=f"{name} must be 0 to 119, not {wrong}"):
            setattr(model.config, name, wrong)
    for kind in (True, "7", 7.0):
        with pytest.raises(TypeError, match=f"{name} must be a token id or None"):
            setattr(model.config, name, kind)


@pytest.mark.parametrize(
    "name", [f.name for f in dataclasses.fields(EncoderConfig) if f.name != "pad_token_id"]
)
def test_what_the_model_was_built_from_is_fixed(
    name: str, model: NomicBertForSequenceClassification
) -> None:
    before = copy.deepcopy(model.config)
    with pytest.raises(dataclasses.FrozenInstanceError, match=f"is fixed, {name} with it: give"):
        setattr(model.config, name, 1)
    for more in ("attn_implementation", "torch_dtype", "tie_word_embeddings", "hiden_size"):
        with pytest.raises(AttributeError, match=f"is fixed, {more} with it"):
            setattr(model.config, more, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        delattr(model.config, name)
    assert model.config == before


def test_the_id_that_pads_is_that_of_the_saved_model(tmp_path: Path) -> None:
    """Without a padding row it is 0, as read from null, and not a row that may be gone."""
    config = EncoderConfig("bert", 100, 32, 1, 4, 64, 2, 512, 1e-12, pad_token_id=99)
    cut, told = NomicBert(config), NomicBert(config)
    assert cut.config.pad_token_id == 99
    cut.resize_token_embeddings(90)
    told.config.pad_token_id = None  # type: ignore[assignment, misc]
    for model in (cut, told):
        assert model.config.pad_token_id == 0
        model.save_pretrained(tmp_path)
        assert read_config(tmp_path)["pad_token_id"] is None
        assert NomicBert.from_pretrained(tmp_path).config.pad_token_id == 0


def test_a_model_has_its_own(folder: Path, tmp_path: Path) -> None:
    config = EncoderConfig("bert", 100, 32, 1, 4, 64, 2, 512, 1e-12, source={"a": 1})
    one, two = NomicBert(config), NomicBert(config)
    one.config.use_cache = True
    one.config.pad_token_id = 5
    assert (two.config.use_cache, two.config.pad_token_id) == (False, 0)
    assert config.source == {"a": 1}
    assert type(config) is EncoderConfig
    assert two.config == config
    assert config == two.config
    assert one.config != config
    for again in (pickle.loads(pickle.dumps(one.config)), copy.deepcopy(one.config)):
        assert again == one.config
        assert type(again) is ModelConfig
    changed = dataclasses.replace(one.config, hidden_dropout_prob=0.5)
    assert NomicBert(changed).config.hidden_dropout_prob == 0.5
    with pytest.raises(TypeError, match="unhashable"):
        hash(one.config)
    assert one.config != 3


def test_to_dict_is_what_is_saved(
    model: NomicBertForSequenceClassification, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "saved")
    wanted = read_config(tmp_path / "saved")
    found = model.config.to_dict()
    assert {name: found[name] for name in wanted} == wanted
    assert json.loads(model.config.to_json_string()) == json.loads(json.dumps(found))
    assert transformers.BertConfig(**found).num_labels == 3


def test_words_of_a_masked_lm_head_have_no_number_of_their_own(tmp_path: Path) -> None:
    folder = build_head(tmp_path, "NomicBert", "MaskedLM")
    config = NomicBertForMaskedLM.from_pretrained(folder).config
    assert config.num_labels == 2
    assert config.keys_to_ignore_at_inference == ["past_key_values"]
