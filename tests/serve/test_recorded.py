"""Requests that client libraries sent, recorded, against the server.

tests/clients/record.py wrote them; here no client library is needed. `tests.support.recorded` says
what the answer to each must be.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nomicbert import CrossEncoder, Embedder
from tests.support.clients import CLIENTS, REPOSITORY, tiny_nomic, tiny_reranker
from tests.support.recorded import CHECKS, check, recorded
from tests.support.serving import serving

ALL = sorted(path.stem for path in (CLIENTS / "recorded").glob("*.json"))
RERANKING = [client for client in ALL if "rerank" in client]
EMBEDDING = [client for client in ALL if client not in RERANKING]
# without the cache of vectors: the second time, too, every text must be computed
FLAGS = ("--threads", "1", "--cache-bytes", "0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_nomic(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with serving(folder, *FLAGS, "--served-model-name", REPOSITORY) as server:
        yield server.url


@pytest.fixture(scope="module")
def embedder(folder: Path) -> Embedder:
    return Embedder(folder)


@pytest.fixture(scope="module")
def reranker_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_reranker(tmp_path_factory.mktemp("reranker"))


@pytest.fixture(scope="module")
def rerank_url(reranker_folder: Path) -> Iterator[str]:
    with serving(reranker_folder, *FLAGS) as server:
        yield server.url


@pytest.fixture(scope="module")
def reranker(reranker_folder: Path) -> CrossEncoder:
    return CrossEncoder(reranker_folder)


def test_the_records_are_there() -> None:
    assert len(EMBEDDING) >= 17
    assert len(RERANKING) >= 5
    everything = [request for client in ALL for request in recorded(client)]
    assert len(everything) > 200
    assert {request.status for request in everything} == {200, 400, 404, 422}
    assert set(CHECKS) | {"/v1/user"} <= {request.path for request in everything}


@pytest.mark.parametrize("client", EMBEDDING)
def test_each_request(client: str, url: str, embedder: Embedder) -> None:
    for request in recorded(client):
        check(request, request.send(url), embedder)


@pytest.mark.parametrize("client", RERANKING)
def test_each_ranking(client: str, rerank_url: str, reranker: CrossEncoder) -> None:
    for request in recorded(client):
        check(request, request.send(rerank_url), reranker)


def test_all_at_once(url: str, embedder: Embedder, seed: int) -> None:
    """All clients' requests together share batches; no bit may change."""
    requests = [request for client in EMBEDDING for request in recorded(client)]
    random.Random(seed).shuffle(requests)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda request: request.send(url), requests))
    for request, answer in zip(requests, answers, strict=True):
        check(request, answer, embedder)
