"""NomicBertEmbeddings: LangChain's own tests, the vectors of Embedder, stores and pickles."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import ClassVar

import pytest

from tests.support.integrations import DOCUMENTS, QUERY, absent, nomic

if reason := absent("langchain_core", "langchain_tests"):
    pytest.skip(reason, allow_module_level=True)

from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests

from nomicbert import Embedder
from nomicbert.errors import ConfigError, HubError
from nomicbert.integrations.langchain import NomicBertEmbeddings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return nomic(tmp_path_factory.mktemp("nomic"))


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


class OfTheLibrary:
    """What LangChain's test classes ask for."""

    embeddings_class = NomicBertEmbeddings
    embedding_model_params: ClassVar[dict[str, str]] = {}

    @pytest.fixture(autouse=True)
    def _model(self, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(type(self), "embedding_model_params", {"model": folder})


class TestUnit(OfTheLibrary, EmbeddingsUnitTests):
    pass


@pytest.mark.anyio
class TestIntegration(OfTheLibrary, EmbeddingsIntegrationTests):
    pass


def test_vectors(folder: str) -> None:
    embedder, found = Embedder(folder), NomicBertEmbeddings(model=folder)
    assert found.embed_documents(DOCUMENTS) == embedder.encode_document(DOCUMENTS).tolist()
    assert found.embed_query(QUERY) == embedder.encode_query(QUERY).tolist()
    assert found.embed_documents([]) == []


@pytest.mark.anyio
async def test_asynchronous_vectors(folder: str) -> None:
    found = NomicBertEmbeddings(model=folder)
    assert await found.aembed_documents(DOCUMENTS) == found.embed_documents(DOCUMENTS)
    assert await found.aembed_query(QUERY) == found.embed_query(QUERY)


def test_arguments_of_langchain_huggingface(folder: str, tmp_path: Path) -> None:
    found = NomicBertEmbeddings(
        model_name=folder,
        cache_folder=str(tmp_path),
        model_kwargs={"device": "cpu", "trust_remote_code": True},
        encode_kwargs={"normalize_embeddings": True, "batch_size": 2},
        query_encode_kwargs={"prompt_name": "clustering"},
        multi_process=False,
        show_progress=False,
    )
    assert found._sides.model_kwargs["cache_dir"] == str(tmp_path)
    embedder = Embedder(folder)
    wanted = embedder.encode_document(DOCUMENTS, normalize_embeddings=True, batch_size=2)
    assert found.embed_documents(DOCUMENTS) == wanted.tolist()
    query = embedder.encode(QUERY, prompt_name="clustering", normalize_embeddings=True)
    assert found.embed_query(QUERY) == query.tolist()


def test_a_progress_bar(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    NomicBertEmbeddings(model=folder).embed_documents(DOCUMENTS)
    assert capsys.readouterr().err == ""
    NomicBertEmbeddings(model=folder, show_progress=True).embed_documents(DOCUMENTS)
    assert "100%" in capsys.readouterr().err


def test_refused(folder: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"give encode_kwargs=\{.device"):
        NomicBertEmbeddings(model=folder, multi_process=True)
    with pytest.raises(ValueError, match="cache_dir"):
        NomicBertEmbeddings(model=folder, cache_dir=str(tmp_path))
    with pytest.raises(HubError, match="absent"):
        NomicBertEmbeddings(model=str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match="differ in weights"):
        NomicBertEmbeddings(model=folder, fingerprint=32 * "0")


def test_settings_are_frozen(folder: str, tmp_path: Path) -> None:
    """Assigned ones would have no effect; a copy with others has its own model."""
    first = NomicBertEmbeddings(model=folder, cache_folder=str(tmp_path))
    for name in type(first).model_fields.keys() - {"show_progress"}:
        with pytest.raises(ValueError, match="Field is frozen"):
            setattr(first, name, getattr(first, name))
    first.show_progress = False
    copied = first.model_copy(update={"encode_kwargs": {"matryoshka_dim": 32}})
    assert len(copied.embed_query(QUERY)) == 32
    assert copied.cache_folder == str(tmp_path)
    assert len(pickle.loads(pickle.dumps(copied)).embed_query(QUERY)) == 32


def test_a_vector_store(folder: str) -> None:
    embeddings = NomicBertEmbeddings(model=folder)
    store = InMemoryVectorStore.from_texts(DOCUMENTS, embeddings)
    scores = Embedder(folder).similarity(
        embeddings._sides.queries([QUERY]), embeddings._sides.documents(DOCUMENTS)
    )
    ((best, score),) = store.similarity_search_with_score(QUERY, k=1)
    assert best.page_content == DOCUMENTS[int(scores.argmax())]
    assert score == pytest.approx(float(scores.max()), abs=1e-6)


def test_the_fingerprint_is_stored_and_compared(folder: str, tmp_path: Path) -> None:
    stored = NomicBertEmbeddings(model=folder).compute_fingerprint()
    assert stored == Embedder(folder).fingerprint(prompt_name="search_document")
    NomicBertEmbeddings(model=folder, fingerprint=stored)
    with pytest.raises(ConfigError, match=stored):
        NomicBertEmbeddings(model=nomic(tmp_path, seed=1), fingerprint=stored)


def test_a_pickle(folder: str) -> None:
    """It holds the settings, not the weights."""
    first = NomicBertEmbeddings(
        model=folder, encode_kwargs={"matryoshka_dim": 32}, query_encode_kwargs={"prompt": "q: "}
    )
    data = pickle.dumps(first)
    assert len(data) < 2000
    again = pickle.loads(data)
    assert again.embed_query(QUERY) == first.embed_query(QUERY)
    assert again.embed_documents(DOCUMENTS) == first.embed_documents(DOCUMENTS)
    assert again.model_copy(deep=True).embed_query(QUERY) == first.embed_query(QUERY)


def test_a_pickle_of_another_version(folder: str) -> None:
    """pydantic's own state, and one without a field."""
    first = NomicBertEmbeddings(model=folder)
    state = first.__getstate__()
    empty = NomicBertEmbeddings.__new__(NomicBertEmbeddings)
    for wrong in ({"__dict__": state}, {k: v for k, v in state.items() if k != "model_kwargs"}):
        with pytest.raises(ConfigError, match=r"pickle of NomicBertEmbeddings .* missing fields"):
            empty.__setstate__(wrong)
