"""Requests that client libraries sent, and what the server must answer to each.

tests/clients/record.py wrote them. An answer must have the recorded status, the dialect's shape,
and vectors or scores that equal `Embedder.encode` or `CrossEncoder.predict` to the bit.
"""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import torch

from nomicbert import CrossEncoder, Embedder
from nomicbert.serve.http.forms import unit_ranges
from tests.support.clients import CLIENTS, LAST_PART, REPOSITORY, WIDTH, encode, same_bits
from tests.support.sameness import HAS_ONEDNN

PLAIN = torch.nn.Identity()


@dataclass(frozen=True)
class Recorded:
    """One request, and the status of its answer."""

    client: str
    method: str
    path: str
    headers: dict[str, str]
    body: Any
    status: int

    def __str__(self) -> str:
        return f"{self.client}: {self.method} {self.path} {json.dumps(self.body)[:300]}"

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
    """The requests of tests/clients/recorded/{client}.json."""
    groups = json.loads((CLIENTS / "recorded" / f"{client}.json").read_text("utf-8"))
    return [
        Recorded(
            client, group["method"], group["path"], group["headers"], each["body"], each["status"]
        )
        for group in groups
        for each in group["requests"]
    ]


def check(request: Recorded, answer: Answer, model: Embedder | CrossEncoder) -> None:
    """Compare an answer with what the request must get.

    Args:
        request: what was sent.
        answer: what came back.
        model: the server's checkpoint, in this process.
    Raises: AssertionError.
    """
    shown = f"{request} -> {answer.body[:300]!r}"
    assert answer.status == request.status, shown
    if request.path == "/v1/user":  # clients read the status only
        return
    # @nomic-ai/atlas compares the header with this string: a charset would break it
    assert answer.content_type == "application/json", shown
    body = json.loads(answer.body)
    if answer.status != 200:
        _check_error(request, body)
    elif request.path.startswith("/v1/models/"):
        assert body["id"] == unquote(request.path).removeprefix("/v1/models/"), shown
    else:
        CHECKS[request.path](request, body, model)


def _check_error(request: Recorded, body: dict[str, Any]) -> None:
    """The error has the form that the dialect's clients read."""
    path = request.path
    if path in ("/", "/embed"):
        assert body["error"]
        assert body["error_type"] == "Validation"
    elif path == "/v1/embedding/text":
        assert all({"loc", "msg", "type"} <= set(each) for each in body["detail"])
        assert body["detail"]
    elif path in ("/v1/embed", "/v2/embed", "/v1/rerank", "/v2/rerank"):
        assert body["message"], str(request)
    elif path.startswith("/api/"):
        assert isinstance(body["error"], str), str(request)
    else:
        assert {"message", "type", "param", "code"} <= set(body["error"])


def _openai(request: Recorded, body: dict[str, Any], embedder: Embedder) -> None:
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
    settings = _prompt_and_width(asked.get("task_type"), asked.get("dimensions"))
    _equal(request, got, encode(embedder, texts, **settings))
    tokens = sum(embedder.token_count(texts, prompt_name=asked.get("task_type")))
    assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] == tokens


def _models(request: Recorded, body: dict[str, Any], _embedder: Embedder) -> None:
    assert body["object"] == "list", str(request)
    assert {LAST_PART, REPOSITORY} <= {model["id"] for model in body["data"]}
    assert all(model["object"] == "model" for model in body["data"])


def _tei(request: Recorded, body: list[Any], embedder: Embedder) -> None:
    asked, inputs = request.body, request.body["inputs"]
    if isinstance(inputs, dict):
        texts = [inputs["source_sentence"], *inputs["sentences"]]
        first, *others = encode(embedder, texts, normalize_embeddings=True).astype(np.float64)
        np.testing.assert_allclose(body, [first @ other for other in others], rtol=0, atol=1e-6)
        return
    texts = inputs if isinstance(inputs, list) else [inputs]
    settings = _prompt_and_width(asked.get("prompt_name"), asked.get("dimensions"))
    if asked.get("normalize") is False:
        assert "matryoshka_dim" not in settings
        settings["normalize_embeddings"] = False
    _equal(request, np.array(body, np.float32), encode(embedder, texts, **settings))


def _nomic(request: Recorded, body: dict[str, Any], embedder: Embedder) -> None:
    asked = request.body
    assert body["model"] == asked["model"]
    # the client adds up every value of usage
    assert {type(value) for value in body["usage"].values()} == {int}
    assert {"prompt_tokens", "total_tokens"} <= set(body["usage"])
    width = asked.get("dimensionality") or WIDTH
    settings = _prompt_and_width(asked.get("task_type") or "search_document", width)
    # @nomic-ai/atlas sends no mode, and then gets the service's default
    if asked.get("long_text_mode", "mean") == "mean":
        settings["truncate"] = "mean"
    got = np.array(body["embeddings"], np.float32)
    _equal(request, got, encode(embedder, asked["texts"], **settings))


def _cohere(request: Recorded, body: dict[str, Any], embedder: Embedder) -> None:
    asked = request.body
    assert body["id"]
    assert body["texts"] == asked["texts"]
    assert body["meta"]["api_version"]["version"] == request.path[2]
    kinds = asked.get("embedding_types")
    by_type = body["embeddings"] if kinds else {"float": body["embeddings"]}
    assert set(by_type) == set(kinds or ["float"]), str(request)
    settings = _prompt_and_width(asked["input_type"], asked.get("output_dimension"))
    for kind, rows in by_type.items():
        form = {} if kind == "float" else {"precision": kind}
        if kind in ("int8", "uint8"):
            form["ranges"] = unit_ranges(asked.get("output_dimension") or WIDTH)
        wanted = encode(embedder, asked["texts"], **settings, **form)
        if kind == "float":
            _equal(request, np.array(rows, np.float32), wanted)
        else:
            _equal_levels(request, np.array(rows), wanted)


def _ollama(request: Recorded, body: dict[str, Any], embedder: Embedder) -> None:
    asked = request.body
    assert body["model"] == asked["model"]
    texts = asked["input"] if isinstance(asked["input"], list) else [asked["input"]]
    if not texts:
        assert body["embeddings"] == [], str(request)
        return
    got = np.array(body["embeddings"], np.float32)
    settings = _prompt_and_width(None, asked.get("dimensions"))
    _equal(request, got, encode(embedder, texts, **settings))


def _ollama_prompt(request: Recorded, body: dict[str, Any], embedder: Embedder) -> None:
    got = np.array([body["embedding"]], np.float32)
    _equal(request, got, encode(embedder, [request.body["prompt"]]))


def _ollama_models(request: Recorded, body: dict[str, Any], _embedder: Embedder) -> None:
    found = {each["name"]: each for each in body["models"]}
    assert any(name.startswith((REPOSITORY, LAST_PART)) for name in found), str(request)
    assert all(each["model"] == name and each["size"] for name, each in found.items())


def _ollama_facts(request: Recorded, body: dict[str, Any], _embedder: Embedder) -> None:
    if request.path == "/api/version":
        assert body["version"], str(request)
    else:
        assert body["capabilities"] == ["embedding"], str(request)
        assert body["model_info"], str(request)


def _rerank(request: Recorded, body: Any, reranker: CrossEncoder) -> None:
    """TEI's form for the key `texts`, else that of Jina, Cohere and vLLM."""
    asked = request.body
    is_tei = "texts" in asked
    given = asked["texts"] if is_tei else asked["documents"]
    texts = [each if isinstance(each, str) else each["text"] for each in given]
    activation = PLAIN if asked.get("raw_scores") else None
    pairs = [(asked["query"], text) for text in texts]
    scores = np.asarray(reranker.predict(pairs, activation_fn=activation))
    top = None if is_tei else asked.get("top_n")  # TEI has none; litellm sends it all the same
    order = np.argsort(-scores, kind="stable")[:top].tolist()
    found = body if is_tei else body["results"]
    assert [each["index"] for each in found] == order, str(request)
    key = "score" if is_tei else "relevance_score"
    _equal(request, np.array([each[key] for each in found], np.float32), scores[order])
    if not is_tei and asked.get("return_documents"):
        documents = [each["document"]["text"] for each in found]
        assert documents == [texts[index] for index in order]


Check = Callable[[Recorded, Any, Any], None]
CHECKS: dict[str, Check] = {
    "/v1/embeddings": _openai,
    "/embeddings": _openai,
    "/v1/models": _models,
    "/": _tei,
    "/embed": _tei,
    "/v1/embedding/text": _nomic,
    "/v1/embed": _cohere,
    "/v2/embed": _cohere,
    "/api/embed": _ollama,
    "/api/embeddings": _ollama_prompt,
    "/api/tags": _ollama_models,
    "/api/ps": _ollama_models,
    "/api/show": _ollama_facts,
    "/api/version": _ollama_facts,
    "/rerank": _rerank,
    "/v1/rerank": _rerank,
    "/v2/rerank": _rerank,
}


def _prompt_and_width(prompt: str | None, width: int | None) -> dict[str, Any]:
    """Keywords of `encode`; a width brings L2 with it."""
    settings: dict[str, Any] = {"prompt_name": prompt} if prompt else {}
    return settings | ({"matryoshka_dim": width} if width else {"normalize_embeddings": True})


def _equal_levels(request: Recorded, got: np.ndarray, wanted: np.ndarray) -> None:
    """Integers of int8 and uint8, and bytes of bits.

    Without oneDNN a value next to an edge may fall on either side: a level, or 1 bit in 100.
    """
    assert got.shape == wanted.shape, str(request)
    if HAS_ONEDNN:
        assert np.array_equal(got, wanted), str(request)
    elif got.shape[1] in (WIDTH // 8, 64 // 8):
        bits = [np.unpackbits(each.astype(np.uint8)) for each in (got, wanted)]
        assert np.mean(bits[0] != bits[1]) <= 0.01, str(request)
    else:
        assert np.abs(got.astype(np.int64) - wanted).max() <= 1, str(request)


def _equal(request: Recorded, got: np.ndarray, wanted: np.ndarray) -> None:
    assert got.shape == wanted.shape, str(request)
    assert same_bits(got, wanted), f"{request}: differs by up to {np.abs(got - wanted).max():.1e}"
