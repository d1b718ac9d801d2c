"""Cards of saved encoders and heads: what is in them holds, and their snippets run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub import ModelCard

from nomicbert import ModelCardData, NomicBert, NomicBertForSequenceClassification
from nomicbert.modeling.cards import TASKS
from tests.support.checkpoints import VARIANTS, build_checkpoint
from tests.support.heads import ALL, NATIVE, OURS, build_head

IDS = torch.tensor([[2, 7, 9, 11]])
MASK = torch.ones_like(IDS)


def card_of(folder: Path) -> Any:
    return ModelCard.load(folder / "README.md")


def snippets(text: str) -> dict[str, str]:
    found = re.findall(r"^With ([\w-]+):\n\n```python\n(.*?)```$", text, re.M | re.S)
    return dict(found)


def run(code: str, folder: Path) -> dict[str, Any]:
    names: dict[str, Any] = {"input_ids": IDS, "attention_mask": MASK}
    exec(code.replace("path/to/this/folder", str(folder)), names)
    return names


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_card_of_an_encoder(variant: str, tmp_path: Path) -> None:
    build_checkpoint(tmp_path / "a", variant)
    model = NomicBert.from_pretrained(tmp_path / "a")
    model.save_pretrained(tmp_path / "b")
    card = card_of(tmp_path / "b")
    assert card.data.pipeline_tag == "feature-extraction"
    assert card.data.tags == [model.config.model_type, "nomicbert"]
    count = sum(p.numel() for p in model.parameters())
    assert f"| Parameters | {count:,}, float32 |" in card.text
    assert ("| Experts |" in card.text) == bool(model.config.num_experts)
    assert "`save_pretrained` writes config.json and the weights, but no tokenizer" in card.text
    codes = snippets(card.text)
    assert card.data.library_name == ("transformers" if "transformers" in codes else "nomicbert")
    assert ("transformers" in codes) == ("load it with nomicbert" not in card.text)
    wanted = model(IDS, MASK)[0]
    assert torch.equal(run(codes["nomicbert"], tmp_path / "b")["output"][0], wanted)
    if "transformers" in codes:
        theirs = run(codes["transformers"], tmp_path / "b")["model"].eval()
        with torch.no_grad():
            found = theirs(IDS, attention_mask=MASK)[0]
        assert (found - wanted).abs().max() <= 1e-4
    else:
        assert model.config.model_type == "nomic_bert"


def test_a_checkpoint_of_their_own_class_is_theirs(tmp_path: Path) -> None:
    """So that the card does not leave out what they can load."""
    build_checkpoint(tmp_path / "a", "nomic-v1.5")
    NomicBert.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    assert set(snippets(card_of(tmp_path / "b").text)) == {"nomicbert", "transformers"}


def test_texts_beyond_the_trained_length_are_ours(tmp_path: Path) -> None:
    """Dynamic NTK scaling, which transformers computes otherwise above that length."""
    for positions, libraries in ((48, {"nomicbert", "transformers"}), (64, {"nomicbert"})):
        folder = tmp_path / str(positions)
        build_checkpoint(folder, "nomic-v1", n_positions=positions, max_trained_positions=48)
        NomicBert.from_pretrained(folder).save_pretrained(folder)
        assert set(snippets(card_of(folder).text)) == libraries


@pytest.mark.parametrize(("family", "task"), ALL)
def test_the_card_of_a_head(family: str, task: str, tmp_path: Path) -> None:
    build_head(tmp_path / "a", family, task)
    model = OURS[task].from_pretrained(tmp_path / "a")
    model.save_pretrained(tmp_path / "b")
    card = card_of(tmp_path / "b")
    assert card.data.pipeline_tag == TASKS[task][0]
    assert f"# {type(model).__name__}\n" in card.text
    codes = snippets(card.text)
    assert ("transformers" in codes) == ((family, task) in NATIVE)
    wanted = model(IDS, MASK)
    found = run(codes["nomicbert"], tmp_path / "b")["output"]
    assert torch.equal(found[0], wanted[0])
    labels = task.endswith("Classification")
    assert (f"| Labels | {len(model.labels.names)}: {model.labels.names[0]}" in card.text) == labels
    if "transformers" in codes:
        theirs = run(codes["transformers"], tmp_path / "b")["model"].eval()
        assert type(theirs) is getattr(transformers, f"{family}For{task}")
        with torch.no_grad():
            assert (theirs(IDS, attention_mask=MASK)[0] - wanted[0]).abs().max() <= 1e-4


def test_many_labels_are_not_all_listed(tmp_path: Path) -> None:
    build_head(tmp_path / "a", "Bert", "SequenceClassification")
    head = NomicBertForSequenceClassification
    model = head.from_pretrained(tmp_path / "a", num_labels=30, ignore_mismatched_sizes=True)
    model.save_pretrained(tmp_path / "b")
    text = card_of(tmp_path / "b").text
    assert "| Labels | 30: LABEL_0, " in text
    assert "LABEL_19, ... |" in text
    assert "LABEL_20" not in text


def test_a_model_that_was_not_loaded_has_no_origin(tmp_path: Path) -> None:
    build_checkpoint(tmp_path / "a", "minilm")
    loaded = NomicBert.from_pretrained(tmp_path / "a")
    model = NomicBert(loaded.config)
    model.model_card_data = ModelCardData(license="mit")
    model.save_pretrained(tmp_path / "b")
    card = card_of(tmp_path / "b")
    assert (card.data.base_model, card.data.license) == (None, "mit")


def test_a_head_keeps_the_licence_of_its_encoder(tmp_path: Path) -> None:
    build_checkpoint(tmp_path / "a", "minilm")
    (tmp_path / "a" / "README.md").write_text(
        "---\nlicense: mit\nbase_model: org/a\n---\n", "utf-8"
    )
    head = NomicBertForSequenceClassification.from_pretrained(tmp_path / "a", num_labels=3)
    head.save_pretrained(tmp_path / "b")
    card = card_of(tmp_path / "b")
    assert (card.data.base_model, card.data.license) == ("org/a", "mit")


def test_a_card_that_is_there_stays(tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "minilm")
    (tmp_path / "README.md").write_bytes(b"mine\r\n")
    NomicBert.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_bytes() == b"mine\r\n"


def test_a_failed_save_leaves_no_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_checkpoint(tmp_path / "a", "minilm")
    model = NomicBert.from_pretrained(tmp_path / "a")

    def fails(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("nomicbert.loading.tensor_files.save_file", fails)
    with pytest.raises(OSError, match="no space left"):
        model.save_pretrained(tmp_path / "b")
    assert not (tmp_path / "b" / "README.md").exists()
