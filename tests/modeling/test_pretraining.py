"""A BertForPreTraining checkpoint keeps its pooler and its next-sentence head."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from nomicbert import NomicBertForMaskedLM, NomicBertForPreTraining
from tests.support.checkpoints import read_config
from tests.support.heads import SIZES, build_head, change_tensors, theirs
from tests.support.redraw import redraw

IDS = torch.tensor([[5, 6, 7, 8]])
KEPT = ("bert.pooler.dense", "cls.seq_relationship")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = transformers.BertConfig(**SIZES)
    transformers.BertForPreTraining(config).save_pretrained(tmp_path / "m")
    change_tensors(tmp_path / "m", lambda tensors: redraw(tensors, {}))
    return tmp_path / "m"


def state(folder: Path) -> dict[str, torch.Tensor]:
    model = theirs(folder)
    assert type(model) is transformers.BertForPreTraining
    return model.state_dict()


def test_all_tensors_come_back(folder: Path, tmp_path: Path) -> None:
    """Through our class, and again through transformers' own, from the files of each."""
    wanted = state(folder)
    assert NomicBertForPreTraining is NomicBertForMaskedLM
    model = NomicBertForPreTraining.from_pretrained(folder)
    model.save_pretrained(tmp_path / "ours")
    assert read_config(tmp_path / "ours")["architectures"] == ["BertForPreTraining"]
    theirs(tmp_path / "ours").save_pretrained(tmp_path / "back")
    NomicBertForMaskedLM.from_pretrained(tmp_path / "back").save_pretrained(tmp_path / "twice")
    for place in ("ours", "back", "twice"):
        found = state(tmp_path / place)
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert torch.equal(found[name], tensor), (place, name)
    with torch.no_grad():
        mine, truth = theirs(tmp_path / "ours")(IDS), theirs(folder)(IDS)
    assert torch.equal(mine.seq_relationship_logits, truth.seq_relationship_logits)


def test_what_is_kept_is_no_parameter(folder: Path, tmp_path: Path) -> None:
    """Training leaves it as it was; it follows copies, and the dtype of the file."""
    model = NomicBertForMaskedLM.from_pretrained(folder)
    plain = {name for name, _ in model.named_parameters()}
    assert not [name for name in [*plain, *model.state_dict()] if "pool" in name or "seq" in name]
    wanted = {f"{stem}.{kind}" for stem in KEPT for kind in ("weight", "bias")}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    original = load_file(folder / "model.safetensors")
    for number, one in enumerate((model, copy.deepcopy(model), pickle.loads(pickle.dumps(model)))):
        one.save_pretrained(tmp_path / str(number))
        saved = load_file(tmp_path / str(number) / "model.safetensors")
        assert wanted <= saved.keys()
        for name in wanted:
            assert torch.equal(saved[name], original[name])
        trained = "bert.encoder.layer.0.output.dense.weight"
        assert torch.equal(saved[trained], 2 * original[trained])
    model.half().save_pretrained(tmp_path / "half")
    saved = load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float16}
    for name in wanted:
        assert torch.equal(saved[name], original[name].half())


def test_from_a_state_dict(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    model = NomicBertForMaskedLM.from_pretrained(folder, state_dict=tensors)
    tensors["cls.seq_relationship.weight"].zero_()  # copied
    model.save_pretrained(tmp_path / "saved")
    wanted = load_file(folder / "model.safetensors")["cls.seq_relationship.weight"]
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert torch.equal(saved["cls.seq_relationship.weight"], wanted)


@pytest.mark.parametrize("family", ["Bert", "NomicBert"])
def test_a_plain_masked_lm_checkpoint_stays_one(family: str, tmp_path: Path) -> None:
    folder = build_head(tmp_path / "m", family, "MaskedLM")
    NomicBertForMaskedLM.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    assert read_config(tmp_path / "saved")["architectures"] == [f"{family}ForMaskedLM"]
    assert type(theirs(tmp_path / "saved")).__name__ == f"{family}ForMaskedLM"
