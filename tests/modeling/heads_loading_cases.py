"""Shared by the tests of heads and their files: inputs, checkpoints, scores."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.support.heads import ALL, build_head

IDS = torch.tensor([[2, 7, 9, 30, 4], [5, 8, 11, 12, 6], [9, 3, 3, 119, 1]])
MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
Folders = Mapping[tuple[str, str], Path]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Checkpoints of every head of both families, with three classes."""
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
    """Logits of our or transformers' model, with zeros on padding."""
    out = model(IDS, attention_mask=mask)
    found = out.logits if "logits" in out else torch.stack((out.start_logits, out.end_logits), 2)
    return torch.where(mask[..., None] == 1, found, 0) if found.dim() == 3 else found


def same_bits(a: nn.Module, b: nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    assert one.keys() == two.keys()
    return all(torch.equal(one[n], two[n]) and one[n].dtype == two[n].dtype for n in one)
