"""Folders of models with a head, as transformers writes them, with weights that expose faults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from nomicbert import (
    NomicBertForMaskedLM,
    NomicBertForQuestionAnswering,
    NomicBertForSequenceClassification,
    NomicBertForTokenClassification,
)
from tests.support.checkpoints import edit_config, read_config
from tests.support.redraw import Tensors, redraw

SIZES = {
    "vocab_size": 120,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
}
OURS = {
    "MaskedLM": NomicBertForMaskedLM,
    "SequenceClassification": NomicBertForSequenceClassification,
    "TokenClassification": NomicBertForTokenClassification,
    "QuestionAnswering": NomicBertForQuestionAnswering,
}
# transformers has no QA head for NomicBERT
NATIVE = [
    (family, task)
    for family in ("Bert", "NomicBert")
    for task in OURS
    if hasattr(transformers, f"{family}For{task}")
]
ALL = [(family, task) for family in ("Bert", "NomicBert") for task in OURS]


def build_head(folder: Path, family: str, task: str, *, seed: int = 0, **settings: Any) -> Path:
    """Write config.json and model.safetensors of a tiny model.

    Args:
        folder: created if missing.
        family: "Bert" or "NomicBert".
        task: one of OURS.
        seed: of the weights.
        settings: of transformers' configuration.
    Returns: the folder.
    """
    native = (family, task) in NATIVE
    known = task if native else "TokenClassification"
    config = getattr(transformers, f"{family}Config")(**SIZES | settings)
    getattr(transformers, f"{family}For{known}")(config).save_pretrained(folder)
    change_tensors(folder, lambda tensors: redraw(tensors, {}, seed))
    if not native:
        rename(folder, "classifier", "qa_outputs")
        edit_config(folder, architectures=[f"{family}For{task}"])
    return folder


def change_tensors(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    """Rewrite the folder's weights."""
    changed = change(load_file(folder / "model.safetensors"))
    save_file(changed, folder / "model.safetensors", {"format": "pt"})


def rename(folder: Path, old: str, new: str) -> None:
    """Replace a part of tensor names; at least one must match."""
    before = set(load_file(folder / "model.safetensors"))
    change_tensors(folder, lambda tensors: {n.replace(old, new): t for n, t in tensors.items()})
    assert set(load_file(folder / "model.safetensors")) != before


def theirs(folder: Path, attention: str = "sdpa") -> torch.nn.Module:
    """transformers' model of a folder, after a check that it uses all tensors and lacks none."""
    [architecture] = read_config(folder)["architectures"]
    model, report = getattr(transformers, architecture).from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32, attn_implementation=attention
    )
    assert not any(report.values()), report
    return model.eval()
