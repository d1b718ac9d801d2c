"""NomicBertEmbedding: the vectors of Embedder, an index, asynchronous calls, stored settings."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from tests.support.integrations import DOCUMENTS, QUERY, absent, nomic

if reason := absent("llama_index"):
    pytest.skip(reason, allow_module_level=True)

from llama_index.core import StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import TextNode

from nomicbert import Embedder
from nomicbert.errors import ConfigError
from nomicbert.integrations.llama_index import NomicBertEmbedding

NODES = [TextNode(text=text, id_=str(number)) for number, text in enumerate(DOCUMENTS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return nomic(tmp_path_factory.mktemp("nomic"))


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


def test_vectors(folder: str) -> None:
    embedder, found = Embedder(folder), NomicBertEmbedding(folder)
    documents = embedder.encode_document(DOCUMENTS).tolist()
    assert found.get_text_embedding_batch(DOCUMENTS) == documents
    assert found.get_query_embedding(QUERY) == embedder.encode_query(QUERY).tolist()
    assert found.get_text_embedding(QUERY) == embedder.encode_document(QUERY).tolist()
    assert found.get_text_embedding_batch([]) == []


def test_keywords(folder: str) -> None:
    embedder = Embedder(folder)
    found = NomicBertEmbedding(
        folder,
        embed_batch_size=2,
        encode_kwargs={"matryoshka_dim": 32},
        query_encode_kwargs={"prompt_name": "clustering"},
    )
    query = embedder.encode(QUERY, matryoshka_dim=32, prompt_name="clustering")
    assert found.get_query_embedding(QUERY) == query.tolist()
    parts = [
        embedder.encode_document(part, matryoshka_dim=32) for part in (DOCUMENTS[:2], "Rivers")
    ]
    assert found.get_text_embedding_batch(DOCUMENTS) == [*parts[0].tolist(), parts[1].tolist()]


@pytest.mark.anyio
async def test_asynchronous_vectors(folder: str) -> None:
    """Many calls at once, each in a thread."""
    found = NomicBertEmbedding(folder, embed_batch_size=1)
    texts = [f"{text} {number}" for number in range(10) for text in DOCUMENTS]
    vectors = await found.aget_text_embedding_batch(texts)
    assert vectors == [found.get_text_embedding(text) for text in texts]
    assert await found.aget_query_embedding(QUERY) == found.get_query_embedding(QUERY)
    assert await found.aget_text_embedding(QUERY) == found.get_text_embedding(QUERY)


def test_refused(folder: str) -> None:
    with pytest.raises(ValueError, match=r"encode_kwarg\n.*not permitted"):
        NomicBertEmbedding(folder, encode_kwarg={})
    with pytest.raises(ValueError, match="2048"):
        NomicBertEmbedding(folder, embed_batch_size=4096)


def test_settings_are_frozen(folder: str) -> None:
    """Assigned ones would have no effect."""
    first = NomicBertEmbedding(folder, embed_batch_size=3)
    names = ("model_name", "model_kwargs", "encode_kwargs", "query_encode_kwargs", "fingerprint")
    for name in names:
        with pytest.raises(ValueError, match="Field is frozen"):
            setattr(first, name, getattr(first, name))
    first.embed_batch_size = 4


def test_an_index_is_stored_and_loaded(folder: str, tmp_path: Path) -> None:
    first = NomicBertEmbedding(folder)
    index = VectorStoreIndex(NODES, embed_model=first)
    stored = index.vector_store.data.embedding_dict
    wanted = Embedder(folder).encode_document(DOCUMENTS).tolist()
    assert [stored[node.node_id] for node in NODES] == wanted
    index.storage_context.persist(str(tmp_path))
    (tmp_path / "embedding.json").write_text(first.to_json())

    storage = StorageContext.from_defaults(persist_dir=str(tmp_path))
    again = NomicBertEmbedding.from_json((tmp_path / "embedding.json").read_text())
    loaded = load_index_from_storage(storage, embed_model=again)
    scores = Embedder(folder).similarity([first.get_query_embedding(QUERY)], wanted)
    (best,) = loaded.as_retriever(similarity_top_k=1).retrieve(QUERY)
    assert best.node.node_id == str(int(scores.argmax()))
    assert best.score == pytest.approx(float(scores.max()), abs=1e-6)


def test_stored_settings(folder: str) -> None:
    first = NomicBertEmbedding(
        folder, embed_batch_size=7, num_workers=2, encode_kwargs={"prompt": "d: "}
    )
    stored = json.loads(json.dumps(first.to_dict()))
    assert stored["class_name"] == "NomicBertEmbedding"
    assert stored["fingerprint"] == Embedder(folder).fingerprint(prompt="d: ")
    again = NomicBertEmbedding.from_dict(stored)
    assert again.get_text_embedding_batch(DOCUMENTS) == first.get_text_embedding_batch(DOCUMENTS)
    assert again.to_dict() == first.to_dict()
    assert again.embed_batch_size == 7


def test_another_model_is_refused(tmp_path: Path) -> None:
    where = nomic(tmp_path)
    stored = NomicBertEmbedding(where).to_dict()
    nomic(tmp_path, seed=1)
    with pytest.raises(ConfigError, match=stored["fingerprint"]):
        NomicBertEmbedding.from_dict(stored)
    NomicBertEmbedding.from_dict(stored, fingerprint=None)


def test_the_cache_of_a_pipeline_depends_on_the_weights(tmp_path: Path) -> None:
    """Its key is a hash of to_dict()."""
    pipeline = IngestionPipeline(transformations=[NomicBertEmbedding(nomic(tmp_path))])
    before = pipeline.run(nodes=NODES[:1])[0].embedding
    assert pipeline.run(nodes=NODES[:1])[0].embedding == before
    pipeline.transformations = [NomicBertEmbedding(nomic(tmp_path, seed=1))]
    assert pipeline.run(nodes=NODES[:1])[0].embedding != before


def test_a_pickle(folder: str) -> None:
    """It holds the settings, not the weights."""
    first = NomicBertEmbedding(folder, embed_batch_size=3, query_encode_kwargs={"prompt": "q: "})
    data = pickle.dumps(first)
    assert len(data) < 2000
    again = pickle.loads(data)
    assert again.get_query_embedding(QUERY) == first.get_query_embedding(QUERY)
    assert again.embed_batch_size == 3


def test_a_pickle_of_another_version(folder: str) -> None:
    """llama-index's own state, and one without a field."""
    state = NomicBertEmbedding(folder).__getstate__()
    empty = NomicBertEmbedding.__new__(NomicBertEmbedding)
    for wrong in ({"__dict__": state}, {k: v for k, v in state.items() if k != "model_kwargs"}):
        with pytest.raises(ConfigError, match=r"pickle of NomicBertEmbedding .* missing fields"):
            empty.__setstate__(wrong)
