"""Embedder.save_pretrained: we and sentence-transformers get the same vectors from it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import sentence_transformers
import torch
from sentence_transformers import SentenceTransformer

from nomicbert import CheckpointError, CrossEncoder, Embedder
from nomicbert.text.prompts import CARDS_PROMPTS
from tests.parity.bounds import EMBEDDING
from tests.support.checkpoints import VARIANTS, build_checkpoint
from tests.support.rerankers import build_reranker
from tests.support.vocabularies import SENTENCES

NATIVE = ("nomic-v1.5", "nomic-v1-unsupervised", "conan-v1", "minilm", "bge-en", "e5")


def vectors(embedder: Embedder) -> np.ndarray:
    found: np.ndarray = embedder.encode(SENTENCES, prompt="")
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_saved_embedder_is_the_same(variant: str, tmp_path: Path) -> None:
    build_checkpoint(tmp_path / "a", variant)
    bare = not (tmp_path / "a" / "modules.json").exists()
    embedder = Embedder(tmp_path / "a", pooling="mean" if bare else None)
    embedder.save_pretrained(tmp_path / "deep" / "b")
    again = Embedder(tmp_path / "deep" / "b")
    assert repr(again) == repr(embedder)
    assert again.prompts == embedder.prompts
    assert again.similarity_fn_name == embedder.similarity_fn_name
    assert again.pooling.matryoshka_layer_norm == embedder.pooling.matryoshka_layer_norm
    np.testing.assert_array_equal(vectors(again), vectors(embedder))


@pytest.mark.parametrize("variant", NATIVE)
def test_sentence_transformers_loads_it(variant: str, tmp_path: Path) -> None:
    # wide enough for a bound on the elements of unit vectors
    build_checkpoint(tmp_path / "a", variant, hidden_size=256)
    embedder = Embedder(tmp_path / "a")
    embedder.save_pretrained(tmp_path / "b")
    truth = SentenceTransformer(str(tmp_path / "b"), device="cpu")
    assert truth.max_seq_length == embedder.max_seq_length
    found, wanted = (
        torch.nn.functional.normalize(torch.as_tensor(x)).numpy()
        for x in (vectors(embedder), truth.encode(SENTENCES, prompt=""))
    )
    assert np.abs(found - wanted).max() <= EMBEDDING
    prompts = {k: v for k, v in truth.prompts.items() if v}
    assert prompts == {} or prompts == {k: v for k, v in embedder.prompts.items() if v}


def test_into_the_folder_it_came_from(tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "conan-v1")
    embedder = Embedder(tmp_path)
    wanted = vectors(embedder)
    embedder.save_pretrained(tmp_path)
    np.testing.assert_array_equal(vectors(Embedder(tmp_path)), wanted)


def test_changed_settings_are_saved(tmp_path: Path) -> None:
    build_checkpoint(tmp_path / "a", "minilm")
    embedder = Embedder(tmp_path / "a")
    embedder.max_seq_length = 40
    embedder.save_pretrained(tmp_path / "b")
    assert Embedder(tmp_path / "b").max_seq_length == 40
    baked = json.loads((tmp_path / "b" / "tokenizer.json").read_text(encoding="utf-8"))
    assert baked["truncation"] is None
    assert baked["padding"] is None


def test_trained_weights_are_saved(tmp_path: Path) -> None:
    build_checkpoint(tmp_path / "a", "conan-v1")
    embedder = Embedder(tmp_path / "a")
    before = vectors(embedder)
    with torch.no_grad():
        for parameter in (*embedder.model.parameters(), *embedder.pooling.parameters()):
            parameter.mul_(1.1)
    embedder.save_pretrained(tmp_path / "b")
    again = vectors(Embedder(tmp_path / "b"))
    np.testing.assert_array_equal(again, vectors(embedder))
    assert np.abs(again - before).max() > 1e-3


def test_added_prompts_are_saved(tmp_path: Path) -> None:
    build_checkpoint(tmp_path / "a", "nomic-v1.5")
    embedder = Embedder(tmp_path / "a")
    embedder.prompts["query"] = "search_query: "
    embedder.save_pretrained(tmp_path / "b")
    assert Embedder(tmp_path / "b").prompts == embedder.prompts


def test_the_kind_is_saved(tmp_path: Path) -> None:
    """Also over a checkpoint of the other kind, whose files would state it."""
    build_checkpoint(tmp_path / "e", "minilm", num_hidden_layers=1)
    embedder, reranker = Embedder(tmp_path / "e"), CrossEncoder(build_reranker(tmp_path / "r"))
    pairs = [(text, SENTENCES[0]) for text in SENTENCES]
    wanted, scores = vectors(embedder), reranker.predict(pairs)
    embedder.save_pretrained(tmp_path / "r")
    reranker.save_pretrained(tmp_path / "e")
    stated = json.loads((tmp_path / "e" / "config_sentence_transformers.json").read_text("utf-8"))
    assert stated["model_type"] == "CrossEncoder"
    np.testing.assert_array_equal(vectors(Embedder(tmp_path / "r")), wanted)
    np.testing.assert_array_equal(CrossEncoder(tmp_path / "e").predict(pairs), scores)
    judge = SentenceTransformer(str(tmp_path / "r"), device="cpu")
    np.testing.assert_allclose(judge.encode(SENTENCES), wanted, rtol=0, atol=1e-5)
    theirs = sentence_transformers.CrossEncoder(str(tmp_path / "e"), device="cpu")
    np.testing.assert_allclose(theirs.predict(pairs), scores, rtol=0, atol=1e-5)


def test_the_cards_prompts_are_kept_where_they_are_not_implied(tmp_path: Path) -> None:
    embedder = Embedder(build_checkpoint(tmp_path / "a", "minilm", num_hidden_layers=1))
    embedder.prompts = dict(CARDS_PROMPTS)
    embedder.save_pretrained(tmp_path / "b")
    assert Embedder(tmp_path / "b").prompts == CARDS_PROMPTS


def test_prompts_that_were_emptied_are_not_saved(tmp_path: Path) -> None:
    """The card's four would come back."""
    embedder = Embedder(build_checkpoint(tmp_path / "a", "nomic-v1.5", num_hidden_layers=1))
    embedder.prompts.clear()
    with pytest.raises(ValueError, match="cannot be without prompts"):
        embedder.save_pretrained(tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_wrapped_layer_is_not_saved(tmp_path: Path) -> None:
    embedder = Embedder(build_checkpoint(tmp_path / "a", "nomic-v1.5", num_hidden_layers=1))
    layer = embedder.model.layers[0]
    layer.attention.out = torch.nn.Sequential(layer.attention.out)  # type: ignore[union-attr]
    with pytest.raises(CheckpointError, match=r"attention\.out\.0\.weight is not one of the hub's"):
        embedder.save_pretrained(tmp_path / "b")
