"""JavaScript clients against the server: openai, ollama, cohere-ai, @nomic-ai/atlas.

`make test-clients` installs them with npm and runs these tests; without npm they are skipped.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nomicbert import CrossEncoder, Embedder
from nomicbert.serve.http.forms import unit_ranges
from tests.support.clients import (
    CLIENTS,
    D64,
    FULL,
    LAST_PART,
    REPOSITORY,
    RERANKER,
    TEXTS,
    UNIT,
    WIDTH,
    Answers,
    Call,
    Ranked,
    check_rankings,
    check_vectors,
    run_client,
)

INSTALLED = CLIENTS / "js" / "node_modules" / ".installed"
pytestmark = pytest.mark.skipif(
    not INSTALLED.exists(), reason="needs npm: make test-clients installs the JavaScript clients"
)

TASKS = ("search_query", "search_document", "classification", "clustering")
DOCUMENT = {"prompt_name": "search_document"}
QUERY = {"prompt_name": "search_query"}
MEAN = {"truncate": "mean", **FULL}
INT8 = {"precision": "int8", "ranges": unit_ranges(WIDTH)}

OPENAI = {
    "default": Call("few", UNIT),
    "float": Call("few", UNIT),
    "one": Call("few", UNIT, 1),
    "dimensions 64": Call("few", D64),
    "task_type": Call("few", {"prompt_name": "clustering", **UNIT}),
    "together": Call("many", UNIT),
}
OLLAMA = {
    "embed": Call("few", UNIT),
    "one": Call("few", UNIT, 1),
    "many": Call("many", UNIT),
    "dimensions 64": Call("few", D64),
    "long": Call("long", UNIT),
    "embeddings": Call("many", count=3),
}
COHERE = {
    **{f"v2 {task}": Call("few", {"prompt_name": task, **UNIT}) for task in TASKS},
    "v2 dimensions 64": Call("many", {**DOCUMENT, **D64}),
    "v2 int8": Call("few", {**DOCUMENT, **UNIT, **INT8}),
    "v2 ubinary": Call("few", {**DOCUMENT, **UNIT, "precision": "ubinary"}),
    "v1": Call("few", {**QUERY, **UNIT}),
}
ATLAS = {
    # it sends no long_text_mode: the protocol's default is the mean of windows
    "documents": Call("few", {**DOCUMENT, **MEAN}),
    "query": Call("few", {**QUERY, **MEAN}, 1),
    "together": Call("many", {**DOCUMENT, **MEAN}),
    "long": Call("long", {**DOCUMENT, **MEAN}),
}
RERANK = {"v2": Ranked(), "v2 top": Ranked(top=3), "v1": Ranked()}


def run(client: str, url: str, model: str, folder: Path) -> Answers:
    node = shutil.which("node")
    assert node is not None
    answers = run_client(node, client, url, model, folder, "js/call.mjs")
    assert answers.calls["beyond loopback"]["attempts"] == []
    return answers


def check_errors(answers: Answers, *wanted: tuple[str, int]) -> None:
    for name, status in wanted:
        assert answers.error(name)["status"] == status, name


def test_openai(url: str, embedder: Embedder, tmp_path: Path) -> None:
    answers = run("openai", url, REPOSITORY, tmp_path)
    check_vectors(answers, OPENAI, embedder)
    tokens = sum(embedder.token_count(TEXTS["few"]))
    assert answers.calls["default"]["usage"]["prompt_tokens"] == tokens
    assert answers.calls["default"]["model"] == REPOSITORY
    assert answers.calls["default"]["indexes"] == list(range(len(TEXTS["few"])))
    assert REPOSITORY in answers.calls["models"]["ids"]
    assert answers.calls["retrieve"]["id"] == REPOSITORY
    check_errors(answers, ("unknown model", 404), ("too long", 400))
    assert answers.error("too long")["code"] == "context_length_exceeded"


def test_ollama(url: str, embedder: Embedder, tmp_path: Path) -> None:
    answers = run("ollama", url, REPOSITORY, tmp_path)
    check_vectors(answers, OLLAMA, embedder)
    assert answers.calls["embed"]["tokens"] == sum(embedder.token_count(TEXTS["few"]))
    assert f"{REPOSITORY}:latest" in answers.calls["list"]["names"]
    assert answers.calls["show"]["capabilities"] == ["embedding"]
    assert answers.calls["version"]["version"]
    check_errors(answers, ("unknown model", 404), ("too long", 400))


def test_cohere(url: str, embedder: Embedder, tmp_path: Path) -> None:
    answers = run("cohere", url, REPOSITORY, tmp_path)
    check_vectors(answers, COHERE, embedder)
    check_errors(answers, ("v2 unknown model", 404), ("v2 too long", 400))


def test_cohere_rerank(rerank_url: str, reranker: CrossEncoder, tmp_path: Path) -> None:
    answers = run("cohere_rerank", rerank_url, RERANKER, tmp_path)
    check_rankings(answers, RERANK, reranker)


def test_atlas(url: str, embedder: Embedder, tmp_path: Path) -> None:
    check_vectors(run("atlas", url, LAST_PART, tmp_path), ATLAS, embedder)
