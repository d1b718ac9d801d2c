"""Heads with another vocabulary: resized, replaced and refused tables of words."""

# An imported fixture is named again as an argument.
# ruff: noqa: F811

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nomicbert import NomicBert, NomicBertForMaskedLM
from tests.modeling.heads_cases import (  # noqa: F401
    IDS,
    MASK,
    NEAR,
    Folders,
    both_families,
    changed,
    distance,
    folders,
    labels_of,
    load,
    scores,
)
from tests.parity.bounds import HIDDEN
from tests.support.checkpoints import read_config
from tests.support.heads import build_head, change_tensors, theirs

DECODER = "cls.predictions.decoder.weight"


def untied(folder: Path) -> Path:
    """The same model with an untied decoder."""
    table = 0.05 * torch.randn(120, 64, generator=torch.Generator().manual_seed(5))
    change_tensors(folder, lambda tensors: tensors | {DECODER: table})
    return folder


@torch.no_grad()
@pytest.mark.parametrize("rows", [131, 100])
@pytest.mark.parametrize("tied", [True, False])
@both_families
def test_another_vocabulary(family: str, tied: bool, rows: int, tmp_path: Path) -> None:
    """Old words keep their rows in both tables; new rows are near their mean."""
    folder = build_head(tmp_path / "a", family, "MaskedLM")
    model = NomicBertForMaskedLM.from_pretrained(folder if tied else untied(folder))
    ids = IDS.clamp(max=99)
    before, kept = scores(model(ids, MASK)), min(rows, 120)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    table = model.resize_token_embeddings(rows)
    assert table is model.get_input_embeddings()
    assert table.weight.shape == (rows, 64)
    assert model.config.vocab_size == rows
    grown = ["encoder.embeddings.word.weight", "decoder_bias"] + ["decoder"] * (not tied)
    for name, tensor in model.state_dict().items():
        if name in grown:
            assert len(tensor) == rows
            assert torch.equal(tensor[:kept], state[name][:kept])
        else:
            assert torch.equal(tensor, state[name])
    if rows > 120:
        for name in grown:
            old, new = state[name], model.state_dict()[name][120:]
            mean = 0 if tied and name == "decoder_bias" else old.mean(0)
            assert (new - mean).abs().max() <= 3e-4 * old.std()
    found = scores(model(ids, MASK))
    assert found.shape == (3, 5, rows)
    assert distance(found[..., :kept], before[..., :kept]) <= NEAR
    labels = labels_of("MaskedLM")["labels"]
    last = changed(labels, (0, 0), rows - 1)
    assert model(changed(ids, (0, 0), rows - 1), MASK, labels=last).loss.isfinite()
    with pytest.raises(ValueError, match=f"labels must be 0 to {rows - 1}, or -100"):
        model(ids, MASK, labels=changed(labels, (0, 0), rows))
    with pytest.raises(ValueError, match=f"contains {rows}, but the table has {rows} rows"):
        model(changed(ids, (0, 0), rows), MASK)
    model.save_pretrained(tmp_path / "b")
    assert read_config(tmp_path / "b")["vocab_size"] == rows
    again = NomicBertForMaskedLM.from_pretrained(tmp_path / "b")
    assert torch.equal(scores(again(ids, MASK)), found)
    native = theirs(tmp_path / "b")
    tables = native.get_input_embeddings().weight, native.get_output_embeddings().weight
    assert (tables[0] is tables[1]) == tied
    theirs_too = native(ids, attention_mask=MASK).logits * MASK[..., None]
    assert distance(found, theirs_too) <= HIDDEN


@torch.no_grad()
@pytest.mark.parametrize("rows", [131, 100])
@pytest.mark.parametrize("tied", [True, False])
def test_another_table_of_words(tied: bool, rows: int, tmp_path: Path) -> None:
    """The decoder follows its size, and its values if tied."""
    folder = build_head(tmp_path, "NomicBert", "MaskedLM")
    model = NomicBertForMaskedLM.from_pretrained(folder if tied else untied(folder))
    ids, kept = IDS.clamp(max=99), min(rows, 120)
    before = scores(model(ids, MASK))
    table = torch.nn.Embedding(rows, 64)
    table.weight[:kept] = model.get_input_embeddings().weight[:kept]
    table.weight[kept - 1] += 1
    model.set_input_embeddings(table)
    found = scores(model(ids, MASK))
    assert found.shape == (3, 5, rows)
    assert distance(found[..., : kept - 1], before[..., : kept - 1]) <= HIDDEN
    assert (distance(found[..., kept - 1], before[..., kept - 1]) > 1) == tied


@pytest.mark.parametrize("rows", [131, 100])
@pytest.mark.parametrize("task", ["SequenceClassification", "QuestionAnswering"])
def test_another_vocabulary_under_other_heads(
    task: str, rows: int, load: Callable[..., Any]
) -> None:
    model, ids = load("Bert", task), IDS.clamp(max=99)
    at_first = scores(model(ids, MASK)).detach()
    model.resize_token_embeddings(rows)
    assert distance(scores(model(ids, MASK)).detach(), at_first) <= NEAR
    model(changed(ids, (0, 0), rows - 1), MASK, **labels_of(task)).loss.backward()
    gradient = model.get_input_embeddings().weight.grad
    assert gradient.shape == (rows, 64)
    assert gradient[rows - 1].any()


def test_invalid_vocabularies_are_refused(load: Callable[..., Any]) -> None:
    model = load("Bert", "MaskedLM")
    for rows in (0, -3):
        with pytest.raises(ValueError, match=f"new_num_tokens must be at least 1, not {rows}"):
            model.resize_token_embeddings(rows)
    for rows in (2.5, True, "7"):
        with pytest.raises(TypeError, match="new_num_tokens must be an integer"):
            model.resize_token_embeddings(rows)
    assert len(model.get_input_embeddings().weight) == len(model.decoder_bias) == 120


def test_another_vocabulary_keeps_what_is_frozen_and_its_dtype(load: Callable[..., Any]) -> None:
    model = load("NomicBert", "MaskedLM", dtype=torch.bfloat16)
    model.get_input_embeddings().weight.requires_grad_(False)
    model.resize_token_embeddings(140)
    words, bias = model.get_input_embeddings().weight, model.decoder_bias
    assert (words.requires_grad, bias.requires_grad) == (False, True)
    assert words.dtype == bias.dtype == torch.bfloat16
    bias.requires_grad_(False)
    model.resize_token_embeddings(60)
    assert not model.decoder_bias.requires_grad
    model.get_input_embeddings().weight.requires_grad_(True)
    assert model.resize_token_embeddings(50).weight.requires_grad


def test_an_encoders_vocabulary(folders: Folders, tmp_path: Path) -> None:
    model = NomicBert.from_pretrained(folders["NomicBert", "MaskedLM"])
    ids = IDS.clamp(max=99)
    at_first = model(ids, MASK).last_hidden_state.detach()
    for rows in (200, 100):
        assert model.resize_token_embeddings(rows) is model.get_input_embeddings()
        assert torch.equal(model(ids, MASK).last_hidden_state, at_first)
        model.save_pretrained(tmp_path)
        assert read_config(tmp_path)["vocab_size"] == rows
        assert NomicBert.from_pretrained(tmp_path).config.vocab_size == rows
