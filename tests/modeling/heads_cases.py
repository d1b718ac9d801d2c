"""Shared by the tests of heads: inputs, checkpoints of every head, scores."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.heads import ALL, OURS, build_head

IDS = torch.tensor([[2, 7, 9, 30, 4], [5, 8, 11, 12, 6], [9, 3, 3, 119, 1]])
MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
NEAR = 1e-6
Folders = Mapping[tuple[str, str], Path]
both_families = pytest.mark.parametrize("family", ["Bert", "NomicBert"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Checkpoints of every head of both families, with dropout."""
    found = {}
    for family, task in ALL:
        count = 2 if task == "QuestionAnswering" else 3
        found[family, task] = build_head(
            tmp_path_factory.mktemp(family + task),
            family,
            task,
            num_labels=count,
            hidden_dropout_prob=0.1,
            attention_probs_dropout_prob=0.1,
        )
    return found


@pytest.fixture(scope="module")
def load(folders: Folders) -> Callable[..., Any]:
    """A private copy of a model, which is cheaper than loading it again."""
    models = {pair: OURS[pair[1]].from_pretrained(folder) for pair, folder in folders.items()}

    def loaded(family: str, task: str, **keywords: Any) -> Any:
        if keywords:
            return OURS[task].from_pretrained(folders[family, task], **keywords)
        return copy.deepcopy(models[family, task])

    return loaded


def labels_of(task: str, mask: Tensor = MASK) -> dict[str, Tensor]:
    if task == "SequenceClassification":
        return {"labels": torch.arange(len(mask)) % 3}
    if task == "QuestionAnswering":
        first = mask.argmax(1)
        return {"start_positions": first, "end_positions": first + 1}
    labels = torch.arange(mask.numel()).view_as(mask) % 3
    return {"labels": torch.where(mask == 1, labels, -100)}


def scores(out: Any) -> Tensor:
    return out.logits if "logits" in out else torch.stack((out.start_logits, out.end_logits), 2)


def distance(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return (a.double() - b.double()).abs().max().item()


def changed(tensor: Tensor, place: Any, value: float) -> Tensor:
    tensor = tensor.clone()
    tensor[place] = value
    return tensor
