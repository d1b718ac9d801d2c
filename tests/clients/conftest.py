"""Servers and the environment with client libraries; `make test-clients` builds it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nomicbert import CrossEncoder, Embedder
from tests.support.clients import (
    REPOSITORY,
    RERANKER,
    Answers,
    interpreter,
    run_client,
    tiny_nomic,
    tiny_reranker,
)
from tests.support.serving import serving

VARIABLE = "NOMICBERT_TEST_MORE_CLIENTS"
Run = Callable[..., Answers]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if VARIABLE in os.environ:
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=f"needs {VARIABLE}: make test-clients"))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_nomic(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def url(folder: Path) -> Iterator[str]:
    with serving(folder, "--threads", "1", "--served-model-name", REPOSITORY) as server:
        yield server.url


@pytest.fixture(scope="session")
def embedder(folder: Path) -> Embedder:
    return Embedder(folder)


@pytest.fixture(scope="session")
def reranker_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_reranker(tmp_path_factory.mktemp("reranker"))


@pytest.fixture(scope="session")
def rerank_url(reranker_folder: Path) -> Iterator[str]:
    with serving(reranker_folder, "--threads", "1") as server:
        yield server.url


@pytest.fixture(scope="session")
def reranker(reranker_folder: Path) -> CrossEncoder:
    return CrossEncoder(reranker_folder)


@pytest.fixture
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """Run a client of `calls/`; `beyond` names the hosts that it is known to look up for itself."""

    def run(client: str, model: str = REPOSITORY, beyond: tuple[str, ...] = ()) -> Answers:
        python = interpreter(VARIABLE, ".venv-more-clients/bin/python", "make test-clients")
        url = request.getfixturevalue("rerank_url" if model == RERANKER else "url")
        answers = run_client(python, client, url, model, tmp_path)
        assert set(answers.calls["beyond loopback"]["attempts"]) <= set(beyond)
        return answers

    return run
