"""Heads and their files: names on disk, missing parameters, save_pretrained."""

# An imported fixture is named again as an argument.
# ruff: noqa: F811

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import nomicbert
from nomicbert import (
    NomicBert,
    NomicBertForMaskedLM,
    NomicBertForPreTraining,
    NomicBertForSequenceClassification,
    NomicBertForTokenClassification,
)
from nomicbert.errors import CheckpointError
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
from tests.support.checkpoints import build_checkpoint, edit_config, read_config, read_tensors
from tests.support.heads import ALL, NATIVE, OURS, build_head, change_tensors, rename, theirs

BIAS, DECODER_BIAS = "cls.predictions.bias", "cls.predictions.decoder.bias"
DECODER = "cls.predictions.decoder.weight"


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
    """bert-base-uncased as on the hub: gamma and beta, and a stored decoder."""
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
    """transformers then has two biases, one of them unused."""
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
    """Biases on disk are loaded, whatever config.json states."""
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


def test_the_error_lists_existing_heads(folders: Folders, tmp_path: Path) -> None:
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


def test_heads_known_only_by_tensor_names(folders: Folders, tmp_path: Path) -> None:
    """Heads for texts and tokens store the same name: the pooler decides."""
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


@pytest.mark.parametrize(("family", "task"), ALL)
def test_saved_and_loaded_again(family: str, task: str, folders: Folders, tmp_path: Path) -> None:
    """Bit-identical for us, with hub names on disk; and loads in transformers."""
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


def test_the_encoder_of_a_head(folders: Folders) -> None:
    """NomicBert and a head read the same encoder from one folder."""
    for family, task in ALL:
        head = OURS[task].from_pretrained(folders[family, task])
        pooled = head.encoder.pooler is not None
        assert pooled == (task == "SequenceClassification")
        alone = NomicBert.from_pretrained(folders[family, task], add_pooling_layer=pooled)
        assert same_bits(alone, head.encoder)


def test_loaded_parameters_are_not_initialised(folders: Folders, monkeypatch: Any) -> None:
    """Models are built on the meta device, where initialising would import torch's compiler."""

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
def test_gelu_of_the_masked_lm_head(name: str, approximate: str, tmp_path: Path) -> None:
    """NomicBERT's own code uses tanh GELU for "gelu_new" in this head, but not in the MLP."""
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
