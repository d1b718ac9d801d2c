"""Larger client libraries against the server; `make test-clients` runs them.

langchain-openai, llama-index, haystack, litellm and chromadb, as tests/clients/more.txt pins them.
Every vector that a client returns equals `Embedder.encode` to the bit.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nomicbert import Embedder
from tests.support.clients import (
    D64,
    REPOSITORY,
    UNIT,
    Answers,
    Call,
    check_vectors,
    interpreter,
    run_client,
    tiny_nomic,
)
from tests.support.serving import serving

VARIABLE = "NOMICBERT_TEST_MORE_CLIENTS"
pytestmark = pytest.mark.skipif(
    VARIABLE not in os.environ, reason=f"needs {VARIABLE}: make test-clients"
)

LANGCHAIN = {
    "documents": Call("few", UNIT),
    "query": Call("few", UNIT, 1),
    "async": Call("many", UNIT),
    "dimensions 64": Call("few", D64),
}
LLAMA_INDEX = {
    # llama-index replaces newlines by spaces, and with TEI strips texts: the same tokens
    "openai batch": Call("few", UNIT),
    "openai query": Call("few", UNIT, 1),
    "openai async": Call("many", UNIT),
    "openai dimensions 64": Call("few", D64),
    "tei batch": Call("many", UNIT),
    "tei query": Call("few", UNIT, 1),
    "tei long": Call("long", UNIT),
    "tei async": Call("few", UNIT),
    "tei asked query": Call("few", {"prompt_name": "search_query", **UNIT}, 1),
    "tei asked batch": Call("many", {"prompt_name": "search_document", **UNIT}),
}
HAYSTACK = {
    "openai documents": Call("many", UNIT),
    "openai text": Call("few", UNIT, 1),
    "openai query 64": Call("few", {"prompt_name": "search_query", **D64}, 1),
    # this checkpoint has no Normalize module, so plain encode returns vectors before L2
    "tei documents": Call("many"),
    "tei normalised": Call("many", UNIT),
    "tei long": Call("long"),
    "tei text": Call("few", count=1),
}
LITELLM = {
    "openai": Call("few", UNIT),
    "openai float": Call("few", UNIT),
    "openai base64": Call("few", UNIT),
    "openai dimensions 64": Call("few", D64),
    "hosted_vllm": Call("few", UNIT),
    "infinity": Call("few", UNIT),
    "huggingface": Call("few", UNIT),
    "openai async": Call("many", UNIT),
}
CHROMA = {
    "openai": Call("few", UNIT),
    "tei": Call("few", UNIT),
}
CHROMA_COLLECTIONS = ("openai collection", "tei collection")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_nomic(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with serving(folder, "--threads", "1", "--served-model-name", REPOSITORY) as server:
        yield server.url


@pytest.fixture(scope="module")
def embedder(folder: Path) -> Embedder:
    return Embedder(folder)


def answers_of(client: str, url: str, folder: Path, *beyond: str) -> Answers:
    """Run a client; `beyond` names the hosts that it is known to look up for itself."""
    python = interpreter(VARIABLE, ".venv-more-clients/bin/python", "make test-clients")
    answers = run_client(python, client, url, REPOSITORY, folder)
    assert set(answers.calls["beyond loopback"]["attempts"]) <= set(beyond)
    return answers


def test_langchain_openai(url: str, embedder: Embedder, tmp_path: Path) -> None:
    answers = answers_of("langchain_openai", url, tmp_path)
    check_vectors(answers, LANGCHAIN, embedder)
    for name in ("token ids", "token ids of a query"):
        error = answers.error(name)
        assert (error["error"], error["status"]) == ("BadRequestError", 400)
        assert "check_embedding_ctx_length=False" in error["message"]


def test_llama_index(url: str, embedder: Embedder, tmp_path: Path) -> None:
    check_vectors(answers_of("llama_index", url, tmp_path), LLAMA_INDEX, embedder)


def test_haystack(url: str, embedder: Embedder, tmp_path: Path) -> None:
    check_vectors(answers_of("haystack", url, tmp_path), HAYSTACK, embedder)


def test_litellm(url: str, embedder: Embedder, tmp_path: Path) -> None:
    # its provider huggingface/ asks the hub about the model, and goes on without an answer
    answers = answers_of("litellm", url, tmp_path, "huggingface.co")
    check_vectors(answers, LITELLM, embedder)
    error = answers.error("unknown model")
    assert (error["error"], error["status"]) == ("NotFoundError", 404)


def test_chroma(url: str, embedder: Embedder, tmp_path: Path) -> None:
    answers = answers_of("chroma", url, tmp_path)
    check_vectors(answers, CHROMA, embedder, others=CHROMA_COLLECTIONS)
    for name in CHROMA_COLLECTIONS:  # the store normalises once more: 2 roundings of float32
        wanted = Call("many", UNIT).wanted(embedder)
        np.testing.assert_allclose(answers.vectors(name), wanted, rtol=2**-22, atol=0)
    for name in ("openai nearest", "tei nearest"):
        assert answers.calls[name]["ids"] == ["0", "1", "2"]
