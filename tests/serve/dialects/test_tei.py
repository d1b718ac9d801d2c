"""TEI's routes: bodies, defaults, answers, headers, and the bits of their vectors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nomicbert import Embedder
from nomicbert.user_warnings import TruncationWarning
from tests.support.served import LONG, MODEL, WIDTH, bits, embedder_of, tiny
from tests.support.serving import InThread, Reply, in_thread

TEXTS = ["What is TSNE?", "", "t-distributed stochastic neighbour embedding"]
EMBEDS = ["/embed", "/", "/invocations"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InThread]:
    with in_thread(tiny(tmp_path_factory.mktemp("tei")), max_length=64) as found:
        yield found


@pytest.fixture(scope="module")
def embedder(server: InThread) -> Embedder:
    return embedder_of(server)


def encode(embedder: Embedder, texts: Any, **more: Any) -> np.ndarray:
    """What the server computes for a request without a prompt: `normalize_embeddings=True`."""
    chosen = {"prompt": "", "normalize_embeddings": True} | more
    return embedder.encode(texts, **chosen)


@pytest.mark.parametrize("path", EMBEDS)
def test_embed(server: InThread, embedder: Embedder, path: str) -> None:
    reply = server.call(path, {"inputs": TEXTS})
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    assert bits(reply.vectors) == bits(encode(embedder, TEXTS))
    one = server.call(path, {"inputs": TEXTS[0]})
    assert len(one.json) == 1
    assert bits(one.vectors) == bits(encode(embedder, TEXTS[:1]))


def test_headers(server: InThread, embedder: Embedder) -> None:
    headers = server.call("/embed", {"inputs": TEXTS}).headers
    assert headers["x-compute-characters"] == str(sum(map(len, TEXTS)))
    assert headers["x-compute-tokens"] == str(sum(embedder.tokenizer.count(TEXTS)))
    assert headers["x-compute-type"] == "cpu"
    for name in (
        "x-compute-time", "x-total-time", "x-tokenization-time", "x-queue-time", "x-inference-time"
    ):  # fmt: skip
        assert headers[name].isdecimal(), name
    assert len(headers["x-embedding-fingerprint"]) > 30


@pytest.mark.parametrize("path", EMBEDS)
def test_dimensions_prompts_and_norm(server: InThread, embedder: Embedder, path: str) -> None:
    reply = server.call(path, {"inputs": TEXTS, "dimensions": 16})
    assert bits(reply.vectors) == bits(embedder.encode(TEXTS, prompt="", matryoshka_dim=16))
    reply = server.call(path, {"inputs": TEXTS, "prompt_name": "search_query"})
    assert bits(reply.vectors) == bits(encode(embedder, TEXTS, prompt="search_query: "))
    found = server.call(path, {"inputs": TEXTS, "normalize": False}).vectors
    norms = np.linalg.norm(found, axis=1)
    assert not np.allclose(norms, 1, atol=1e-2)
    np.testing.assert_allclose(found / norms[:, None], encode(embedder, TEXTS), atol=2e-7)


def test_dimensions_without_norm_do_not_normalise(server: InThread, embedder: Embedder) -> None:
    found = server.call("/embed", {"inputs": TEXTS, "dimensions": 16, "normalize": False}).vectors
    norms = np.linalg.norm(found, axis=1)
    assert not np.allclose(norms, 1, atol=1e-2)
    wanted = embedder.encode(TEXTS, prompt="", matryoshka_dim=16)
    np.testing.assert_allclose(found / norms[:, None], wanted, atol=2e-7)


@pytest.mark.parametrize("path", EMBEDS)
def test_long_texts(server: InThread, embedder: Embedder, path: str) -> None:
    with pytest.warns(TruncationWarning):
        wanted = encode(embedder, ["short", LONG])
    for more in ({}, {"truncate": True}, {"truncate": None}, {"on_long": "end"}):
        reply = server.call(path, {"inputs": ["short", LONG], **more})
        assert bits(reply.vectors) == bits(wanted)
        assert reply.headers["x-truncated-texts"] == "1"
    reply = server.call(path, {"inputs": ["short", LONG], "truncate": False})
    assert reply.status == 422
    assert reply.json == {
        "error": "Input validation error: `inputs` must have at most 64 tokens. "
        "Given: 102 in text 1",
        "error_type": "Validation",
    }
    for more in ({"on_long": "mean"}, {"on_long": "mean", "truncate": False}):
        reply = server.call(path, {"inputs": ["short", LONG], **more})
        assert bits(reply.vectors) == bits(encode(embedder, ["short", LONG], truncate="mean"))
        assert "x-truncated-texts" not in reply.headers
    reply = server.call(path, {"inputs": [LONG]}, headers={"x-on-long": "chunk"})
    assert bits(reply.vectors) == bits(encode(embedder, [LONG], truncate="chunk"))


def test_auto_truncate_off(tmp_path: Path) -> None:
    with in_thread(tiny(tmp_path), max_length=64, auto_truncate=False) as server:
        assert server.call("/embed", {"inputs": LONG}).status == 422
        assert server.call("/embed", {"inputs": LONG, "truncate": True}).status == 200
        assert server.call("/info").json["auto_truncate"] is False


@pytest.mark.parametrize("path", [*EMBEDS, "/embed_all"])
@pytest.mark.parametrize("direction", ["Left", "left"])
def test_texts_are_not_cut_at_their_beginning(server: InThread, path: str, direction: str) -> None:
    reply = server.call(path, {"inputs": "a", "truncation_direction": direction})
    assert (reply.status, reply.json["error_type"]) == (422, "Validation")
    assert "truncation_direction" in reply.json["error"]


@pytest.mark.parametrize("direction", ["Right", "right", None])
def test_texts_are_cut_at_their_end(server: InThread, direction: str | None) -> None:
    reply = server.call("/embed", {"inputs": "a", "truncation_direction": direction})
    assert reply.status == 200


@pytest.mark.parametrize("path", EMBEDS)
def test_null_and_unknown_keys(server: InThread, embedder: Embedder, path: str) -> None:
    keys = (
        "truncate", "truncation_direction", "prompt_name", "normalize", "dimensions", "on_long",
        "top_n", "unheard",
    )  # fmt: skip
    for key in keys:
        reply = server.call(path, {"inputs": "a", key: None})
        assert bits(reply.vectors) == bits(encode(embedder, ["a"])), key
    reply = server.call(path, {"inputs": "a", "parameters": {"x": 1}, "raw_scores": True})
    assert bits(reply.vectors) == bits(encode(embedder, ["a"]))


def test_token_ids(server: InThread, embedder: Embedder) -> None:
    ids, _ = embedder.tokenizer.encode(["hello", "more"], 64)
    wanted = encode(embedder, ["hello", "more"])
    assert bits(server.call("/embed", {"inputs": ids}).vectors) == bits(wanted)
    assert bits(server.call("/embed", {"inputs": ids[0]}).vectors) == bits(wanted[:1])
    reply = server.call("/embed", {"inputs": [5, 6]})
    assert (reply.status, reply.json["error_type"]) == (422, "Validation")
    assert "special tokens" in reply.json["error"]


def test_embed_all(server: InThread, embedder: Embedder) -> None:
    texts = ["hello world", "a"]
    found = server.call("/embed_all", {"inputs": texts}).json
    assert [len(rows) for rows in found] == embedder.tokenizer.count(texts)
    wanted = embedder.encode(texts, prompt="", output_value="token_embeddings")
    for rows, tokens in zip(found, wanted, strict=True):
        own = torch.as_tensor(np.asarray(tokens)).numpy()
        assert bits(np.array(rows, np.float64).astype(np.float32)) == bits(own)
    reply = server.call("/embed_all", {"inputs": LONG, "prompt_name": "clustering"})
    assert np.array(reply.json).shape == (1, 64, WIDTH)
    assert reply.headers["x-truncated-texts"] == "1"


@pytest.mark.parametrize(
    "more",
    [{"dimensions": 8}, {"on_long": "mean"}, {"on_long": "chunk"}, {"inputs": [101, 102]}],
)
def test_what_is_for_vectors_only(server: InThread, more: dict[str, Any]) -> None:
    reply = server.call("/embed_all", {"inputs": "a"} | more)
    assert (reply.status, reply.json["error_type"]) == (422, "Validation")


SENTENCES = {"source_sentence": "hello", "sentences": ["hello", "goodbye", ""]}


@pytest.mark.parametrize("path", ["/similarity", "/", "/invocations"])
@pytest.mark.parametrize("prompt", [None, "clustering"])
def test_similarity(server: InThread, embedder: Embedder, path: str, prompt: str | None) -> None:
    body: dict[str, Any] = {"inputs": SENTENCES}
    if prompt is not None:
        body["parameters"] = {"prompt_name": prompt, "truncate": None}
    reply = server.call(path, body)
    text = "" if prompt is None else f"{prompt}: "
    rows = encode(embedder, ["hello", "hello", "goodbye", ""], prompt=text)
    np.testing.assert_allclose(reply.json, rows[1:] @ rows[0], atol=1e-6)
    assert reply.json[0] == pytest.approx(1, abs=1e-6)
    assert reply.headers["x-compute-tokens"].isdecimal()


def test_similarity_refuses_what_is_too_long(server: InThread) -> None:
    sentences = {"source_sentence": "a", "sentences": [LONG]}
    body = {"inputs": sentences, "parameters": {"truncate": False}}
    assert server.call("/similarity", body).status == 422
    body = {"inputs": sentences, "parameters": {"truncate": True}}
    assert server.call("/similarity", body).headers["x-truncated-texts"] == "1"
    empty = {"inputs": {"source_sentence": "a", "sentences": []}}
    assert server.call("/similarity", empty).json["error_type"] == "Empty"


def test_vertex(server: InThread, embedder: Embedder) -> None:
    instances: list[dict[str, Any]] = [
        {"inputs": "a"}, {"inputs": ["b", "c"], "dimensions": 8},
        {"inputs": "d", "prompt_name": "clustering"},
    ]  # fmt: skip
    reply = server.call("/vertex", {"instances": instances})
    found = reply.json
    assert list(found) == ["predictions"]
    assert "x-embedding-fingerprint" not in reply.headers  # they differ
    alike = server.call("/vertex", {"instances": [instances[0]] * 2})
    alone = server.call("/embed", instances[0])
    name = "x-embedding-fingerprint"
    assert alike.headers[name] == alone.headers[name]
    first, second, third = (
        np.array(rows, np.float64).astype(np.float32) for rows in found["predictions"]
    )
    assert bits(first) == bits(encode(embedder, ["a"]))
    assert bits(second) == bits(embedder.encode(["b", "c"], prompt="", matryoshka_dim=8))
    assert bits(third) == bits(encode(embedder, ["d"], prompt="clustering: "))
    reply = server.call("/vertex", {"instances": []})
    assert (reply.status, reply.json["error_type"]) == (400, "Empty")
    reply = server.call("/vertex", {"instances": [{"inputs": "a"}, {"inputs": []}]})
    assert (reply.status, reply.json["error_type"]) == (400, "Empty")


def test_tokenize(server: InThread) -> None:
    (tokens,) = server.call("/tokenize", {"inputs": "ab ü"}).json
    assert [token["id"] for token in tokens][:: len(tokens) - 1] == [101, 102]
    assert tokens[0] == {
        "id": 101, "text": "[CLS]", "special": True, "start": None, "stop": None
    }  # fmt: skip
    places = [(token["text"], token["start"], token["stop"]) for token in tokens[1:-1]]
    assert places == [("a", 0, 1), ("b", 1, 2), ("ü", 3, 4)]
    two = server.call("/tokenize", {"inputs": ["a", "b"], "add_special_tokens": False}).json
    assert [len(tokens) for tokens in two] == [1, 1]
    prompted = server.call("/tokenize", {"inputs": "a", "prompt_name": "search_query"}).json[0]
    assert [token["text"] for token in prompted[1:-1]] == ["search", "_", "query", ":", "a"]
    long = server.call("/tokenize", {"inputs": LONG}).json[0]
    assert len(long) == 102  # the whole text, whatever the limit


def test_decode(server: InThread) -> None:
    ids = [token["id"] for token in server.call("/tokenize", {"inputs": "a b"}).json[0]]
    assert server.call("/decode", {"ids": ids}).json == ["a b"]
    assert server.call("/decode", {"ids": [ids, ids[:2]]}).json == ["a b", "a"]
    whole = server.call("/decode", {"ids": ids, "skip_special_tokens": False}).json
    assert whole == ["[CLS] a b [SEP]"]
    assert server.call("/decode", {"ids": [[]]}).json == [""]
    for wrong in ([1, [2]], [-1], [384], [10**30]):
        reply = server.call("/decode", {"ids": wrong})
        assert (reply.status, reply.json["error_type"]) == (422, "Validation")


@pytest.mark.parametrize(
    ("path", "task"),
    [("/predict", "classifier"), ("/rerank", "re-ranker"), ("/embed_sparse", "sparse")],
)
def test_routes_of_other_models(server: InThread, path: str, task: str) -> None:
    reply = server.call(path, {"inputs": "a", "query": "a", "texts": ["b"]})
    assert reply.status == 424
    assert reply.json == {"error": f"the model is not a {task} model", "error_type": "Backend"}


def test_info(server: InThread, embedder: Embedder) -> None:
    info = server.call("/info").json
    wanted = {
        "model_id": MODEL, "served_model_name": MODEL, "model_dtype": "float32",
        "model_type": {"embedding": {"pooling": "mean"}}, "max_input_length": 64,
        "max_batch_tokens": 256, "max_client_batch_size": None, "auto_truncate": True,
        "max_concurrent_requests": 1024, "model_sha": None, "docker_label": None, "sha": None,
        "max_batch_requests": None, "dimensions": WIDTH, "prompts": embedder.prompts,
    }  # fmt: skip
    assert wanted.items() <= info.items()
    assert isinstance(info["tokenization_workers"], int)
    assert isinstance(info["version"], str)


def test_the_size_of_a_batch(tmp_path: Path) -> None:
    def ask(path: str, count: int) -> Reply:
        return server.call(path, {"inputs": ["a"] * count})

    with in_thread(tiny(tmp_path), max_client_batch_size=3) as server:
        assert ask("/embed", 3).status == 200
        reply = ask("/embed", 4)
        assert reply.status == 422
        assert reply.json["error"].endswith("batch size 4 > maximum allowed batch size 3")
        assert server.call("/info").json["max_client_batch_size"] == 3
