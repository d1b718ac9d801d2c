"""Heads and their files: names on disk, what is missing or new, and what save_pretrained writes."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import nomicbert
from nomicbert import (
    NomicBert,
    NomicBertForMaskedLM,
    NomicBertForPreTraining,
    NomicBertForQuestionAnswering,
    NomicBertForSequenceClassification,
    NomicBertForTokenClassification,
)
from nomicbert.errors import CheckpointError, ConfigError
from nomicbert.modeling.heads import losses
from tests.parity.bounds import HIDDEN
from tests.support.checkpoints import build_checkpoint, edit_config, read_config, read_tensors
from tests.support.heads import ALL, NATIVE, OURS, build_head, change_tensors, rename, theirs

IDS = torch.tensor([[2, 7, 9, 30, 4], [5, 8, 11, 12, 6], [9, 3, 3, 119, 1]])
MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
BIAS, DECODER_BIAS = "cls.predictions.bias", "cls.predictions.decoder.bias"
DECODER = "cls.predictions.decoder.weight"
Folders = Mapping[tuple[str, str], Path]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Every head of both families; classes of three kinds."""
    found = {}
    for family, task in ALL:
        count = 2 if task == "QuestionAnswering" else 3
        where = tmp_path_factory.mktemp(family + task)
        found[family, task] = build_head(where, family, task, num_labels=count)
    return found


def copied(folder: Path, to: Path) -> Path:
    return shutil.copytree(folder, to / "copy")


@torch.no_grad()
def scores(model: nn.Module, mask: Tensor = MASK) -> Tensor:
    """Of either model; zeros on padding where there are tokens."""
    out = model(IDS, attention_mask=mask)
    found = out.logits if "logits" in out else torch.stack((out.start_logits, out.end_logits), 2)
    return torch.where(mask[..., None] == 1, found, 0) if found.dim() == 3 else found


def same_bits(a: nn.Module, b: nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    assert one.keys() == two.keys()
    return all(torch.equal(one[n], two[n]) and one[n].dtype == two[n].dtype for n in one)


def test_names() -> None:
    assert NomicBertForPreTraining is NomicBertForMaskedLM
    for name in nomicbert.__all__:
        if "For" in name:
            assert getattr(nomicbert, name).__doc__


@pytest.mark.parametrize("prefix", ["", "bert.", "nomic_bert.", "model."])
@pytest.mark.parametrize("task", ["MaskedLM", "SequenceClassification"])
@pytest.mark.parametrize("family", ["Bert", "NomicBert"])
def test_every_prefix(
    family: str, task: str, prefix: str, folders: Folders, tmp_path: Path
) -> None:
    wanted = OURS[task].from_pretrained(folders[family, task])
    folder = copied(folders[family, task], tmp_path)
    own = {"Bert": "bert.", "NomicBert": "nomic_bert."}[family]
    change_tensors(
        folder,
        lambda tensors: {
            prefix + name.removeprefix(own) if name.startswith(own) else name: tensor
            for name, tensor in tensors.items()
        },
    )
    assert any(name.startswith(prefix + "encoder.") for name in read_tensors(folder))
    assert same_bits(OURS[task].from_pretrained(folder), wanted)


def test_old_names_of_norms(tmp_path: Path) -> None:
    """bert-base-uncased as the hub has it: gamma and beta, the decoder stored too."""
    folder = build_checkpoint(tmp_path, "bert-base-uncased")
    model, hub = NomicBertForMaskedLM.from_pretrained(folder), read_tensors(folder)
    for ours, name in (
        ("transform_norm.weight", "cls.predictions.transform.LayerNorm.gamma"),
        ("transform_norm.bias", "cls.predictions.transform.LayerNorm.beta"),
        ("transform.weight", "cls.predictions.transform.dense.weight"),
        ("transform.bias", "cls.predictions.transform.dense.bias"),
        ("decoder_bias", BIAS),
    ):
        assert torch.equal(model.state_dict()[ours], hub[name])
    assert model.decoder is None
    assert not model.training


@pytest.mark.parametrize("family", ["Bert", "NomicBert"])
def test_either_name_of_the_decoders_bias(family: str, folders: Folders, tmp_path: Path) -> None:
    wanted = NomicBertForMaskedLM.from_pretrained(folders[family, "MaskedLM"])
    folder = copied(folders[family, "MaskedLM"], tmp_path)
    assert BIAS in read_tensors(folder)
    rename(folder, BIAS, DECODER_BIAS)
    assert same_bits(NomicBertForMaskedLM.from_pretrained(folder), wanted)
    change_tensors(folder, lambda t: t | {BIAS: t[DECODER_BIAS].clone()})
    assert same_bits(NomicBertForMaskedLM.from_pretrained(folder), wanted)
    change_tensors(folder, lambda t: t | {BIAS: t[BIAS] + 1})
    with pytest.raises(CheckpointError, match=rf"{BIAS}.*{DECODER_BIAS}, which differ"):
        NomicBertForMaskedLM.from_pretrained(folder)


@pytest.mark.parametrize("family", ["Bert", "NomicBert"])
def test_a_decoder_tied_dropped_or_its_own(family: str, folders: Folders, tmp_path: Path) -> None:
    folder = copied(folders[family, "MaskedLM"], tmp_path)
    model = NomicBertForMaskedLM.from_pretrained(folder)
    assert DECODER not in read_tensors(folder)
    assert model.decoder is None
    words = model.encoder.embeddings.word.weight
    change_tensors(folder, lambda t: t | {DECODER: words.detach().clone()})
    assert same_bits(NomicBertForMaskedLM.from_pretrained(folder), model)
    own = words.detach().flip(0).contiguous()
    change_tensors(folder, lambda t: t | {DECODER: own})
    untied = NomicBertForMaskedLM.from_pretrained(folder)
    assert torch.equal(untied.decoder, own)
    shuffled = (scores(model) - model.decoder_bias).flip(2) + model.decoder_bias
    assert (scores(untied) - shuffled * MASK[..., None]).abs().max() <= 1e-6
    for loaded, said in ((model, True), (untied, False)):
        loaded.save_pretrained(tmp_path / "b")
        assert read_config(tmp_path / "b")["tie_word_embeddings"] is said


@pytest.mark.parametrize("family", ["Bert", "NomicBert"])
@pytest.mark.parametrize("trained", [False, True])
def test_untied_in_both_directions(trained: bool, family: str, tmp_path: Path) -> None:
    """There transformers has two biases, of which one is not computed with."""
    folder = build_head(tmp_path / "a", family, "MaskedLM", tie_word_embeddings=False)
    if trained:
        words = f"{'bert' if family == 'Bert' else 'nomic_bert'}.embeddings.word_embeddings.weight"
        change_tensors(folder, lambda t: t | {DECODER: t[words].roll(1, 0)})
    tensors = read_tensors(folder)
    assert not torch.equal(tensors[BIAS], tensors[DECODER_BIAS])
    model = NomicBertForMaskedLM.from_pretrained(folder)
    assert torch.equal(model.decoder, tensors[DECODER])
    assert torch.equal(model.decoder_bias, tensors[DECODER_BIAS])
    wanted = scores(theirs(folder))
    assert (scores(model) - wanted).abs().max() <= HIDDEN
    model.save_pretrained(tmp_path / "b")
    assert read_config(tmp_path / "b")["tie_word_embeddings"] is False
    again = theirs(tmp_path / "b")
    assert again.cls.predictions.decoder.weight is not again.get_input_embeddings().weight
    assert torch.equal(scores(again), wanted)
    assert same_bits(NomicBertForMaskedLM.from_pretrained(tmp_path / "b"), model)


def test_untied_without_a_decoder_is_an_error(folders: Folders, tmp_path: Path) -> None:
    folder = copied(folders["Bert", "MaskedLM"], tmp_path)
    edit_config(folder, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=f"1 missing: {DECODER}"):
        NomicBertForMaskedLM.from_pretrained(folder)


def head_of_2048(folder: Path, *names: str, **settings: Any) -> Path:
    """nomic-bert-2048's layout, with biases of these names in the head."""
    build_checkpoint(folder, "nomic-bert-2048", **settings)
    rows = {"cls.predictions.transform.dense.bias": 64, BIAS: read_config(folder)["vocab_size"]}
    made = {name: torch.rand(rows[name]) - 0.5 for name in names}
    change_tensors(folder, lambda tensors: tensors | made)
    return folder


BIASES = ("cls.predictions.transform.dense.bias", BIAS)


@torch.no_grad()
def test_nomics_own_head_without_biases(tmp_path: Path) -> None:
    folder = head_of_2048(tmp_path / "a")
    model, hub = NomicBertForMaskedLM.from_pretrained(folder), read_tensors(folder)
    assert model.transform.bias is None
    assert model.decoder_bias is None
    x = model.encoder(IDS, MASK).last_hidden_state
    x = F.silu(x @ hub["cls.predictions.transform.dense.weight"].T)
    at = "cls.predictions.transform.layer_norm"
    x = F.layer_norm(x, (64,), hub[f"{at}.weight"], hub[f"{at}.bias"], 1e-12)
    wanted = x @ hub["bert.embeddings.word_embeddings.weight"].T * MASK[..., None]
    assert (scores(model) - wanted).abs().max() <= 1e-5
    model.save_pretrained(tmp_path / "b")
    assert same_bits(NomicBertForMaskedLM.from_pretrained(tmp_path / "b"), model)


def test_nomics_own_head_with_biases(tmp_path: Path) -> None:
    """Whether or not config.json promises them, they are loaded where they are."""
    for name, settings in (("promised", {"mlp_fc1_bias": True}), ("not", {})):
        folder = head_of_2048(tmp_path / name, *BIASES, **settings)
        model, hub = NomicBertForMaskedLM.from_pretrained(folder), read_tensors(folder)
        assert torch.equal(model.transform.bias, hub[BIASES[0]])
        assert torch.equal(model.decoder_bias, hub[BIAS])


def test_biases_that_are_missing(folders: Folders, tmp_path: Path) -> None:
    for kept, lost in (BIASES, BIASES[::-1]):
        folder = head_of_2048(tmp_path / kept, kept)
        with pytest.raises(CheckpointError, match=f"1 missing: {lost}"):
            NomicBertForMaskedLM.from_pretrained(folder)
    folder = head_of_2048(tmp_path / "none", mlp_fc1_bias=True)
    with pytest.raises(CheckpointError, match=rf"2 missing: {BIAS}, {BIASES[0]}"):
        NomicBertForMaskedLM.from_pretrained(folder)
    for family, task, lost in (
        ("Bert", "MaskedLM", BIAS),
        ("NomicBert", "MaskedLM", BIASES[0]),
        ("Bert", "SequenceClassification", "classifier.bias"),
        ("NomicBert", "SequenceClassification", "pooler.dense.bias"),
        ("Bert", "TokenClassification", "classifier.bias"),
        ("NomicBert", "QuestionAnswering", "qa_outputs.bias"),
    ):
        folder = copied(folders[family, task], tmp_path / family / task)
        change_tensors(folder, lambda t, n=lost: {k: t[k] for k in t if not k.endswith(n)})
        with pytest.raises(CheckpointError, match=f"1 missing: {lost}"):
            OURS[task].from_pretrained(folder)


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_a_vocabulary_that_is_rounded_up(tied: bool, tmp_path: Path) -> None:
    folder = head_of_2048(tmp_path / "a", *BIASES, vocab_size=378)
    own = torch.randn(378, 64)
    if not tied:
        change_tensors(folder, lambda tensors: tensors | {DECODER: own})
    model, hub = NomicBertForMaskedLM.from_pretrained(folder), read_tensors(folder)
    assert model.config.vocab_size == 384
    assert torch.equal(model.decoder_bias, F.pad(hub[BIAS], (0, 6)))
    assert (model.decoder is None) == tied
    if not tied:
        assert torch.equal(model.decoder, F.pad(own, (0, 0, 0, 6)))
    found = scores(model)
    assert found.shape == (3, 5, 384)
    assert not found[..., 378:].any()
    model.save_pretrained(tmp_path / "b")
    assert same_bits(NomicBertForMaskedLM.from_pretrained(tmp_path / "b"), model)
    change_tensors(folder, lambda tensors: tensors | {BIAS: torch.zeros(377)})
    with pytest.raises(CheckpointError, match=r"cls.predictions.bias is \(377,\), wanted \(384,\)"):
        NomicBertForMaskedLM.from_pretrained(folder)


def test_what_heads_there_are_is_said(folders: Folders, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    NomicBert.from_pretrained(folders["Bert", "QuestionAnswering"]).save_pretrained(bare)
    asked = [(task, folder, there) for (_, there), folder in folders.items() for task in OURS]
    for task, folder, there in [*asked, *((task, bare, "none") for task in OURS)]:
        if task == there:
            continue
        message = rf"has no head for {task} \(it has {there}\)"
        message += "$" if task == "MaskedLM" else "; num_labels builds a new one, to be trained$"
        with pytest.raises(CheckpointError, match=message):
            OURS[task].from_pretrained(folder)


def test_heads_that_only_names_of_tensors_tell_of(folders: Folders, tmp_path: Path) -> None:
    """Texts and tokens are classified by layers of one name: the pooler decides."""
    folder = copied(folders["Bert", "SequenceClassification"], tmp_path)
    edit_config(folder, architectures=...)
    for task in ("SequenceClassification", "TokenClassification"):
        assert len(OURS[task].from_pretrained(folder).labels.names) == 3
    change_tensors(folder, lambda t: {n: x for n, x in t.items() if "pooler" not in n})
    with pytest.raises(CheckpointError, match=r"\(it has TokenClassification\)"):
        NomicBertForSequenceClassification.from_pretrained(folder)
    edit_config(folder, architectures=["BertForMultipleChoice"])
    with pytest.raises(CheckpointError, match=r"\(it has MultipleChoice\)"):
        NomicBertForTokenClassification.from_pretrained(folder)
    tensors = read_tensors(folder)
    tensors |= {f"qa_outputs.{kind}": tensors[f"classifier.{kind}"] for kind in ("weight", "bias")}
    save_file({n: t.clone() for n, t in tensors.items()}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"\(it has MultipleChoice, QuestionAnswering\)"):
        NomicBertForTokenClassification.from_pretrained(folder)


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
    """The encoder is the checkpoint's, the head is drawn as training begins, and it is said."""
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


def test_numbers_of_labels_that_cannot_be(folders: Folders) -> None:
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


def grown(name: str, tensor: Tensor) -> Tensor:
    """A head of 11 classes from one of 3."""
    if not name.startswith("classifier"):
        return tensor
    return torch.cat([tensor, torch.zeros(8, *tensor.shape[1:])])


@pytest.mark.parametrize(("family", "task"), ALL)
def test_saved_and_loaded_again(family: str, task: str, folders: Folders, tmp_path: Path) -> None:
    """To the bit by us, with the tensors of the hub's names; and as a whole by transformers."""
    folder = folders[family, task]
    model = OURS[task].from_pretrained(folder)
    model.save_pretrained(tmp_path)
    again = OURS[task].from_pretrained(tmp_path)
    assert same_bits(again, model)
    assert again.labels == model.labels
    assert torch.equal(scores(again), scores(model))
    saved, first = read_tensors(tmp_path), read_tensors(folder)
    assert saved.keys() == first.keys()
    assert all(torch.equal(saved[name], first[name]) for name in first)
    assert read_config(tmp_path)["architectures"] == [f"{family}For{task}"]
    if (family, task) in NATIVE:
        native = theirs(tmp_path)
        assert native.config.num_labels == (2 if task == "QuestionAnswering" else 3)
        assert (scores(model) - scores(native)).abs().max() <= HIDDEN


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_a_head_is_saved_as_it_is(
    dtype: torch.dtype, folders: Folders, tmp_path: Path
) -> None:
    model = NomicBertForMaskedLM.from_pretrained(folders["NomicBert", "MaskedLM"], dtype=dtype)
    model.save_pretrained(tmp_path)
    assert {tensor.dtype for tensor in read_tensors(tmp_path).values()} == {dtype}
    again = NomicBertForMaskedLM.from_pretrained(tmp_path, dtype="auto")
    assert again.dtype == dtype
    assert same_bits(again, model)


def test_an_encoder_from_under_a_head(folders: Folders) -> None:
    """NomicBert and a head read the same encoder from one folder."""
    for family, task in ALL:
        head = OURS[task].from_pretrained(folders[family, task])
        pooled = head.encoder.pooler is not None
        assert pooled == (task == "SequenceClassification")
        alone = NomicBert.from_pretrained(folders[family, task], add_pooling_layer=pooled)
        assert same_bits(alone, head.encoder)


def test_what_is_read_is_not_drawn_first(folders: Folders, monkeypatch: Any) -> None:
    """On the meta device, where models are built, that would import torch's compiler."""

    def draw(*args: Any, **keywords: Any) -> None:
        raise AssertionError("drawn")

    monkeypatch.setattr(torch.Tensor, "normal_", draw)
    for (_, task), folder in folders.items():
        OURS[task].from_pretrained(folder)
        NomicBert.from_pretrained(folder)
    with pytest.raises(AssertionError, match="drawn"):
        OURS["TokenClassification"].from_pretrained(folders["Bert", "MaskedLM"], num_labels=2)


@torch.no_grad()
@pytest.mark.parametrize(("name", "approximate"), [("gelu", "none"), ("gelu_new", "tanh")])
def test_gelu_of_the_words_head(name: str, approximate: str, tmp_path: Path) -> None:
    """NomicBERT's own code approximates under the newer name, in this head and not in the MLP."""
    build_checkpoint(tmp_path / "a", "nomic-v2-moe")
    made = NomicBertForMaskedLM(NomicBert.from_pretrained(tmp_path / "a").config).eval()
    for parameter in made.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.3)
    made.save_pretrained(tmp_path / "b")
    edit_config(tmp_path / "b", activation_function=name)
    model = NomicBertForMaskedLM.from_pretrained(tmp_path / "b")
    ids = torch.tensor([[2, 5, 6, 9, 30]])
    linear = torch.nn.functional.linear
    x = linear(model.encoder(ids)[0], model.transform.weight, model.transform.bias)
    x = model.transform_norm(torch.nn.functional.gelu(x, approximate=approximate))
    wanted = linear(x, model.get_input_embeddings().weight, model.decoder_bias)
    found = model(ids).logits
    assert (found - wanted).abs().max() <= 1e-4
    model.save_pretrained(tmp_path / "c")
    again = NomicBertForMaskedLM.from_pretrained(tmp_path / "c")
    assert torch.equal(again(ids).logits, found)
