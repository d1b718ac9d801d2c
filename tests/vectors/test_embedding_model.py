"""EmbeddingModel: encoder and pooling as one module, with gradients, and no needless work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nomicbert import Embedder
from nomicbert.errors import TextError
from nomicbert.modeling.packing import pack
from nomicbert.user_warnings import TruncationWarning
from nomicbert.vectors.pooling import Finish
from tests.support.checkpoints import build_checkpoint

IDS = [[5, 6, 7, 8], [9], [10, 11, 12], [13, 14]]
BOUND = 1e-6


def pooled_by_hand(hidden: list[Tensor], mode: str) -> Tensor:
    if mode == "mean":
        return torch.stack([rows.mean(0) for rows in hidden])
    return torch.stack([rows[0 if mode == "cls" else -1] for rows in hidden])


@pytest.mark.parametrize("mode", ["mean", "cls", "lasttoken"])
def test_forward_is_encoder_then_pooling(mode: Any, tmp_path: Path) -> None:
    """If pooling uses one token per text, the last layer computes no other token."""
    build_checkpoint(tmp_path, "nomic-v1.5", num_hidden_layers=2)
    model = Embedder(tmp_path).embedding_model
    model.pooling.modes = (mode,)
    core, asked = model.encoder.core, []

    def noted(ctx: Any, rows: Tensor | None = None) -> Tensor:
        asked.append(rows)
        found = core(ctx, rows)
        assert len(found) == (len(IDS) if rows is not None else sum(map(len, IDS)))
        return found

    with torch.inference_mode():
        whole = model.encoder.encode_packed(pack(IDS))
        wanted = pooled_by_hand([*torch.split(whole, list(map(len, IDS)))], mode)
        model.encoder.core = noted  # type: ignore[method-assign]
        pooled, found = model.pooled(pack(IDS)), model(pack(IDS))
        short = model(pack(IDS), Finish(matryoshka_dim=16))
        finished = model.finish(pooled, Finish(matryoshka_dim=16))
    assert (pooled - wanted).abs().max() <= BOUND
    assert torch.equal(found, pooled)  # this checkpoint has no steps after pooling
    assert (short - finished).abs().max() <= BOUND
    assert short.shape == (len(IDS), 16)
    last = {"mean": None, "cls": [0, 4, 5, 8], "lasttoken": [3, 4, 7, 9]}[mode]
    assert [None if rows is None else rows.tolist() for rows in asked] == [last] * 3


def test_one_module_to_move_and_train(tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "conan-v1", num_hidden_layers=1)
    embedder = Embedder(tmp_path)
    model = embedder.embedding_model
    assert (embedder.model, embedder.pooling) == (model.encoder, model.pooling)
    dense = model.pooling.steps[0].linear
    assert {id(p) for p in model.parameters()} >= {id(dense.weight), id(dense.bias)}
    model.train()
    assert model.encoder.training
    assert model.pooling.training
    embedder.encode("a text")
    assert not model.encoder.training
    model.double()
    assert {p.dtype for p in model.parameters()} == {torch.float64}


def test_a_batch_of_texts_keeps_gradients(tmp_path: Path) -> None:
    """The vectors of `encode`, with an autograd graph."""
    build_checkpoint(tmp_path, "nomic-v1.5", num_hidden_layers=2)
    embedder = Embedder(tmp_path)
    texts = ["the river is long", "fox"]
    found = embedder.embedding_model(embedder.batch(texts, "search_query"))
    wanted = embedder.encode(texts, prompt_name="search_query", convert_to_tensor=True)
    assert (found - wanted).abs().max() <= BOUND * wanted.norm(dim=1).min()
    found.square().sum().backward()
    assert all(p.grad is not None for p in embedder.embedding_model.parameters())
    embedder.max_seq_length = 8
    with pytest.warns(TruncationWarning, match="1 of 2 texts were longer than 8 tokens") as told:
        assert embedder.batch(["fox", "fox " * 9]).lengths == (3, 8)
    assert told[0].filename == __file__
    with pytest.raises(ValueError, match="unknown prompt_name 'query'"):
        embedder.batch(texts, "query")
    assert embedder.batch("fox").lengths == (3,)
    for wrong, error in (([3], "input 0 must be a str"), (["a", "\ud800"], "1 is not valid Uni")):
        with pytest.raises((TypeError, TextError), match=error):
            embedder.batch(wrong)  # type: ignore[arg-type]
