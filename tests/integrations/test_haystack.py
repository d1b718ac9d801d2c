"""The components of Haystack: vectors of Embedder, pipelines that are dumped and loaded."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.support.integrations import DOCUMENTS, QUERY, absent, nomic

if reason := absent("haystack"):
    pytest.skip(reason, allow_module_level=True)

from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.components.writers import DocumentWriter
from haystack.core.errors import DeserializationError
from haystack.document_stores.in_memory import InMemoryDocumentStore

from nomicbert import Embedder
from nomicbert.errors import ConfigError
from nomicbert.integrations.haystack import NomicBertDocumentEmbedder, NomicBertTextEmbedder

ALLOWED = ["nomicbert.integrations.haystack"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return nomic(tmp_path_factory.mktemp("nomic"))


def documents() -> list[Document]:
    return [Document(content=text, meta={"page": i}) for i, text in enumerate(DOCUMENTS)]


def query_pipeline(*texts: Any) -> Pipeline:
    pipeline = Pipeline()
    pipeline.add_component("text", *texts)
    pipeline.add_component("retriever", InMemoryEmbeddingRetriever(InMemoryDocumentStore()))
    pipeline.connect("text.embedding", "retriever.query_embedding")
    return pipeline


def test_vectors(folder: str) -> None:
    embedder, given = Embedder(folder), documents()
    found = NomicBertDocumentEmbedder(folder).run(given)["documents"]
    wanted = embedder.encode_document(DOCUMENTS).tolist()
    assert [document.embedding for document in found] == wanted
    assert [(d.id, d.content, d.meta) for d in found] == [(d.id, d.content, d.meta) for d in given]
    assert {document.embedding for document in given} == {None}
    query = NomicBertTextEmbedder(folder).run(QUERY)["embedding"]
    assert query == embedder.encode_query(QUERY).tolist()
    assert NomicBertDocumentEmbedder(folder).run([]) == {"documents": []}


def test_keywords(folder: str) -> None:
    embedder = Embedder(folder)
    keywords = {"prompt": "x: ", "matryoshka_dim": 32}
    component = NomicBertTextEmbedder(model=folder, encode_kwargs=keywords)
    assert component.run(QUERY)["embedding"] == embedder.encode(QUERY, **keywords).tolist()
    component = NomicBertDocumentEmbedder(
        model=folder, meta_fields_to_embed=["page", "absent"], embedding_separator=" | "
    )
    (found,) = component.run([Document(content="Rivers", meta={"page": 7, "other": "x"})])[
        "documents"
    ]
    assert found.embedding == embedder.encode_document("7 | Rivers").tolist()
    with pytest.raises(TypeError, match="meta_fields_to_embed"):
        NomicBertTextEmbedder(model=folder, meta_fields_to_embed=["page"])


def test_wrong_inputs(folder: str) -> None:
    with pytest.raises(TypeError, match="int"):
        NomicBertTextEmbedder(folder).run(3)
    for wrong in ("text", ["text"]):
        with pytest.raises(TypeError, match="documents must be a list of Documents, but it has 't"):
            NomicBertDocumentEmbedder(folder).run(wrong)
    with pytest.raises(TypeError, match="encode_kwargs"):
        NomicBertTextEmbedder(folder, encode_kwargs={"prompt": object()})


def test_refused_before_it_can_be_stored(folder: str) -> None:
    for name in ("token", "use_auth_token"):
        with pytest.raises(ValueError, match="has a token") as caught:
            NomicBertTextEmbedder("m", model_kwargs={name: "hf_secret"})
        assert "hf_secret" not in str(caught.value)
    with pytest.raises(TypeError, match="encode_kwargs cannot have 'convert_to_tensor'"):
        NomicBertDocumentEmbedder("m", encode_kwargs={"convert_to_tensor": True})


def test_processes_are_for_documents(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    several = NomicBertTextEmbedder(folder, None, {"device": ["cpu", "cpu"], "prompt": "x: "})
    found: list[Any] = []
    real = several._sides.embedder.encode_query
    monkeypatch.setattr(
        several._sides.embedder, "encode_query", lambda _, **given: found.append(given) or real("a")
    )
    several.run(QUERY)
    assert found == [{"prompt": "x: ", "show_progress_bar": False}]


def test_search_in_a_pipeline(folder: str) -> None:
    """Indexing, dumping, loading and searching; the same vectors in the asynchronous run."""
    store = InMemoryDocumentStore()
    indexing = Pipeline()
    indexing.add_component("embedder", NomicBertDocumentEmbedder(folder))
    indexing.add_component("writer", DocumentWriter(store))
    indexing.connect("embedder.documents", "writer.documents")
    indexing.run({"embedder": {"documents": documents()}})

    first = query_pipeline(NomicBertTextEmbedder(folder))
    first.warm_up()
    loaded = Pipeline.loads(first.dumps(), allowed_modules=ALLOWED)
    loaded.get_component("retriever").document_store = store
    (best, *_), embedding = (
        loaded.run({"text": {"text": QUERY}}, include_outputs_from={"text"})[name][key]
        for name, key in (("retriever", "documents"), ("text", "embedding"))
    )
    embedder = Embedder(folder)
    assert embedding == embedder.encode_query(QUERY).tolist()
    scores = embedder.similarity([embedding], embedder.encode_document(DOCUMENTS))
    stored = {d.content: d.embedding for d in store.filter_documents()}
    assert [stored[text] for text in DOCUMENTS] == embedder.encode_document(DOCUMENTS).tolist()
    dots = [sum(a * b for a, b in zip(embedding, stored[t], strict=True)) for t in DOCUMENTS]
    assert best.content == DOCUMENTS[dots.index(max(dots))], scores
    later = asyncio.run(loaded.run_async({"text": {"text": QUERY}}))
    assert later["retriever"]["documents"][0].id == best.id


def test_the_allowlist(folder: str) -> None:
    data = query_pipeline(NomicBertTextEmbedder(folder)).dumps()
    with pytest.raises(DeserializationError, match=r"nomicbert\.integrations\.haystack"):
        Pipeline.loads(data)


def test_what_is_stored(folder: str, tmp_path: Path) -> None:
    """No fingerprint before the model is loaded; then that of the space, or of the documents."""
    embedder = Embedder(folder)
    both = NomicBertTextEmbedder(folder), NomicBertDocumentEmbedder(folder)
    assert [each.to_dict()["init_parameters"]["fingerprint"] for each in both] == [None, None]
    for each in both:
        each.warm_up()
    fingerprint = embedder.fingerprint(prompt_name="search_document")
    stored = [each.to_dict()["init_parameters"] for each in both]
    assert [each["fingerprint"] for each in stored] == [fingerprint[:32], fingerprint]
    assert stored[0] == {
        "model": folder,
        "model_kwargs": {},
        "encode_kwargs": {},
        "fingerprint": fingerprint[:32],
        "progress_bar": False,
    }
    # a query pipeline accepts the documents' fingerprint, whatever the prompt of its queries
    NomicBertTextEmbedder(folder, None, {"prompt": "x: "}, fingerprint).warm_up()


def test_another_model_is_refused(tmp_path: Path) -> None:
    where = nomic(tmp_path)
    pipeline = query_pipeline(NomicBertTextEmbedder(where))
    pipeline.warm_up()
    data = pipeline.dumps()
    nomic(tmp_path, seed=1)
    loaded = Pipeline.loads(data, allowed_modules=ALLOWED)
    with pytest.raises(ConfigError, match="differ in weights"):
        loaded.warm_up()
    with pytest.raises(ConfigError, match="differ in weights"):
        loaded.get_component("text").run(QUERY)
