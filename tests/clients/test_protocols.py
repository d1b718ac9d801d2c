"""The clients of single protocols against the server: cohere, ollama, infinity_client.

Every vector that a client returns equals `Embedder.encode` to the bit. `make test-clients` runs
these tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nomicbert import Embedder
from nomicbert.serve.http.forms import unit_ranges
from tests.clients.conftest import Run
from tests.support.clients import (
    D64,
    LIMIT,
    REPOSITORY,
    TEXTS,
    UNIT,
    WIDTH,
    Answers,
    Call,
    check_vectors,
)

TASKS = ("search_query", "search_document", "classification", "clustering")
QUERY = {"prompt_name": "search_query", **UNIT}
DOCUMENT = {"prompt_name": "search_document", **UNIT}
CLUSTERING = {"prompt_name": "clustering", **UNIT}
RANGES = {"ranges": unit_ranges(WIDTH)}
INT8 = {"precision": "int8", **RANGES}
UINT8 = {"precision": "uint8", **RANGES}

COHERE = {
    **{f"v2 {task}": Call("few", {"prompt_name": task, **UNIT}) for task in TASKS},
    "v2 many": Call("many", DOCUMENT),
    "v2 dimensions 64": Call("few", {"prompt_name": "search_document", **D64}),
    "v2 long": Call("long", DOCUMENT),
    "v2 all float": Call("few", DOCUMENT),
    "v2 all int8": Call("few", {**DOCUMENT, **INT8}),
    "v2 all uint8": Call("few", {**DOCUMENT, **UINT8}),
    "v2 all binary": Call("few", {**DOCUMENT, "precision": "binary"}),
    "v2 all ubinary": Call("few", {**DOCUMENT, "precision": "ubinary"}),
    "v2 ubinary 64": Call("few", {"prompt_name": "search_query", "precision": "ubinary", **D64}),
    "v2 async": Call("many", QUERY),
    "v1": Call("few", DOCUMENT),
    "v1 query": Call("few", QUERY, 1),
    "v1 parts": Call("many", DOCUMENT, repeat=8),
    "v1 long": Call("long", DOCUMENT),
    "v1 typed float": Call("few", CLUSTERING),
    "v1 typed int8": Call("few", {**CLUSTERING, **INT8}),
}
COHERE_ERRORS = {
    "v2 unknown model": ("NotFoundError", 404, "no-such-model"),
    "v2 too long": ("BadRequestError", 400, f"{LIMIT} tokens"),
    "v2 too wide": ("BadRequestError", 400, "100000"),
    "v1 unknown model": ("NotFoundError", 404, "no-such-model"),
}
OLLAMA = {
    "embed": Call("few", UNIT),
    "one": Call("few", UNIT, 1),
    "many": Call("many", UNIT),
    "dimensions 64": Call("few", D64),
    "options": Call("few", UNIT),
    "long": Call("long", UNIT),
    "embeddings": Call("many", count=3),
    "module": Call("few", UNIT),
    "async": Call("many", UNIT),
}
OLLAMA_ERRORS = {
    "unknown model": ("ResponseError", 404, "no-such-model"),
    "show unknown": ("ResponseError", 404, "no-such-model"),
    "too long": ("ResponseError", 400, "length"),
    "too wide": ("ResponseError", 400, "100000"),
}
INFINITY = {
    "embeddings": Call("few", UNIT),
    "one": Call("few", UNIT, 1),
    "many": Call("many", UNIT),
    "dimensions 64": Call("few", D64),
    "key": Call("few", UNIT),
}


def test_cohere(run: Run, embedder: Embedder) -> None:
    answers = run("cohere")
    check_vectors(answers, COHERE, embedder)
    check_errors(answers, COHERE_ERRORS)
    for name, texts, prompt in (
        ("v2 search_query", "few", "search_query"),
        ("v1", "few", "search_document"),
    ):
        call = answers.calls[name]
        assert call["tokens"] == sum(embedder.token_count(TEXTS[texts], prompt_name=prompt)), name
        assert (call["version"], call["texts"]) == (name[1], TEXTS[texts]), name
        assert not call["warnings"], name  # None, or [] where the client joins several answers
    for name in ("v2 long", "v1 long"):
        assert answers.calls[name]["warnings"] == [f"1 text was cut to {LIMIT} tokens"], name


def test_ollama(run: Run, embedder: Embedder) -> None:
    answers = run("ollama")
    check_vectors(answers, OLLAMA, embedder)
    check_errors(answers, OLLAMA_ERRORS)
    for name, texts in (("embed", "few"), ("many", "many")):
        call = answers.calls[name]
        assert call["tokens"] == sum(embedder.token_count(TEXTS[texts])), name
        assert call["model"] == REPOSITORY, name
    assert answers.calls["nothing"]["embeddings"] == []
    assert f"{REPOSITORY}:latest" in answers.calls["list"]["names"]
    assert all(size > 0 for size in answers.calls["list"]["sizes"])
    shown = answers.calls["show"]
    assert shown["capabilities"] == ["embedding"]
    assert WIDTH in [value for key, value in shown["info"].items() if "embedding_length" in key]


def test_infinity_client(run: Run, embedder: Embedder) -> None:
    answers = run("infinity_client")
    check_vectors(answers, INFINITY, embedder)
    for name, call in INFINITY.items():
        count = len(TEXTS[call.texts][: call.count])
        assert answers.calls[name]["indexes"] == list(range(count)), name
    assert answers.calls["embeddings"]["tokens"] == sum(embedder.token_count(TEXTS["few"]))


def check_errors(answers: Answers, table: Mapping[str, tuple[str, int, str]]) -> None:
    """Each call raised this class for this status, with this part in its message."""
    for name, (kind, status, part) in table.items():
        error: dict[str, Any] = answers.error(name)
        assert (error["error"], error["status"]) == (kind, status), name
        assert part in error["message"], name
