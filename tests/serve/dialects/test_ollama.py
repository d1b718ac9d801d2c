"""Ollama's routes: bodies, defaults, answers, names, and the bits of their vectors."""

from __future__ import annotations

import datetime
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nomicbert import Embedder, __version__
from nomicbert.serve import models
from nomicbert.serve.dialects.ollama_models import _human, tagged
from nomicbert.user_warnings import TruncationWarning
from tests.support.rerankers import build_reranker
from tests.support.served import JSON, LONG, MODEL, WIDTH, Gate, bits, embedder_of, tiny
from tests.support.serving import InThread, Reply, in_thread, wait_until

TEXTS = ["What is TSNE?", "", "t-distributed stochastic neighbour embedding"]
BOTH = ["/api/embed", "/api/embeddings"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InThread]:
    with in_thread(tiny(tmp_path_factory.mktemp("ollama")), max_length=64) as found:
        yield found
        assert found.metric("nomicbert_internal_errors_total") == 0


@pytest.fixture(scope="module")
def embedder(server: InThread) -> Embedder:
    return embedder_of(server)


def ask(server: InThread, given: Any = TEXTS, path: str = "/api/embed", **more: Any) -> Reply:
    """`given` is the input or the prompt."""
    field = "prompt" if path == "/api/embeddings" else "input"
    return server.call(path, {"model": MODEL, field: given, **more})


def encode(embedder: Embedder, texts: Any, **more: Any) -> np.ndarray:
    chosen = {} if "matryoshka_dim" in more else {"normalize_embeddings": True}
    found: np.ndarray = embedder.encode(texts, **({"prompt": ""} | chosen | more))
    return found


def refused(reply: Reply, status: int, *parts: str) -> None:
    assert reply.status == status, reply.body[:300]
    assert reply.headers["content-type"] == "application/json"
    assert set(reply.json) == {"error"}
    for part in parts:
        assert part in reply.json["error"]


# --- POST /api/embed ---


def test_embed(server: InThread, embedder: Embedder) -> None:
    reply = ask(server)
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    found = reply.json
    assert list(found) == [
        "model", "embeddings", "total_duration", "load_duration", "prompt_eval_count"
    ]  # fmt: skip
    assert found["model"] == MODEL
    assert found["prompt_eval_count"] == sum(embedder.tokenizer.count(TEXTS))
    assert found["load_duration"] == 0
    # nanoseconds: no request takes less than a microsecond, or more than ten minutes
    assert type(found["total_duration"]) is int
    assert 1_000 < found["total_duration"] < 600 * 10**9
    assert bits(reply.vectors) == bits(encode(embedder, TEXTS))
    assert len(reply.headers["x-embedding-fingerprint"]) > 30


def test_one_text(server: InThread, embedder: Embedder) -> None:
    reply = ask(server, TEXTS[0])
    assert bits(reply.vectors) == bits(encode(embedder, TEXTS[:1]))


@pytest.mark.parametrize("dimensions", [1, 12, 64])
def test_dimensions_follow_the_recipe(
    server: InThread, embedder: Embedder, dimensions: int
) -> None:
    found = ask(server, dimensions=dimensions).vectors
    assert bits(found) == bits(encode(embedder, TEXTS, matryoshka_dim=dimensions))
    # ollama's own recipe, slice and L2, differs for this checkpoint
    plain = encode(embedder, TEXTS)[:, :dimensions]
    plain /= np.linalg.norm(plain, axis=1, keepdims=True)
    assert dimensions == 1 or np.abs(plain - found).max() > 1e-3


def test_prompts(server: InThread, embedder: Embedder) -> None:
    for name in embedder.prompts:
        found = ask(server, prompt_name=name).vectors
        assert bits(found) == bits(encode(embedder, TEXTS, prompt=f"{name}: "))
    found = ask(server, [f"search_query: {text}" for text in TEXTS]).vectors
    assert bits(found) == bits(encode(embedder, TEXTS, prompt="search_query: "))


@pytest.mark.parametrize("given", [[], "", None])
def test_an_empty_input(server: InThread, given: Any) -> None:
    reply = ask(server, given)
    assert (reply.status, reply.json) == (200, {"model": MODEL, "embeddings": []})
    assert server.call("/api/embed", {"model": MODEL}).json["embeddings"] == []
    refused(ask(server, given, dimensions=65), 400, "1 to 64")
    refused(ask(server, given, model="x"), 404)


def test_an_empty_text_in_a_list(server: InThread, embedder: Embedder) -> None:
    assert bits(ask(server, [""]).vectors) == bits(encode(embedder, [""]))


# --- POST /api/embeddings ---


def test_embeddings(server: InThread, embedder: Embedder) -> None:
    """One vector before any L2."""
    reply = ask(server, TEXTS[0], "/api/embeddings")
    assert (reply.status, list(reply.json)) == (200, ["embedding"])
    found = np.array([reply.json["embedding"]], np.float64).astype(np.float32)
    openai = {"model": MODEL, "input": TEXTS[0], "normalize": False}
    assert bits(found) == bits(server.call("/v1/embeddings", openai).vectors)
    assert bits(found) == bits(embedder.encode(TEXTS[:1], prompt=""))  # it has no Normalize module
    assert abs(float(np.linalg.norm(found)) - 1) > 1e-2


@pytest.mark.parametrize("given", ["", None])
def test_an_empty_prompt(server: InThread, given: Any) -> None:
    reply = ask(server, given, "/api/embeddings")
    assert (reply.status, reply.json) == (200, {"embedding": []})
    assert server.call("/api/embeddings", {"model": MODEL}).json == {"embedding": []}


# --- both ---


@pytest.mark.parametrize("path", BOTH)
@pytest.mark.parametrize("media", [None, "", "text/plain", "application/x-www-form-urlencoded"])
def test_the_content_type_does_not_matter(server: InThread, path: str, media: str | None) -> None:
    body = {"model": MODEL, "input": "a", "prompt": "a"}
    headers = {} if media is None else {"content-type": media}
    found = server.call(path, json.dumps(body).encode(), headers=headers).json
    wanted = server.call(path, body).json
    assert found.get("embeddings") == wanted.get("embeddings")
    assert found.get("embedding") == wanted.get("embedding")


def test_null_and_unknown_keys(server: InThread, embedder: Embedder) -> None:
    keys = (
        "truncate", "dimensions", "options", "prompt_name", "on_long", "keep_alive", "unheard",
    )  # fmt: skip
    wanted = bits(encode(embedder, TEXTS))
    for key in keys:
        assert bits(ask(server, **{key: None}).vectors) == wanted, key
    more = {"options": {"num_ctx": None, "num_gpu": 1, "seed": 4}, "keep_alive": "5m"}
    assert bits(ask(server, **more).vectors) == wanted
    assert bits(ask(server, keep_alive=-1, options={}).vectors) == wanted


WRONG = [
    ({"model": 1}, "model"), ({"truncate": "true"}, "truncate"), ({"truncate": 1}, "truncate"),
    ({"options": []}, "options"), ({"options": {"num_ctx": "9"}}, "options"),
    ({"options": {"num_ctx": 2}}, "`num_ctx` must be at least 3"),
    ({"options": {"num_ctx": -1}}, "num_ctx"), ({"prompt_name": "none"}, "prompt_name"),
    ({"prompt_name": 1}, "prompt_name"), ({"on_long": "start"}, "on_long"),
]  # fmt: skip
WRONG_INPUT = [
    ({"input": 1}, "input"), ({"input": {}}, "input"), ({"input": [1]}, "input"),
    ({"input": [None]}, "input"), ({"input": [["a"]]}, "input"), ({"input": True}, "input"),
    ({"dimensions": 0}, "1 to 64"), ({"dimensions": 65}, "1 to 64"), ({"dimensions": "8"}, "dime"),
    ({"dimensions": 1.5}, "dimensions"), ({"dimensions": 10**30}, "dimensions"),
]  # fmt: skip


@pytest.mark.parametrize(("more", "part"), [*WRONG, *WRONG_INPUT])
def test_wrong_values(server: InThread, more: dict[str, Any], part: str) -> None:
    body = {"model": MODEL, "input": "a", "prompt": "a"} | more
    refused(server.call("/api/embed", body), 400, part)
    if (more, part) in WRONG:
        refused(server.call("/api/embeddings", body), 400, part)


@pytest.mark.parametrize("path", BOTH)
def test_bodies_that_are_refused(server: InThread, path: str) -> None:
    for body in (b"", b"{", b'{"model": "m", "input": "\\ud800", "prompt": "\\ud800"}', b"\xff"):
        refused(server.call(path, body, headers=JSON), 400, "the body is not JSON")
    refused(server.call(path, b"[]", headers=JSON), 400)
    refused(server.call(path, {"input": "a", "prompt": "a"}), 400, "`model` is missing")
    refused(server.call("/api/embeddings", {"model": MODEL, "prompt": ["a"]}), 400, "prompt")


@pytest.mark.parametrize("path", BOTH)
def test_long_texts(server: InThread, embedder: Embedder, path: str) -> None:
    unit = {"normalize_embeddings": path == "/api/embed"}
    field = "embeddings" if path == "/api/embed" else "embedding"

    def vectors(reply: Reply) -> np.ndarray:
        assert reply.status == 200, reply.body
        return np.array(reply.json[field], np.float64).astype(np.float32).reshape(1, WIDTH)

    with pytest.warns(TruncationWarning):
        wanted = encode(embedder, [LONG], **unit)
    with pytest.warns(TruncationWarning):
        shorter = encode(embedder, [LONG], max_length=20, **unit)
    before = server.metric("nomicbert_truncated_texts_total")
    for more in ({}, {"truncate": True}, {"truncate": None}, {"options": {"num_ctx": 8192}}):
        reply = ask(server, LONG, path, **more)
        assert bits(vectors(reply)) == bits(wanted)
        assert reply.headers["x-truncated-texts"] == "1"
    reply = ask(server, LONG, path, options={"num_ctx": 20})
    assert bits(vectors(reply)) == bits(shorter)
    assert server.metric("nomicbert_truncated_texts_total") == before + 5
    for more in ({"truncate": False}, {"on_long": "error"}):
        reply = ask(server, LONG, path, **more)
        assert reply.status == 400
        assert reply.json["error"] == "the input length exceeds the context length"
        assert "at most 64 tokens. Given: 102 in text 0" in reply.json["detail"]
    reply = ask(server, "a" * 30, path, truncate=False, options={"num_ctx": 20})
    assert reply.json["error"] == "the input length exceeds the context length"
    assert ask(server, "a" * 30, path, truncate=False).status == 200
    reply = ask(server, LONG, path, on_long="chunk")
    assert bits(vectors(reply)) == bits(encode(embedder, [LONG], truncate="chunk", **unit))
    assert "x-truncated-texts" not in reply.headers


# --- names, lists ---


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InThread]:
    """Two models with several names."""
    place = tmp_path_factory.mktemp("several")
    first = tiny(place, "nomic-embed-text-v1.5")
    second = tiny(place, "other", seed=1, hidden_size=32)
    settings = {"served_model_names": ("nomic-ai/nomic-embed-text-v1.5",)}
    with in_thread(first, second, model_aliases=(("a/b", "other"),), **settings) as found:
        yield found


FIRST = ["nomic-embed-text", "nomic-embed-text-v1.5", "nomic-ai/nomic-embed-text-v1.5"]
SECOND = ["other", "a/b"]
NAMES = {
    **dict.fromkeys([*FIRST, *map(tagged, FIRST), "nomic-embed-text:v1.5"], 64),
    **dict.fromkeys([*SECOND, *map(tagged, SECOND)], 32),
}


@pytest.mark.parametrize(("name", "width"), NAMES.items())
def test_every_name(several: InThread, name: str, width: int) -> None:
    reply = several.call("/api/embed", {"model": name, "input": ["a", "b"]})
    assert reply.json["model"] == name
    assert reply.vectors.shape == (2, width)
    shown = several.call("/api/show", {"model": name}).json
    assert shown["model_info"]["nomic-bert.embedding_length"] == width
    assert several.call("/api/show", {"name": name}).json == shown


@pytest.mark.parametrize("name", ["", "x", "other:v2", "other:latest:v1", ":latest", "x" * 5000])
def test_unknown_names(several: InThread, name: str) -> None:
    for path in ("/api/embed", "/api/embeddings", "/api/show"):
        reply = several.call(path, {"model": name, "input": "a", "prompt": "a"})
        refused(reply, 404)
        assert len(reply.body) < 3000
        if len(name) < 100:
            assert reply.json["error"] == f"model '{name}' not found"


def test_tags(several: InThread) -> None:
    found = several.call("/api/tags").json
    assert list(found) == ["models"]
    listed = [item["name"] for item in found["models"]]
    assert sorted(listed) == sorted({tagged(name) for name in NAMES})
    one = next(item for item in found["models"] if item["name"] == "a/b:latest")
    assert set(one) == {"name", "model", "modified_at", "size", "digest", "details"}
    other = Embedder(str(several.service.settings.models[1]), device="cpu").embedding_model
    count = sum(each.numel() for each in other.parameters())
    assert one["model"] == one["name"]
    assert one["size"] == 4 * count
    assert one["details"] == {
        "parent_model": "", "format": "safetensors", "family": "nomic-bert",
        "families": ["nomic-bert"], "parameter_size": _human(count), "quantization_level": "F32",
    }  # fmt: skip
    moment = datetime.datetime.fromisoformat(one["modified_at"].replace("Z", "+00:00"))
    age = datetime.datetime.now(datetime.timezone.utc) - moment
    assert datetime.timedelta(0) < age < datetime.timedelta(hours=1)
    # a digest names the model, whatever it is called
    digests = {item["name"]: item["digest"] for item in found["models"]}
    assert len(set(digests.values())) == 2
    assert digests["a/b:latest"] == digests["other:latest"] != digests["nomic-embed-text:v1.5"]
    assert len(one["digest"]) == 64
    assert int(one["digest"], 16)


def test_ps_show_and_version(several: InThread) -> None:
    running = several.call("/api/ps").json["models"]
    assert [item["name"] for item in running] == ["nomic-embed-text-v1.5:latest", "other:latest"]
    assert running[0]["size_vram"] == 0
    assert running[0]["context_length"] == 8192
    assert running[0]["expires_at"] > "2100"
    shown = several.call("/api/show", {"model": "other"}).json
    assert shown["capabilities"] == ["embedding"]
    config = several.service.models[1].embedder.model.config
    info = shown["model_info"]
    assert info["general.architecture"] == shown["details"]["family"] == "nomic-bert"
    assert info["nomic-bert.context_length"] == 8192
    assert info["nomic-bert.block_count"] == config.num_hidden_layers
    assert info["nomic-bert.attention.head_count"] == config.num_attention_heads
    for key in ("modelfile", "parameters", "template", "details", "modified_at"):
        assert key in shown
    refused(several.call("/api/show", {}), 400, "`model` is missing")
    refused(several.call("/api/show", {"model": 1}), 400, "model")
    assert several.call("/api/version").json == {"version": __version__}


def test_sizes_for_people() -> None:
    sizes = {1: "1", 999: "999", 22_700_000: "22.7M", 136_731_648: "137M", 1_200_000_000: "1.2B"}
    assert {size: _human(size) for size in sizes} == sizes
    assert _human(5_400) == "5.4K"


def test_models_that_do_not_embed(tmp_path: Path) -> None:
    reranker = build_reranker(tmp_path / "reranker")
    with in_thread(tiny(tmp_path), reranker) as server:
        for path in (*BOTH, "/api/show"):
            reply = server.call(path, {"model": "reranker", "input": "a", "prompt": "a"})
            refused(reply, 400, "'reranker' is not an embedding model")
        for path in ("/api/tags", "/api/ps"):
            names = [item["name"] for item in server.call(path).json["models"]]
            assert names == [f"{MODEL}:latest"]


def test_any_model_name(tmp_path: Path) -> None:
    with in_thread(tiny(tmp_path), any_model_name=True) as server:
        assert ask(server, "a", model="llama3:8b").json["model"] == "llama3:8b"
        reply = server.call("/api/embed", {"input": "a"})
        assert (reply.status, reply.json["model"]) == (200, MODEL)


def test_a_tag_of_the_second_model(tmp_path: Path) -> None:
    """Also where any name is taken: it is that of a model, not just any."""
    folders = [tiny(tmp_path), tiny(tmp_path, "second", num_hidden_layers=2)]
    with in_thread(*folders, any_model_name=True) as server:
        first, second = (ask(server, "a", model=f"{path.name}:latest") for path in folders)
        assert bits(first.vectors) != bits(second.vectors)
        assert bits(second.vectors) == bits(ask(server, "a", model="second").vectors)
        assert bits(first.vectors) == bits(ask(server, "a", model="third:latest").vectors)
        shown = server.call("/api/show", {"model": "second:latest"})
        assert shown.status == 200


def test_vectors_before_l2_have_no_mean(server: InThread) -> None:
    body = {"model": MODEL, "prompt": "a", "on_long": "mean"}
    refused(server.call("/api/embeddings", body), 400, "use /api/embed")


# --- what this server does not do; GET / ---


@pytest.mark.parametrize(
    ("method", "path", "status", "part"),
    [
        ("POST", "/api/pull", 501, "--model"), ("POST", "/api/push", 501, "--model"),
        ("POST", "/api/create", 501, "--model"), ("POST", "/api/copy", 501, "--model"),
        ("DELETE", "/api/delete", 501, "--model"), ("POST", "/api/generate", 400, "embeds only"),
        ("POST", "/api/chat", 400, "embeds only"),
    ],
)  # fmt: skip
def test_routes_that_are_refused(
    server: InThread, method: str, path: str, status: int, part: str
) -> None:
    refused(server.call(path, {"model": MODEL}, method=method), status, part)
    refused(server.call(path, b"", method=method, headers={}), status, part)


@pytest.mark.parametrize("agent", ["ollama-python/0.6.3 (x86_64 linux)", "ollama/0.12", "Ollama"])
def test_the_root_for_ollamas_clients(server: InThread, agent: str) -> None:
    reply = server.call("/", headers={"user-agent": agent})
    assert (reply.status, reply.body) == (200, b"Ollama is running")
    assert reply.headers["content-type"] == "text/plain; charset=utf-8"
    head = server.call("/", method="HEAD", headers={"user-agent": agent})
    assert (head.status, head.body) == (200, b"")
    assert server.call("/health", headers={"user-agent": agent}).body == b""


def test_the_root_for_others(server: InThread) -> None:
    for agent in ({}, {"user-agent": "curl/8"}, {"user-agent": "my ollama"}):
        reply = server.call("/", headers=agent)
        assert (reply.status, reply.body) == (200, b"")
    assert server.call("/", method="HEAD").status == 200


# --- keys, limits, loading, stopping: for Cohere's routes, too ---


def bodies(text: str = "a") -> dict[str, Any]:
    return {
        "/v1/embed": {"texts": [text]}, "/v2/embed": {"texts": [text]},
        "/api/embed": {"model": MODEL, "input": [text]},
        "/api/embeddings": {"model": MODEL, "prompt": text},
    }  # fmt: skip


def message(reply: Reply) -> str:
    """The message of an error of Cohere's or ollama's."""
    ((key, found),) = reply.json.items()
    assert key in ("message", "error")
    assert isinstance(found, str)
    return found


def test_while_loading_and_stopping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, own = threading.Event(), models.load

    def slow(*arguments: Any) -> Any:
        assert go.wait(120)
        return own(*arguments)

    monkeypatch.setattr(models, "load", slow)
    agent = {"user-agent": "ollama/1"}
    with in_thread(tiny(tmp_path), wait=False) as server:
        wait_until(lambda: server.server.started)
        early = [server.call(path, body) for path, body in bodies().items()]
        early += [server.call("/api/show", {"model": MODEL}), server.call("/api/chat", {})]
        early += [server.call("/api/tags"), server.call("/api/ps")]
        assert server.call("/api/version").status == 200
        assert server.call("/", headers=agent).status == 503
        go.set()
        wait_until(lambda: server.call("/health/ready").status == 200)
        for path, body in bodies().items():
            assert server.call(path, body).status == 200
        server.service.draining = True
        for path, body in bodies().items():
            reply = server.call(path, body)
            assert (reply.status, reply.headers["connection"]) == (200, "close")
        assert server.call("/", headers=agent).status == 503
        server.service.stopping = True
        late = [server.call(path, body) for path, body in bodies().items()]
    for reply in early:
        assert (reply.status, reply.headers["retry-after"]) == (503, "2")
        assert message(reply) == "the models are being loaded"
    for reply in late:
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")
        assert message(reply) == "the server is stopping"


def test_a_full_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with in_thread(tiny(tmp_path), max_waiting_tokens=100) as server:
        with ThreadPoolExecutor(8) as pool, Gate.on(monkeypatch) as gate:
            first = pool.submit(ask, server, "first")
            wait_until(lambda: gate.batches == 1)
            waiting = [pool.submit(ask, server, "a " * 30) for _ in range(2)]
            wait_until(lambda: server.metric("nomicbert_waiting_texts") == 2)
            replies = {path: server.call(path, body) for path, body in bodies("a " * 90).items()}
            gate.open()
            assert [call.result().status for call in (first, *waiting)] == [200, 200, 200]
        for path, reply in replies.items():
            assert reply.status == (503 if path.startswith("/api") else 429), path
            assert int(reply.headers["retry-after"]) >= 1
            assert message(reply)
        assert server.metric("nomicbert_refused_total", reason="queue_full") == 4


def test_a_body_over_the_limit_and_a_key(tmp_path: Path) -> None:
    with in_thread(tiny(tmp_path), payload_limit=1000, api_keys=("key",)) as server:
        right = {"authorization": "Bearer key"}
        for path, body in bodies("a" * 1000).items():
            reply = server.call(path, body, headers=right)
            assert reply.status == 413
            assert "--payload-limit" in message(reply)
        for path, body in bodies().items():
            assert server.call(path, body, headers=right).status == 200
            for wrong in ({}, {"authorization": "Bearer other"}, {"authorization": "key"}):
                reply = server.call(path, body, headers=wrong)
                assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")
                assert "authorization: Bearer KEY" in message(reply)


def test_metrics_and_logs(tmp_path: Path) -> None:
    with in_thread(tiny(tmp_path), max_length=64) as server:
        seen: list[Any] = []
        server.service.request_log = seen.append
        for path, body in bodies(LONG).items():
            assert server.call(path, body).status == 200
            dialect = "ollama" if path.startswith("/api") else "cohere"
            labels = {"dialect": dialect, "route": path, "status": "200"}
            assert server.metric("nomicbert_requests_total", **labels) == 1
            (line,) = (line for line in seen if line["route"] == path)
            assert (line["status"], line["model"]) == (200, MODEL)
            assert (line["texts"], line["truncated"]) == (1, 1)
        assert server.metric("nomicbert_truncated_texts_total") == 4
        assert server.metric("nomicbert_texts_total") == 4
