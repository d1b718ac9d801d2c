"""Rows that are not finite: one warning per call, whatever the call returns."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from nomicbert import CrossEncoder, Embedder, VectorWarning
from nomicbert.runtime.remarks import broken
from tests.support.checkpoints import build_checkpoint
from tests.support.rerankers import build_reranker

SAFE = "model.safetensors"


def scaled(folder: Path, ending: str, factor: float) -> Path:
    """Multiply some weights: damaged, but finite."""
    tensors = load_file(folder / SAFE)
    for name in tensors:
        if name.endswith(ending):
            tensors[name] *= factor
    save_file(tensors, folder / SAFE)
    return folder


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    folder = build_checkpoint(tmp_path_factory.mktemp("damaged"), "nomic-v1.5", num_hidden_layers=1)
    # products of two such weights overflow float32
    return Embedder(scaled(scaled(folder, "fc11.weight", 1e25), "fc12.weight", 1e25))


CALLS: dict[str, Callable[[Embedder], Any]] = {
    "vectors": lambda e: e.encode(["a fox", "a dog"], prompt=""),
    "one vector": lambda e: e.encode("a fox", prompt=""),
    "a tensor": lambda e: e.encode(["a fox"], prompt="", convert_to_tensor=True),
    "short": lambda e: e.encode(["a fox"], prompt="", matryoshka_dim=8),
    "binary": lambda e: e.encode(["a fox"], prompt="", precision="binary"),
    "chunks": lambda e: e.encode(["fox " * 60], prompt="", truncate="chunk", max_length=9),
    "windows": lambda e: e.encode(["fox " * 60], prompt="", truncate="mean", max_length=12),
    "hidden states": lambda e: e.encode(["a fox"], prompt="", output_value="token_embeddings"),
    "a stream": lambda e: list(e.encode_iter(["a fox"] * 3, prompt="")),
    "two processes": lambda e: e.encode(["a fox"] * 3, prompt="", device=["cpu", "cpu"]),
}


@pytest.mark.parametrize("call", CALLS)
def test_finite_weights_that_give_no_finite_vector(call: str, damaged: Embedder) -> None:
    with pytest.warns(VectorWarning) as caught:
        CALLS[call](damaged)
    (warning,) = (one for one in caught if one.category is VectorWarning)
    assert "hold NaN or infinite values: the weights are damaged, or too large" in str(
        warning.message
    )
    assert warning.filename == __file__


def test_a_stream_that_is_closed_early_warns_too(damaged: Embedder) -> None:
    rows = iter(damaged.encode_iter(["a fox"] * 3, prompt=""))
    next(rows)
    with pytest.warns(VectorWarning):
        rows.close()


def test_scores(tmp_path: Path) -> None:
    folder = scaled(build_reranker(tmp_path), "intermediate.dense.weight", 1e25)
    reranker = CrossEncoder(scaled(folder, "output.dense.weight", 1e25))
    with pytest.warns(VectorWarning, match="rows computed from 2 pairs hold NaN"):
        reranker.predict([("who", "a fox"), ("what", "a dog")])


def test_large_and_finite_is_no_reason_to_warn(tmp_path: Path) -> None:
    """Not even where the sum of a row overflows; zeros and empty calls neither."""
    folder = build_checkpoint(tmp_path, "nomic-v1.5", num_hidden_layers=1)
    embedder = Embedder(scaled(folder, "norm2.weight", 1e37))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(embedder.encode(["a fox", ""], prompt="")).all()
        assert embedder.encode([]).shape == (0, 64)
    with pytest.warns(VectorWarning, match="'float16' holds values up to 65504, and these vectors"):
        embedder.encode(["a fox"], prompt="", precision="float16")


def test_rows_are_counted() -> None:
    rows = torch.ones(5, 3)
    rows[1, 2], rows[4, 0] = float("nan"), float("-inf")
    assert int(broken(rows)) == 2
    assert int(broken(torch.empty(0, 3))) == 0
