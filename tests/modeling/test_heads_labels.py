"""New heads and their labels: numbers, names and keywords, loaded and saved."""

# An imported fixture is named again as an argument.
# ruff: noqa: F811

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from nomicbert import (
    NomicBert,
    NomicBertForMaskedLM,
    NomicBertForQuestionAnswering,
    NomicBertForTokenClassification,
)
from nomicbert.errors import CheckpointError, ConfigError
from nomicbert.modeling.heads import losses
from tests.modeling.heads_loading_cases import (  # noqa: F401
    IDS,
    MASK,
    Folders,
    copied,
    folders,
    same_bits,
    scores,
)
from tests.parity.bounds import HIDDEN
from tests.support.checkpoints import edit_config, read_config, read_tensors
from tests.support.heads import NATIVE, OURS, change_tensors, theirs


@pytest.mark.parametrize(
    ("task", "count", "new"),
    [
        ("SequenceClassification", 4, ["classifier", "encoder.pooler"]),
        ("TokenClassification", 2, ["classifier"]),
        ("QuestionAnswering", 2, ["qa_outputs"]),
    ],
)
@pytest.mark.parametrize("family", ["Bert", "NomicBert"])
def test_a_new_head(
    family: str,
    task: str,
    count: int,
    new: list[str],
    folders: Folders,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The encoder is the checkpoint's, the head is random, and a warning is logged."""
    folder = folders[family, "MaskedLM"]
    with caplog.at_level(logging.WARNING, "nomicbert"):
        model = OURS[task].from_pretrained(folder, num_labels=count)
    names = [f"{layer}.{kind}" for layer in new for kind in ("weight", "bias")]
    wanted = f"{folder}: {', '.join(names)} are new and random: train them"
    assert [record.getMessage() for record in caplog.records] == [wanted]
    encoder = NomicBert.from_pretrained(folder).state_dict()
    state = model.state_dict()
    assert state.keys() == {*names, *(f"encoder.{name}" for name in encoder)}
    assert all(torch.equal(state[f"encoder.{name}"], encoder[name]) for name in encoder)
    for name in names:
        if name.endswith("bias"):
            assert not state[name].any()
        else:
            assert len(state[name]) == (64 if "pooler" in name else count)
            assert 0.01 <= state[name].std() <= 0.03  # initializer_range is 0.02
    assert model.labels.names == tuple(f"LABEL_{i}" for i in range(count))
    assert not model.training
    model.save_pretrained(tmp_path)
    assert same_bits(OURS[task].from_pretrained(tmp_path), model)
    if (family, task) in NATIVE:
        assert (scores(theirs(tmp_path)) - scores(model)).abs().max() <= HIDDEN


@pytest.mark.parametrize("task", ["SequenceClassification", "TokenClassification"])
def test_another_number_of_labels(
    task: str, folders: Folders, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copied(folders["Bert", task], tmp_path)
    edit_config(
        folder,
        classifier_dropout=0.25,
        problem_type="regression",
        id2label={"0": "a", "1": "b", "2": "c"},
    )
    cls = OURS[task]
    with pytest.raises(CheckpointError, match="has a head of 3 labels, not 5: leave num_labels"):
        cls.from_pretrained(folder, num_labels=5)
    with caplog.at_level(logging.WARNING, "nomicbert"):
        for keywords in ({}, {"num_labels": 3}, {"ignore_mismatched_sizes": True}):
            model = cls.from_pretrained(folder, **keywords)
            assert model.labels.names == ("a", "b", "c")
            assert torch.equal(model.classifier.weight, read_tensors(folder)["classifier.weight"])
        assert not caplog.records
        model = cls.from_pretrained(folder, num_labels=5, ignore_mismatched_sizes=True)
    assert "classifier.weight, classifier.bias are new and random" in caplog.text
    assert "pooler" not in caplog.text
    assert model.classifier.weight.shape == (5, 64)
    assert model.labels.names == tuple(f"LABEL_{i}" for i in range(5))
    assert (model.labels.problem_type, model.labels.dropout_p) == ("regression", 0.25)
    model.save_pretrained(tmp_path / "b")
    again = cls.from_pretrained(tmp_path / "b")
    assert again.labels == model.labels
    assert same_bits(again, model)


def test_invalid_numbers_of_labels_are_refused(folders: Folders) -> None:
    folder = folders["Bert", "MaskedLM"]
    with pytest.raises(ValueError, match="num_labels is for classes: here every word"):
        NomicBertForMaskedLM.from_pretrained(folder, num_labels=2)
    with pytest.raises(ValueError, match="an answer has a start and an end: num_labels is 2, no"):
        NomicBertForQuestionAnswering.from_pretrained(folder, num_labels=3)
    for count in (0, -1):
        with pytest.raises(ValueError, match=f"num_labels must be at least 1, not {count}"):
            NomicBertForTokenClassification.from_pretrained(folder, num_labels=count)


@pytest.mark.parametrize("task", OURS)
def test_keywords(task: str, folders: Folders) -> None:
    folder, cls = folders["Bert", task], OURS[task]
    called = rf"^{cls.__name__}\.from_pretrained has no keyword 'num_lables': did you mean 'num_lab"
    with pytest.raises(TypeError, match=called):
        cls.from_pretrained(folder, num_lables=3)
    with pytest.raises(TypeError, match="no keyword 'rotary_factor': did you mean 'rotary_scal"):
        cls.from_pretrained(folder, rotary_factor=2)
    with pytest.raises(TypeError, match="no keyword 'add_pooling_layer': known are ") as error:
        cls.from_pretrained(folder, add_pooling_layer=True)
    assert str(error.value).count("add_pooling_layer") == 1
    model = cls.from_pretrained(
        str(folder),
        dtype=torch.bfloat16,
        device="cpu",
        backend="reference",
        trust_remote_code=True,
        safe_serialization=True,
    )
    assert (model.dtype, model.encoder.backend) == (torch.bfloat16, "reference")
    assert cls.from_pretrained(folder, torch_dtype="float16", device_map="cpu").dtype == (
        torch.float16
    )


def test_settings_of_labels(folders: Folders, tmp_path: Path) -> None:
    folder, cls = copied(folders["Bert", "SequenceClassification"], tmp_path), OURS
    task = cls["SequenceClassification"]
    for names in (
        {"0": "a", "2": "b", "3": "c"},
        {"1": "a", "2": "b", "3": "c"},
        {"0": "a", "1": "b", "x": "c"},
        {},
        ["a", "b", "c"],
        ["0", "1", "2"],
        3,
    ):
        edit_config(folder, id2label=names)
        with pytest.raises(ConfigError, match="id2label must count from 0 without gaps, not"):
            task.from_pretrained(folder)
    many = {str(i): f"name {i}" for i in range(11)}
    edit_config(folder, id2label=dict(sorted(many.items())))  # "10" before "2"
    with pytest.raises(CheckpointError, match=r"classifier.weight is \(3, 64\), wanted \(11, 64"):
        task.from_pretrained(folder)
    change_tensors(folder, lambda t: {n: grown(n, x) for n, x in t.items()})
    model = task.from_pretrained(folder)
    assert model.labels.names == tuple(many.values())
    assert model.labels.problem_type is None
    edit_config(folder, problem_type="ranking")
    with pytest.raises(ConfigError, match=r"problem_type must be one of regression, .*'ranking'"):
        task.from_pretrained(folder)
    edit_config(folder, problem_type="regression", id2label=..., label2id=..., num_labels=11)
    assert task.from_pretrained(folder).labels.problem_type == "regression"
    other = task.from_pretrained(folder, problem_type="multi_label_classification")
    assert other.labels.problem_type == "multi_label_classification"
    assert other.labels.names == tuple(f"LABEL_{i}" for i in range(11))
    labels = torch.zeros(3, 11)
    with torch.no_grad():
        out = other(IDS, MASK, labels=labels)
        assert torch.equal(out.loss, losses.texts(out.logits, labels, other.labels.problem_type))
    with pytest.raises(ConfigError, match=r"problem_type must be one of .*, not 'single'"):
        task.from_pretrained(folder, problem_type="single")


NAMES = {0: "O", 1: "B-ort", 2: "I-ort"}


@pytest.mark.parametrize(
    "said",
    [
        {"id2label": NAMES},
        {"id2label": {str(i): name for i, name in NAMES.items()}},
        {"label2id": {name: i for i, name in NAMES.items()}, "num_labels": 3},
        {"id2label": NAMES, "label2id": {"I-ort": 2, "O": 0, "B-ort": 1}},
    ],
)
def test_names_of_labels(said: dict[str, Any], folders: Folders, tmp_path: Path) -> None:
    """Of a stored head, and of the new one that they ask for."""
    folder = folders["Bert", "TokenClassification"]
    plain = NomicBertForTokenClassification.from_pretrained(folder)
    model = NomicBertForTokenClassification.from_pretrained(folder, **said)
    assert same_bits(model, plain)
    assert model.labels.names == ("O", "B-ort", "I-ort")
    model.save_pretrained(tmp_path / "saved")
    assert theirs(tmp_path / "saved").config.id2label == NAMES
    new = NomicBertForTokenClassification.from_pretrained(folders["Bert", "MaskedLM"], **said)
    assert (new.labels.names, len(new.classifier.weight)) == (model.labels.names, 3)


def test_config_asks_for_labels(folders: Folders) -> None:
    config = transformers.BertConfig.from_pretrained(
        folders["Bert", "MaskedLM"], id2label=NAMES, problem_type="multi_label_classification"
    )
    cls = OURS["SequenceClassification"]
    model = cls.from_pretrained(folders["Bert", "MaskedLM"], config=config)
    assert model.labels.names == ("O", "B-ort", "I-ort")
    assert model.labels.problem_type == "multi_label_classification"
    with pytest.raises(CheckpointError, match="has a head of 3 labels, not 2"):
        cls.from_pretrained(
            folders["Bert", "SequenceClassification"], config=transformers.BertConfig()
        )
    # which states two labels, as every configuration of transformers does
    masked = NomicBertForMaskedLM.from_pretrained(folders["Bert", "MaskedLM"], config=config)
    assert same_bits(masked, NomicBertForMaskedLM.from_pretrained(folders["Bert", "MaskedLM"]))


def test_labels_lose_a_meaning_and_a_dropout(folders: Folders, tmp_path: Path) -> None:
    model = OURS["SequenceClassification"].from_pretrained(
        folders["Bert", "SequenceClassification"],
        problem_type="single_label_classification",
        classifier_dropout=0.5,
    )
    model.labels = dataclasses.replace(model.labels.meant_as(None), dropout_p=None)
    assert (model.labels.problem_type, model.labels.dropout_p) == (None, None)
    model.save_pretrained(tmp_path)
    saved = read_config(tmp_path)
    assert (saved["problem_type"], saved["classifier_dropout"]) == (None, None)
    again = OURS["SequenceClassification"].from_pretrained(tmp_path)
    assert again.labels == model.labels


def test_classifier_dropout(folders: Folders, tmp_path: Path) -> None:
    folder = folders["Bert", "SequenceClassification"]
    cls = OURS["SequenceClassification"]
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    still = cls.from_pretrained(folder, classifier_dropout=0, **off).train()
    assert torch.equal(scores(still), scores(still))
    noisy = cls.from_pretrained(folder, classifier_dropout=0.5, **off).train()
    assert not torch.equal(scores(noisy), scores(noisy))
    noisy.save_pretrained(tmp_path / "saved")
    assert read_config(tmp_path / "saved")["classifier_dropout"] == 0.5
    assert cls.from_pretrained(tmp_path / "saved").labels.dropout_p == 0.5
    with pytest.raises(ValueError, match=r"classifier_dropout must be from 0 to 1, not 1\.5"):
        cls.from_pretrained(folder, classifier_dropout=1.5)
    with pytest.raises(TypeError, match="classifier_dropout must be a number from 0 to 1, not '0"):
        cls.from_pretrained(folder, classifier_dropout="0.1")


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"id2label": {1: "a", 2: "b"}}, r"id2label must be \{0: name, ...\}, counted from 0"),
        ({"id2label": {0: "a", 1: 2}}, "id2label must be"),
        ({"id2label": {}}, "id2label must be"),
        ({"label2id": {"a": 0, "b": 0}}, "label2id must be"),
        ({"id2label": {0: "a"}, "label2id": {"b": 0}}, "id2label and label2id differ"),
        ({"id2label": {0: "a"}, "num_labels": 2}, "num_labels is 2, but there are 1 names"),
    ],
)
def test_wrong_names_are_refused(said: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        NomicBertForTokenClassification.from_pretrained("./nowhere", **said)
    with pytest.raises(TypeError, match="id2label must be a dict as"):
        NomicBertForTokenClassification.from_pretrained("./nowhere", id2label=["a", "b"])


@pytest.mark.parametrize("task", ["MaskedLM", "QuestionAnswering"])
def test_labels_of_heads_without_any_are_refused(task: str) -> None:
    for name, value in {
        "id2label": NAMES,
        "label2id": {"a": 0},
        "problem_type": "regression",
        "classifier_dropout": 0.1,
    }.items():
        with pytest.raises(ValueError, match=f"^{name} has no effect on {OURS[task].__name__}: "):
            OURS[task].from_pretrained("./nowhere", **{name: value})


def grown(name: str, tensor: Tensor) -> Tensor:
    """Replace a head of 3 classes by one of 11."""
    if not name.startswith("classifier"):
        return tensor
    return torch.cat([tensor, torch.zeros(8, *tensor.shape[1:])])


def test_labels_are_saved(folders: Folders, tmp_path: Path) -> None:
    folder = copied(folders["NomicBert", "TokenClassification"], tmp_path)
    names = {"0": "O", "1": "B-ort", "2": "I-ort"}
    edit_config(folder, id2label=names, label2id={"unlike": 7}, classifier_dropout=0.5)
    model = NomicBertForTokenClassification.from_pretrained(folder, problem_type="regression")
    model.save_pretrained(tmp_path / "b")
    config = read_config(tmp_path / "b")
    assert config["id2label"] == names
    assert config["label2id"] == {"O": 0, "B-ort": 1, "I-ort": 2}
    assert (config["problem_type"], config["classifier_dropout"]) == ("regression", 0.5)
    native = theirs(tmp_path / "b").config
    assert native.id2label == {0: "O", 1: "B-ort", 2: "I-ort"}
    assert (native.problem_type, native.classifier_dropout) == ("regression", 0.5)
