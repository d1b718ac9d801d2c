"""Requests that client libraries sent, recorded, against the server.

tests/clients/record.py wrote them; here no client library is needed. The answer to each must have
the recorded status, the dialect's shape, and vectors that equal `Embedder.encode` to the bit.
"""

from __future__ import annotations

import base64
import http.client
import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

from nomicbert import Embedder
from tests.support.clients import (
    CLIENTS,
    LAST_PART,
    REPOSITORY,
    WIDTH,
    encode,
    same_bits,
    tiny_nomic,
)
from tests.support.serving import serving

RECORDED = sorted(path.stem for path in (CLIENTS / "recorded").glob("*.json"))
OPENAI = ("/v1/embeddings", "/embeddings")
TEI = ("/", "/embed")
NOMIC = "/v1/embedding/text"


@dataclass(frozen=True)
class Recorded:
    """One request, and the status of its answer."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    status: int

    def send(self, url: str) -> Answer:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        data = None if self.body is None else json.dumps(self.body, ensure_ascii=False).encode()
        try:
            connection.request(self.method, self.path, data, self.headers)
            response = connection.getresponse()
            return Answer(response.status, response.headers["Content-Type"], response.read())
        finally:
            connection.close()


@dataclass(frozen=True)
class Answer:
    """What the server answered."""

    status: int
    content_type: str | None
    body: bytes


def recorded(client: str) -> list[Recorded]:
    groups = json.loads((CLIENTS / "recorded" / f"{client}.json").read_text("utf-8"))
    return [
        Recorded(group["method"], group["path"], group["headers"], each["body"], each["status"])
        for group in groups
        for each in group["requests"]
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_nomic(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    # without the cache of vectors: the second time, too, every text must be computed
    flags = ("--threads", "1", "--served-model-name", REPOSITORY, "--cache-bytes", "0")
    with serving(folder, *flags) as server:
        yield server.url


@pytest.fixture(scope="module")
def embedder(folder: Path) -> Embedder:
    return Embedder(folder)


def test_the_records_are_there() -> None:
    assert {"nomic", "openai", "huggingface_hub", "langchain_openai", "llama_index"} <= set(
        RECORDED
    )
    everything = [request for client in RECORDED for request in recorded(client)]
    assert len(everything) > 100
    assert {request.status for request in everything} == {200, 400, 404, 422}
    assert {"/", "/embed", "/embeddings", "/v1/embeddings", "/v1/models", "/v1/user", NOMIC} <= {
        request.path for request in everything
    }


@pytest.mark.parametrize("client", RECORDED)
def test_each_request(client: str, url: str, embedder: Embedder) -> None:
    for request in recorded(client):
        check(request, request.send(url), embedder)


def test_all_at_once(url: str, embedder: Embedder, seed: int) -> None:
    """All clients' requests together share batches; no bit may change."""
    requests = [request for client in RECORDED for request in recorded(client)]
    random.Random(seed).shuffle(requests)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda request: request.send(url), requests))
    for request, answer in zip(requests, answers, strict=True):
        check(request, answer, embedder)


def check(request: Recorded, answer: Answer, embedder: Embedder) -> None:
    """Compare an answer with what the request must get."""
    shown = (
        f"{request.method} {request.path} {json.dumps(request.body)[:300]} -> {answer.body[:300]!r}"
    )
    assert answer.status == request.status, shown
    if request.path == "/v1/user":  # the client reads the status only
        return
    # @nomic-ai/atlas compares the header with this string: a charset would break it
    assert answer.content_type == "application/json", shown
    body = json.loads(answer.body)
    if answer.status != 200:
        check_error(request, body)
    elif request.path in OPENAI:
        check_openai(request, body, embedder)
    elif request.path in TEI:
        check_tei(request, body, embedder)
    elif request.path == NOMIC:
        check_nomic(request, body, embedder)
    elif request.path == "/v1/models":
        assert body["object"] == "list"
        assert {LAST_PART, REPOSITORY} <= {model["id"] for model in body["data"]}
        assert all(model["object"] == "model" for model in body["data"])
    else:
        assert body["id"] == unquote(request.path).removeprefix("/v1/models/"), shown


def check_error(request: Recorded, body: dict[str, Any]) -> None:
    """The error has the form that the dialect's clients read."""
    if request.path in TEI:
        assert body["error"]
        assert body["error_type"] == "Validation"
    elif request.path == NOMIC:
        assert all({"loc", "msg", "type"} <= set(each) for each in body["detail"])
        assert body["detail"]
    else:
        assert {"message", "type", "param", "code"} <= set(body["error"])


def check_openai(request: Recorded, body: dict[str, Any], embedder: Embedder) -> None:
    asked = request.body
    texts = asked["input"] if isinstance(asked["input"], list) else [asked["input"]]
    assert body["object"] == "list"
    assert body["model"] == asked["model"]
    assert [item["index"] for item in body["data"]] == list(range(len(texts)))
    assert {item["object"] for item in body["data"]} == {"embedding"}
    rows = [item["embedding"] for item in body["data"]]
    if asked.get("encoding_format") == "base64":
        got = np.stack([np.frombuffer(base64.b64decode(row), "<f4") for row in rows])
    else:
        got = np.array(rows, np.float32)
    settings = prompt_and_width(asked.get("task_type"), asked.get("dimensions"))
    equal(request, got, encode(embedder, texts, **settings))
    tokens = sum(embedder.token_count(texts, prompt_name=asked.get("task_type")))
    assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] == tokens


def check_tei(request: Recorded, body: list[Any], embedder: Embedder) -> None:
    asked, inputs = request.body, request.body["inputs"]
    if isinstance(inputs, dict):
        texts = [inputs["source_sentence"], *inputs["sentences"]]
        first, *others = encode(embedder, texts, normalize_embeddings=True).astype(np.float64)
        np.testing.assert_allclose(body, [first @ other for other in others], rtol=0, atol=1e-6)
        return
    texts = inputs if isinstance(inputs, list) else [inputs]
    settings = prompt_and_width(asked.get("prompt_name"), asked.get("dimensions"))
    if asked.get("normalize") is False:
        assert "matryoshka_dim" not in settings
        settings["normalize_embeddings"] = False
    equal(request, np.array(body, np.float32), encode(embedder, texts, **settings))


def check_nomic(request: Recorded, body: dict[str, Any], embedder: Embedder) -> None:
    asked = request.body
    assert body["model"] == asked["model"]
    # the client adds up every value of usage
    assert {type(value) for value in body["usage"].values()} == {int}
    assert {"prompt_tokens", "total_tokens"} <= set(body["usage"])
    settings = prompt_and_width(asked["task_type"], asked["dimensionality"] or WIDTH)
    if asked["long_text_mode"] == "mean":
        settings["truncate"] = "mean"
    got = np.array(body["embeddings"], np.float32)
    equal(request, got, encode(embedder, asked["texts"], **settings))


def prompt_and_width(prompt: str | None, width: int | None) -> dict[str, Any]:
    """Keywords of `encode`; a width brings L2 with it."""
    settings: dict[str, Any] = {"prompt_name": prompt} if prompt else {}
    return settings | ({"matryoshka_dim": width} if width else {"normalize_embeddings": True})


def equal(request: Recorded, got: np.ndarray, wanted: np.ndarray) -> None:
    shown = f"{request.path} {json.dumps(request.body)[:300]}"
    assert got.shape == wanted.shape, shown
    assert same_bits(got, wanted), f"{shown}: differs by up to {np.abs(got - wanted).max():.1e}"
