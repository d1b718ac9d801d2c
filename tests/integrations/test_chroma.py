"""NomicBertEmbeddingFunction: collections that are opened again, by whom, and with which model."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.integrations import DOCUMENTS, QUERY, absent, nomic

if reason := absent("chromadb"):
    pytest.skip(reason, allow_module_level=True)

import chromadb
from chromadb.config import Settings

from nomicbert import Embedder
from nomicbert.errors import ConfigError
from nomicbert.integrations.chroma import NomicBertEmbeddingFunction
from tests.support.checkpoints import build_checkpoint

IDS = [str(number) for number in range(len(DOCUMENTS))]


def open_store(folder: Path) -> Any:
    return chromadb.PersistentClient(str(folder), settings=Settings(anonymized_telemetry=False))


@pytest.fixture
def model(tmp_path: Path) -> str:
    return nomic(tmp_path / "model")


def fill(store: Any, function: Any) -> Any:
    collection = store.create_collection("texts", embedding_function=function)
    collection.add(ids=IDS, documents=DOCUMENTS)
    return collection


def test_vectors(model: str) -> None:
    embedder, function = Embedder(model), NomicBertEmbeddingFunction(model)
    np.testing.assert_array_equal(function(DOCUMENTS), embedder.encode_document(DOCUMENTS))
    np.testing.assert_array_equal(function.embed_query([QUERY]), embedder.encode_query([QUERY]))
    assert {row.dtype for row in function(DOCUMENTS)} == {np.dtype(np.float32)}


def test_a_collection_finds_its_function_again(model: str, tmp_path: Path) -> None:
    keywords = {"matryoshka_dim": 32}
    fill(open_store(tmp_path / "store"), NomicBertEmbeddingFunction(model, encode_kwargs=keywords))
    collection = open_store(tmp_path / "store").get_collection("texts")
    embedder = Embedder(model)
    documents = embedder.encode_document(DOCUMENTS, matryoshka_dim=32)
    query = embedder.encode_query([QUERY], matryoshka_dim=32)
    stored = collection.get(ids=IDS, include=["embeddings"])["embeddings"]
    np.testing.assert_allclose(stored, documents, rtol=2**-20)
    found = collection.query(query_texts=[QUERY], n_results=3)
    distances = 1 - embedder.similarity(query, documents)[0].numpy()
    order = np.argsort(distances)
    assert found["ids"] == [[IDS[i] for i in order]]
    np.testing.assert_allclose(found["distances"][0], distances[order], atol=1e-5)
    assert collection.configuration_json["hnsw"]["space"] == "cosine"


def test_another_process_opens_it(model: str, tmp_path: Path) -> None:
    fill(open_store(tmp_path / "store"), NomicBertEmbeddingFunction(model))
    code = f"""
import chromadb, nomicbert.integrations.chroma
store = chromadb.PersistentClient({str(tmp_path / "store")!r})
print(store.get_collection("texts").query(query_texts=[{QUERY!r}])["ids"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    wanted = open_store(tmp_path / "store").get_collection("texts").query(query_texts=[QUERY])
    assert done.stdout.strip() == str(wanted["ids"]), done.stderr


def test_other_precisions_are_refused(model: str) -> None:
    with pytest.raises(ValueError, match="leave out precision='binary'"):
        NomicBertEmbeddingFunction(model, encode_kwargs={"precision": "binary"})


def test_no_precision_is_float32(model: str) -> None:
    function = NomicBertEmbeddingFunction(model, encode_kwargs={"precision": None})
    assert function(["a"])[0].dtype == np.float32


def test_the_distance_is_that_of_the_checkpoint(tmp_path: Path) -> None:
    where = build_checkpoint(tmp_path, "minilm")
    (where / "config_sentence_transformers.json").write_text('{"similarity_fn_name": "dot"}')
    assert NomicBertEmbeddingFunction(str(where)).default_space() == "ip"


def test_queries_do_not_load_the_model_again(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chroma builds the function for every query."""
    collection = fill(open_store(tmp_path / "store"), NomicBertEmbeddingFunction(model))
    again = open_store(tmp_path / "store").get_collection("texts")
    monkeypatch.setattr("nomicbert.integrations.sides.Embedder", None)
    monkeypatch.setattr("nomicbert.integrations.sides.Fingerprint", None)
    wanted = collection.query(query_texts=[QUERY])["ids"]
    assert again.query(query_texts=[QUERY])["ids"] == wanted


def test_another_model_is_refused(model: str, tmp_path: Path) -> None:
    """The folder has new weights: neither queries nor additions go through."""
    fill(open_store(tmp_path / "store"), NomicBertEmbeddingFunction(model))
    nomic(Path(model), seed=1)
    collection = open_store(tmp_path / "store").get_collection("texts")
    with pytest.raises(ValueError, match=r"Could not build .* differ in weights"):
        collection.query(query_texts=[QUERY])
    with pytest.raises(ValueError, match=r"Could not build .* differ in weights"):
        collection.add(ids=["new"], documents=["new"])
    assert collection.count() == len(DOCUMENTS)


def test_a_function_that_is_passed_can_be_checked(model: str, tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    fill(store, NomicBertEmbeddingFunction(model))
    NomicBertEmbeddingFunction(model).check(store.get_collection("texts"))
    other = NomicBertEmbeddingFunction(nomic(tmp_path / "other", seed=1))
    with pytest.raises(ConfigError, match="differ in weights"):
        other.check(store.get_collection("texts", embedding_function=other))
    plain = store.create_collection("plain", embedding_function=None)
    with pytest.raises(ConfigError, match="the stored fingerprint must be a str, not None"):
        other.check(plain)


def test_the_function_may_move(model: str, tmp_path: Path) -> None:
    """Another folder with the same weights takes over; one with others does not."""
    store = open_store(tmp_path / "store")
    collection = fill(store, NomicBertEmbeddingFunction(model))
    moved = str(shutil.copytree(model, tmp_path / "moved"))
    collection.modify(configuration={"embedding_function": NomicBertEmbeddingFunction(moved)})
    config = store.get_collection("texts").configuration_json["embedding_function"]["config"]
    assert config["model_name"] == moved
    other = NomicBertEmbeddingFunction(nomic(tmp_path / "other", seed=1))
    with pytest.raises(ConfigError, match="differ in weights"):
        collection.modify(configuration={"embedding_function": other})


def test_what_is_stored(model: str) -> None:
    function = NomicBertEmbeddingFunction(model, encode_kwargs={"prompt": "d: "})
    config = function.get_config()
    assert config == {
        "model_name": model,
        "model_kwargs": {},
        "encode_kwargs": {"prompt": "d: "},
        "query_encode_kwargs": {},
        "fingerprint": Embedder(model).fingerprint(prompt="d: "),
    }
    again = NomicBertEmbeddingFunction.build_from_config(config)
    np.testing.assert_array_equal(again(DOCUMENTS), function(DOCUMENTS))
    assert not function.is_legacy()
    del config["fingerprint"]
    with pytest.raises(ConfigError, match="must be a str, not None"):
        NomicBertEmbeddingFunction.build_from_config(config)
