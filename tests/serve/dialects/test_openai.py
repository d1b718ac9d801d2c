"""OpenAI's routes: bodies, defaults, answers, and the bits of their vectors."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nomicbert import Embedder
from nomicbert.user_warnings import TruncationWarning
from tests.support.served import JSON, LONG, MODEL, WIDTH, bits, embedder_of, tiny
from tests.support.serving import InThread, Reply, in_thread

TEXTS = ["What is TSNE?", "", "t-distributed stochastic neighbour embedding", "ü 中文 \0 end"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InThread]:
    with in_thread(tiny(tmp_path_factory.mktemp("openai")), max_length=64) as found:
        yield found


@pytest.fixture(scope="module")
def embedder(server: InThread) -> Embedder:
    return embedder_of(server)


def ask(server: InThread, given: Any, headers: dict[str, str] | None = None, **more: Any) -> Reply:
    body = {"model": MODEL, "input": given, **more}
    return server.call("/v1/embeddings", body, headers=headers)


def encode(embedder: Embedder, texts: Any, **more: Any) -> np.ndarray:
    """What the server computes for a request without a prompt: `normalize_embeddings=True`."""
    chosen = {"prompt": "", "normalize_embeddings": True} | more
    return embedder.encode(texts, **chosen)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings"])
def test_the_answer(server: InThread, embedder: Embedder, path: str) -> None:
    reply = server.call(path, {"model": MODEL, "input": TEXTS})
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    assert int(reply.headers["content-length"]) == len(reply.body)
    found = reply.json
    assert set(found) == {"object", "data", "model", "usage"}
    assert (found["object"], found["model"]) == ("list", MODEL)
    assert [item["index"] for item in found["data"]] == [0, 1, 2, 3]
    assert {item["object"] for item in found["data"]} == {"embedding"}
    assert all(len(item) == 3 for item in found["data"])
    tokens = sum(embedder.tokenizer.count(TEXTS))
    assert found["usage"] == {
        "prompt_tokens": tokens, "total_tokens": tokens, "truncated_texts": 0
    }  # fmt: skip
    assert all(type(value) is int for value in found["usage"].values())
    assert bits(reply.vectors) == bits(encode(embedder, TEXTS))


def test_one_text(server: InThread, embedder: Embedder) -> None:
    reply = ask(server, TEXTS[0])
    assert [item["index"] for item in reply.json["data"]] == [0]
    assert bits(reply.vectors) == bits(encode(embedder, [TEXTS[0]]))


def test_base64_and_float_have_the_same_bits(server: InThread, embedder: Embedder) -> None:
    floats = ask(server, TEXTS, encoding_format="float")
    coded = ask(server, TEXTS, encoding_format="base64")
    item = coded.json["data"][0]["embedding"]
    assert isinstance(item, str)
    assert len(base64.b64decode(item, validate=True)) == 4 * WIDTH
    assert bits(floats.vectors) == bits(coded.vectors) == bits(encode(embedder, TEXTS))
    assert bits(ask(server, TEXTS, encoding_format=None).vectors) == bits(floats.vectors)
    assert isinstance(ask(server, TEXTS).json["data"][0]["embedding"], list)


@pytest.mark.parametrize("dimensions", [1, 2, 16, WIDTH - 1, WIDTH])
def test_dimensions_follow_the_recipe(
    server: InThread, embedder: Embedder, dimensions: int
) -> None:
    reply = ask(server, TEXTS, dimensions=dimensions)
    wanted = embedder.encode(TEXTS, prompt="", matryoshka_dim=dimensions)
    assert wanted.shape == (4, dimensions)
    assert bits(reply.vectors) == bits(wanted)
    # layer_norm comes before the slice: the whole vector cut off is another one
    cut = encode(embedder, TEXTS)[:, :dimensions]
    if 1 < dimensions:
        cut = cut / np.linalg.norm(cut, axis=1, keepdims=True)
        assert not np.allclose(reply.vectors, cut, atol=1e-4)


@pytest.mark.parametrize("key", ["prompt_name", "task_type"])
@pytest.mark.parametrize("name", ["search_query", "search_document", "classification"])
def test_prompts_by_name(server: InThread, embedder: Embedder, key: str, name: str) -> None:
    reply = ask(server, TEXTS, **{key: name})
    wanted = encode(embedder, TEXTS, prompt=f"{name}: ")
    assert bits(reply.vectors) == bits(wanted)
    assert bits(reply.vectors) != bits(encode(embedder, TEXTS))
    counts = embedder.tokenizer.count([f"{name}: {text}" for text in TEXTS])
    assert reply.json["usage"]["prompt_tokens"] == sum(counts)


def test_prompt_name_overrides_task_type(server: InThread, embedder: Embedder) -> None:
    reply = ask(server, "a", prompt_name="clustering", task_type="search_query")
    assert bits(reply.vectors) == bits(encode(embedder, ["a"], prompt="clustering: "))


def test_without_normalisation(server: InThread, embedder: Embedder) -> None:
    found = ask(server, TEXTS, normalize=False).vectors
    norms = np.linalg.norm(found, axis=1)
    assert not np.allclose(norms, 1, atol=1e-2)
    unit = found / norms[:, None]
    np.testing.assert_allclose(unit, encode(embedder, TEXTS), atol=2e-7)
    assert bits(ask(server, TEXTS, normalize=True).vectors) == bits(encode(embedder, TEXTS))


OPTIONAL = (
    "model", "encoding_format", "dimensions", "user", "prompt_name", "task_type", "normalize",
    "on_long", "max_length", "report",
)  # fmt: skip


def test_null_stands_for_a_missing_key(server: InThread, embedder: Embedder) -> None:
    for key in OPTIONAL[1:]:
        reply = ask(server, "a", **{key: None})
        assert (key, reply.status) == (key, 200)
        assert bits(reply.vectors) == bits(encode(embedder, ["a"]))
    reply = ask(server, "a", **dict.fromkeys(OPTIONAL[1:]))
    assert bits(reply.vectors) == bits(encode(embedder, ["a"]))


def test_unknown_keys_are_ignored(server: InThread, embedder: Embedder) -> None:
    reply = ask(server, "a", user="me", truncate_prompt_tokens=-1, unheard={"of": [1, None]})
    assert bits(reply.vectors) == bits(encode(embedder, ["a"]))


def test_the_last_of_equal_keys_counts(server: InThread, embedder: Embedder) -> None:
    body = b'{"model":"%b","input":"first","input":"last"}' % MODEL.encode()
    reply = server.call("/v1/embeddings", body, headers=JSON)
    assert bits(reply.vectors) == bits(encode(embedder, ["last"]))


def test_token_ids(server: InThread, embedder: Embedder) -> None:
    tokenizer = embedder.tokenizer
    ids, _ = tokenizer.encode(["hello", "another one"], 64)
    wanted = encode(embedder, ["hello", "another one"])
    assert bits(ask(server, ids).vectors) == bits(wanted)
    assert bits(ask(server, ids[0]).vectors) == bits(wanted[:1])
    assert ask(server, ids).json["usage"]["prompt_tokens"] == sum(map(len, ids))


@pytest.mark.parametrize(
    "ids",
    [
        [5, 6, 7], [[5, 6, 7]], [101, 5], [5, 102], [101], [102, 101], [101, 10**9, 102],
        [101, -1, 102], [[101, 102], [5]], [[]], [101, 384, 102],
    ],
)  # fmt: skip
def test_token_ids_of_another_tokenizer(server: InThread, ids: Any) -> None:
    reply = ask(server, ids)
    assert reply.status == 400
    error = reply.json["error"]
    assert (error["param"], error["code"]) == ("input", "invalid")
    assert "send text" in error["message"]
    if ids == [5, 6, 7]:
        assert "check_embedding_ctx_length=False" in error["message"]


def test_a_prompt_cannot_be_put_before_token_ids(server: InThread) -> None:
    reply = ask(server, [101, 5, 102], prompt_name="search_query")
    assert reply.status == 400
    assert "prompt" in reply.json["error"]["message"]


@pytest.mark.parametrize("given", [["a", 1], [1, "a"], [[101, 102], "a"], [[101, 102], 101]])
def test_mixtures(server: InThread, given: Any) -> None:
    reply = ask(server, given)
    assert (reply.status, reply.json["error"]["param"]) == (400, "input")


@pytest.mark.parametrize("text", [r"\ud800", r"a\udfffb", r"\ude00\ud83d"])
def test_lone_surrogates_are_refused(server: InThread, text: str) -> None:
    body = f'{{"model":"{MODEL}","input":["fine","{text}"]}}'.encode()
    reply = server.call("/v1/embeddings", body, headers=JSON)
    assert reply.status == 400
    assert "surrogate" in reply.json["error"]["message"]


def test_a_surrogate_pair_is_a_character(server: InThread, embedder: Embedder) -> None:
    body = f'{{"model":"{MODEL}","input":"\\ud83d\\ude00"}}'.encode()
    reply = server.call("/v1/embeddings", body, headers=JSON)
    assert bits(reply.vectors) == bits(encode(embedder, ["\N{GRINNING FACE}"]))


# --- long texts: 64 tokens at most here ---


def test_a_long_text_is_an_error_by_default(server: InThread) -> None:
    reply = ask(server, ["short", LONG])
    assert reply.status == 400
    error = reply.json["error"]
    assert error == {
        "message": "`input` must have at most 64 tokens. Given: 102 in text 1",
        "type": "invalid_request_error",
        "param": "input",
        "code": "context_length_exceeded",
    }
    assert "x-truncated-texts" not in reply.headers


@pytest.mark.parametrize("policy", ["end", "chunk", "mean"])
def test_policies_for_long_texts(server: InThread, embedder: Embedder, policy: str) -> None:
    texts = ["short", LONG, "b " * 150]
    if policy == "end":
        with pytest.warns(TruncationWarning, match="2 of 3"):
            wanted = encode(embedder, texts)
    else:
        wanted = encode(embedder, texts, truncate=policy)
    by_key = ask(server, texts, on_long=policy)
    by_header = ask(server, texts, {"x-on-long": policy})
    assert by_key.status == by_header.status == 200
    assert bits(by_key.vectors) == bits(by_header.vectors) == bits(wanted)
    cut = 2 if policy == "end" else 0
    assert by_key.json["usage"]["truncated_texts"] == cut
    assert by_key.headers.get("x-truncated-texts", "0") == str(cut)
    # the body's key has the last word
    both = ask(server, texts, {"x-on-long": "error"}, on_long=policy)
    assert bits(both.vectors) == bits(wanted)
    assert ask(server, texts, {"x-on-long": policy}, on_long="error").status == 400


def test_a_mean_of_unit_vectors_is_one(server: InThread) -> None:
    for texts in (["short"], ["short", LONG]):
        reply = ask(server, texts, on_long="mean", normalize=False)
        assert (reply.status, reply.json["error"]["param"]) == (400, "on_long")
        assert "`normalize` false" in reply.json["error"]["message"]


@pytest.mark.parametrize("given", ["", "End", "start", "x" * 10_000])
def test_unknown_policies(server: InThread, given: str) -> None:
    reply = ask(server, "a", on_long=given)
    assert (reply.status, reply.json["error"]["param"]) == (400, "on_long")
    assert "error, end, chunk, mean" in reply.json["error"]["message"]
    assert len(reply.body) < 3000
    assert ask(server, "a", {"x-on-long": given[:80] or "-"}).status == 400


def test_a_report_of_lengths(server: InThread, embedder: Embedder) -> None:
    whole = embedder.tokenizer.count(["short", LONG])
    found = ask(server, ["short", LONG], on_long="end", report=True).json
    assert found["lengths"] == [[whole[0], whole[0]], [102, 64]]
    found = ask(server, ["short", LONG], on_long="chunk", report=True).json
    assert found["lengths"] == [[whole[0], whole[0]], [102, 104]]
    found = ask(server, ["short", LONG], on_long="mean", report=True).json
    assert found["lengths"] == [[whole[0], whole[0]], [102, 112]]  # 8 tokens of overlap
    assert found["usage"]["prompt_tokens"] == whole[0] + 112
    for given in (False, None):
        assert "lengths" not in ask(server, "a", report=given).json


def test_a_request_may_lower_the_limit(server: InThread, embedder: Embedder) -> None:
    reply = ask(server, [LONG], max_length=10, on_long="end", report=True)
    assert reply.json["lengths"] == [[102, 10]]
    shorter = encode(embedder, ["a" * 8])
    assert bits(reply.vectors) == bits(shorter)
    for given in (0, -1, 2, 65):
        refused = ask(server, "a", max_length=given)
        assert (refused.status, refused.json["error"]["param"]) == (400, "max_length")


def test_short_texts_need_no_room_for_windows(server: InThread, embedder: Embedder) -> None:
    for policy in ("mean", "chunk"):
        reply = ask(server, ["", "a"], max_length=3, on_long=policy)
        assert bits(reply.vectors) == bits(encode(embedder, ["", "a"]))
    reply = ask(server, ["a b c d"], max_length=3, on_long="mean")
    assert reply.status == 400


# --- models ---


def test_the_list_of_models(server: InThread) -> None:
    reply = server.call("/v1/models")
    prompts = embedder_of(server).prompts
    assert len(prompts) == 4
    model = {
        "id": MODEL, "object": "model", "created": 0, "owned_by": "nomicbert", "root": MODEL,
        "dimensions": WIDTH, "max_model_len": server.service.models[0].max_length,
        "prompts": prompts,
    }  # fmt: skip
    assert reply.json == {"object": "list", "data": [model]}
    assert server.call("/models").json == reply.json
    assert server.call(f"/v1/models/{MODEL}").json == reply.json["data"][0]


def test_the_path_of_a_folder_is_a_name_that_is_not_told(server: InThread) -> None:
    path = server.service.settings.models[0]
    reply = ask(server, "a", model=path)
    assert (reply.status, reply.json["model"]) == (200, path)
    for told in (
        server.call("/v1/models"),
        ask(server, "a", model="unknown"),
        server.call("/info"),
    ):
        assert str(Path(path).parent) not in told.body.decode()


def test_unknown_models(server: InThread) -> None:
    for name in ("text-embedding-3-small", "", "x" * 10_000):
        reply = ask(server, "a", model=name)
        assert reply.status == 404
        error = reply.json["error"]
        assert error["type"] == "not_found_error"
        assert (error["param"], error["code"]) == ("model", "model_not_found")
        assert MODEL in error["message"]
        assert len(reply.body) < 3000
    assert server.call("/v1/models/unknown").status == 404
    assert server.call("/v1/models/").status == 404


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InThread]:
    """Two models with several names."""
    place = tmp_path_factory.mktemp("several")
    first = tiny(place, "nomic-embed-text-v1.5")
    second = tiny(place, "other", seed=1, hidden_size=32)
    settings = {
        "served_model_names": ("nomic-ai/nomic-embed-text-v1.5", "mine"),
        "model_aliases": (("text-embedding-3-small", "mine"), ("a/b/c", "other")),
    }
    with in_thread(first, second, **settings) as found:
        yield found


NAMES = {
    "nomic-embed-text-v1.5": 64, "nomic-ai/nomic-embed-text-v1.5": 64, "mine": 64,
    "nomic-embed-text": 64, "nomic-embed-text:latest": 64, "nomic-embed-text:v1.5": 64,
    "text-embedding-3-small": 64, "other": 32, "a/b/c": 32,
}  # fmt: skip


@pytest.mark.parametrize(("name", "width"), NAMES.items())
def test_every_name_of_every_model(several: InThread, name: str, width: int) -> None:
    reply = ask(several, ["a", "b"], model=name)
    assert reply.json["model"] == name
    assert reply.vectors.shape == (2, width)
    assert several.call(f"/v1/models/{name}").json["id"] == name
    assert several.call(f"/v1/models/{name.replace('/', '%2F')}").json["id"] == name


def test_all_names_are_listed(several: InThread) -> None:
    found = several.call("/v1/models").json["data"]
    assert {item["id"]: item["dimensions"] for item in found} == NAMES
    roots = {64: "nomic-embed-text-v1.5", 32: "other"}
    assert all(item["root"] == roots[item["dimensions"]] for item in found)


def test_each_model_has_its_own_bits_and_metrics(several: InThread) -> None:
    before = several.metric("nomicbert_texts_total", model="other")
    folder = several.service.settings.models[1]
    wanted = encode(Embedder(str(folder), device="cpu"), ["a", "b", "c"])
    assert bits(ask(several, ["a", "b", "c"], model="a/b/c").vectors) == bits(wanted)
    assert several.metric("nomicbert_texts_total", model="other") == before + 3


def test_any_model_name(tmp_path: Path) -> None:
    with in_thread(tiny(tmp_path), any_model_name=True) as server:
        reply = ask(server, "a", model="whatever/this:is")
        assert (reply.status, reply.json["model"]) == (200, "whatever/this:is")
        reply = server.call("/v1/embeddings", {"input": "a"})
        assert (reply.status, reply.json["model"]) == (200, MODEL)
        found = server.call("/v1/models/whatever/this:is").json
        assert (found["id"], found["root"]) == ("whatever/this:is", MODEL)


def test_default_prompts(tmp_path: Path) -> None:
    folder = tiny(tmp_path)
    embedder = Embedder(str(folder), device="cpu")
    with in_thread(folder, default_prompt_name="search_query") as server:
        assert bits(ask(server, ["a"]).vectors) == bits(
            encode(embedder, ["a"], prompt="search_query: ")
        )
        assert bits(ask(server, ["a"], prompt_name="clustering").vectors) == bits(
            encode(embedder, ["a"], prompt="clustering: ")
        )
    with in_thread(folder, default_prompt="my own: ") as server:
        assert bits(ask(server, ["a"]).vectors) == bits(encode(embedder, ["a"], prompt="my own: "))


def test_the_server_overrides_every_policy(tmp_path: Path) -> None:
    with in_thread(tiny(tmp_path), max_length=64, on_long="error") as server:
        assert ask(server, LONG, on_long="end").status == 400
        assert ask(server, LONG, {"x-on-long": "mean"}).status == 400
        assert server.call("/embed", {"inputs": LONG, "truncate": True}).status == 422
        body = {"texts": [LONG], "long_text_mode": "truncate"}
        assert server.call("/v1/embedding/text", body).status == 422


def test_the_cache_gives_the_same_answer(tmp_path: Path) -> None:
    with in_thread(tiny(tmp_path), max_length=64, cache_bytes=1 << 20) as server:
        bodies: list[dict[str, Any]] = [
            {}, {"dimensions": 8}, {"prompt_name": "search_query"}, {"normalize": False},
            {"encoding_format": "base64"},
        ]  # fmt: skip
        first = [ask(server, TEXTS, **body).json for body in bodies]
        hits = server.metric("nomicbert_cache_hits_total")
        assert [ask(server, TEXTS, **body).json for body in bodies] == first
        assert server.metric("nomicbert_cache_hits_total") == hits + 5 * len(TEXTS)
        long = ask(server, [LONG, "a"], on_long="mean", report=True).body
        assert ask(server, [LONG, "a"], on_long="mean", report=True).body == long
        assert json.loads(long)["usage"]["truncated_texts"] == 0
