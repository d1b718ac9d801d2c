"""Larger client libraries against the server; `make test-clients` runs them.

langchain, llama-index, haystack, litellm and chromadb, as tests/clients/more.txt pins them. Every
vector that a client returns equals `Embedder.encode` to the bit.
"""

from __future__ import annotations

import numpy as np

from nomicbert import Embedder
from tests.clients.conftest import Run
from tests.support.clients import D64, FULL, LAST_PART, UNIT, Call, check_vectors

QUERY = {"prompt_name": "search_query"}
DOCUMENT = {"prompt_name": "search_document"}

LANGCHAIN_OPENAI = {
    "documents": Call("few", UNIT),
    "query": Call("few", UNIT, 1),
    "async": Call("many", UNIT),
    "dimensions 64": Call("few", D64),
}
LANGCHAIN_OLLAMA = {
    "documents": Call("few", UNIT),
    "query": Call("few", UNIT, 1),
    "async": Call("many", UNIT),
}
LANGCHAIN_NOMIC = {
    # nomic's protocol applies the recipe of short vectors at full width, too
    "documents": Call("many", {**DOCUMENT, **FULL}),
    "query": Call("few", {**QUERY, **FULL}, 1),
    "task": Call("few", {"prompt_name": "clustering", **FULL}),
    "dimensions 64": Call("few", {**DOCUMENT, **D64}),
    "key of the environment": Call("few", {**DOCUMENT, **FULL}),
}
LANGCHAIN_HUGGINGFACE = {
    # newlines become spaces, which have the same tokens
    "documents": Call("many", UNIT),
    "query": Call("few", UNIT, 1),
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
    "tei asked query": Call("few", {**QUERY, **UNIT}, 1),
    "tei asked batch": Call("many", {**DOCUMENT, **UNIT}),
    "ollama batch": Call("many", UNIT),
    "ollama query": Call("few", UNIT, 1),
    "ollama async": Call("many", UNIT),
    "ollama asked query": Call("few", {**QUERY, **UNIT}, 1),
    "ollama asked batch": Call("many", {**DOCUMENT, **UNIT}),
}
LLAMA_INDEX_NOMIC = {
    "batch": Call("many", {**DOCUMENT, **FULL}),
    "query": Call("few", {**QUERY, **FULL}, 1),
    "classification 64": Call("few", {"prompt_name": "classification", **D64}, 1),
    "clustering 64": Call("few", {"prompt_name": "clustering", **D64}),
}
HAYSTACK = {
    "openai documents": Call("many", UNIT),
    "openai text": Call("few", UNIT, 1),
    "openai query 64": Call("few", {**QUERY, **D64}, 1),
    # this checkpoint has no Normalize module, so plain encode returns vectors before L2
    "tei documents": Call("many"),
    "tei normalised": Call("many", UNIT),
    "tei long": Call("long"),
    "tei text": Call("few", count=1),
    "cohere documents": Call("many", {**DOCUMENT, **UNIT}),
    "cohere text": Call("few", {**QUERY, **UNIT}, 1),
    "ollama documents": Call("many", {**DOCUMENT, **UNIT}),
    "ollama text": Call("few", UNIT, 1),
    "jina documents": Call("many", UNIT),
    "jina text 64": Call("few", {**QUERY, **D64}, 1),
}
LITELLM = {
    "openai": Call("few", UNIT),
    "openai float": Call("few", UNIT),
    "openai base64": Call("few", UNIT),
    "openai dimensions 64": Call("few", D64),
    "hosted_vllm": Call("few", UNIT),
    "infinity": Call("few", UNIT),
    "huggingface": Call("few", UNIT),
    "ollama": Call("few", UNIT),
    "openai async": Call("many", UNIT),
}
CHROMA = {
    "openai": Call("few", UNIT),
    "tei": Call("few", UNIT),
    "ollama": Call("few", UNIT),
    "cohere": Call("few", {**DOCUMENT, **UNIT}),
}
# the same functions in a collection
CHROMA_COLLECTIONS = {
    f"{name} collection": Call("many", call.keywords) for name, call in CHROMA.items()
}


def test_langchain_openai(run: Run, embedder: Embedder) -> None:
    answers = run("langchain_openai")
    check_vectors(answers, LANGCHAIN_OPENAI, embedder)
    for name in ("token ids", "token ids of a query"):
        error = answers.error(name)
        assert (error["error"], error["status"]) == ("BadRequestError", 400)
        assert "check_embedding_ctx_length=False" in error["message"]


def test_langchain_ollama(run: Run, embedder: Embedder) -> None:
    answers = run("langchain_ollama")
    check_vectors(answers, LANGCHAIN_OLLAMA, embedder)
    assert "no-such-model" in answers.error("unknown model")["message"]
    error = answers.error("unknown model of a call")
    assert (error["error"], error["status"]) == ("ResponseError", 404)
    assert "no-such-model" in error["message"]


def test_langchain_nomic(run: Run, embedder: Embedder) -> None:
    check_vectors(run("langchain_nomic", LAST_PART), LANGCHAIN_NOMIC, embedder)


def test_langchain_huggingface(run: Run, embedder: Embedder) -> None:
    answers = run("langchain_huggingface")
    check_vectors(answers, LANGCHAIN_HUGGINGFACE, embedder)
    # its own fault: it takes no address
    error = answers.error("address")
    assert error["error"] == "ValidationError"
    assert "must be a HuggingFace repo ID, not a URL" in error["message"]


def test_llama_index(run: Run, embedder: Embedder) -> None:
    check_vectors(run("llama_index"), LLAMA_INDEX, embedder)


def test_llama_index_nomic(run: Run, embedder: Embedder) -> None:
    check_vectors(run("llama_index_nomic", LAST_PART), LLAMA_INDEX_NOMIC, embedder)


def test_haystack(run: Run, embedder: Embedder) -> None:
    check_vectors(run("haystack"), HAYSTACK, embedder)


def test_litellm(run: Run, embedder: Embedder) -> None:
    # its provider huggingface/ asks the hub about the model, and goes on without an answer
    answers = run("litellm", beyond=("huggingface.co",))
    check_vectors(answers, LITELLM, embedder)
    error = answers.error("unknown model")
    assert (error["error"], error["status"]) == ("NotFoundError", 404)


def test_chroma(run: Run, embedder: Embedder) -> None:
    answers = run("chroma")
    check_vectors(answers, CHROMA, embedder, others=tuple(CHROMA_COLLECTIONS))
    for name, call in CHROMA_COLLECTIONS.items():
        # the store normalises once more: 2 roundings of float32
        wanted = call.wanted(embedder)
        np.testing.assert_allclose(answers.vectors(name), wanted, rtol=2**-22, atol=0)
    for name in CHROMA:
        assert answers.calls[f"{name} nearest"]["ids"] == ["0", "1", "2"], name
    # the function's own fault: it takes the answer of `embed.text`, a dict, for an object
    assert "'dict' object has no attribute 'data'" in answers.error("nomic")["message"]
