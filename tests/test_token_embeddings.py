"""output_value="token_embeddings": the hidden states of each text, special tokens included."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from nomicbert import Embedder
from nomicbert.cli import demo
from tests.checkpoints import build_checkpoint
from tests.sameness import same
from tests.vocabularies import SENTENCES

TEXTS = [*SENTENCES, "", SENTENCES[0]]


@pytest.mark.parametrize("variant", ["conan-v1", "nomic-v1.5", "nomic-v2-moe", "code-rank-embed"])
def test_they_are_the_models_hidden_states(variant: str, tmp_path: Path) -> None:
    embedder = Embedder(build_checkpoint(tmp_path, variant, num_hidden_layers=2))
    states = embedder.encode(TEXTS, prompt="", output_value="token_embeddings", batch_tokens=40)
    assert isinstance(states, list)
    ids, _ = embedder.tokenizer.encode(TEXTS, 512)
    for row, found in zip(ids, states, strict=True):
        with torch.no_grad():
            wanted = embedder.model(torch.tensor([row])).last_hidden_state[0]
        assert found.shape == wanted.shape
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    alone = embedder.encode(TEXTS[1], prompt="", output_value="token_embeddings")
    assert isinstance(alone, torch.Tensor)
    for a, b in zip(alone.numpy(), states[1].numpy(), strict=True):
        assert same(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_models_dtype_stays(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path, "conan-v1", num_hidden_layers=1)
    wanted = Embedder(folder).encode(TEXTS, output_value="token_embeddings")
    found = Embedder(folder, dtype=dtype).encode(TEXTS, output_value="token_embeddings")
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.float(), b, rtol=0.05, atol=0.05)


def test_a_prompt_is_part_of_the_text_and_long_texts_are_cut(tmp_path: Path) -> None:
    embedder = Embedder(build_checkpoint(tmp_path, "conan-v1", num_hidden_layers=1))
    prompted = embedder.encode("fox", prompt="the dog ", output_value="token_embeddings")
    whole = embedder.encode("the dog fox", output_value="token_embeddings")
    assert torch.equal(prompted, whole)
    with pytest.warns(UserWarning, match="1 of 1 texts were longer than 12 tokens"):
        cut = embedder.encode("fox " * 30, max_length=12, output_value="token_embeddings")
    assert cut.shape == (12, 64)


@pytest.mark.parametrize(
    "keywords",
    [
        {"matryoshka_dim": 8},
        {"truncate_dim": 8},
        {"normalize_embeddings": True},
        {"precision": "int8"},
    ],
)
def test_what_is_for_vectors_is_refused(keywords: dict[str, object], tmp_path: Path) -> None:
    embedder = Embedder(build_checkpoint(tmp_path, "conan-v1", num_hidden_layers=1))
    with pytest.raises(ValueError, match=f"{next(iter(keywords))} is for vectors"):
        embedder.encode(TEXTS, output_value="token_embeddings", **keywords)


@pytest.mark.skipif(
    importlib.util.find_spec(demo.WEIGHTS_PACKAGE) is None,
    reason="the packaged weights of all-MiniLM-L6-v2 are not installed",
)
def test_sentence_transformers_gives_the_same() -> None:
    folder = demo.packaged_weights()
    texts = ["What is TSNE?", "Who is Laurens van der Maaten, and what has he done since?", ""]
    theirs = SentenceTransformer(str(folder), device="cpu")
    wanted = theirs.encode(texts, output_value="token_embeddings")
    found = Embedder(folder).encode(texts, output_value="token_embeddings")
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=0, atol=1e-5)
