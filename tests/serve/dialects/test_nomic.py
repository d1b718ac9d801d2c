"""Nomic's hosted protocol: bodies, defaults, answers, and the bits of their vectors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nomicbert import Embedder
from nomicbert.user_warnings import TruncationWarning
from tests.support.checkpoints import build_checkpoint
from tests.support.served import LONG, MODEL, WIDTH, bits, embedder_of, tiny
from tests.support.serving import InThread, Reply, in_thread

TEXTS = ["What is TSNE?", "", "t-distributed stochastic neighbour embedding"]
TASKS = ["search_query", "search_document", "classification", "clustering"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InThread]:
    with in_thread(tiny(tmp_path_factory.mktemp("nomic")), max_length=64) as found:
        yield found


@pytest.fixture(scope="module")
def embedder(server: InThread) -> Embedder:
    return embedder_of(server)


def ask(server: InThread, texts: Any, **more: Any) -> Reply:
    return server.call("/v1/embedding/text", {"model": MODEL, "texts": texts, **more})


def encode(embedder: Embedder, texts: Any, task: str = "search_document", **more: Any) -> Any:
    """What the server computes: the recipe at full width, and by default truncate="mean"."""
    chosen = {"matryoshka_dim": WIDTH, "truncate": "mean"} | more
    return embedder.encode(texts, prompt_name=task, **chosen)


def test_the_answer(server: InThread, embedder: Embedder) -> None:
    reply = ask(server, TEXTS)
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    assert set(reply.json) == {"embeddings", "usage", "model"}
    assert reply.json["model"] == MODEL
    tokens = sum(embedder.tokenizer.count([f"search_document: {text}" for text in TEXTS]))
    usage = reply.json["usage"]
    assert usage == {"prompt_tokens": tokens, "total_tokens": tokens, "truncated_texts": 0}
    assert all(type(value) is int for value in usage.values())
    assert bits(reply.vectors) == bits(encode(embedder, TEXTS))


@pytest.mark.parametrize("task", TASKS)
def test_tasks(server: InThread, embedder: Embedder, task: str) -> None:
    reply = ask(server, TEXTS, task_type=task)
    assert bits(reply.vectors) == bits(encode(embedder, TEXTS, task))


@pytest.mark.parametrize("dimensions", [1, 16, 64])
def test_dimensionality(server: InThread, embedder: Embedder, dimensions: int) -> None:
    reply = ask(server, TEXTS, dimensionality=dimensions)
    assert bits(reply.vectors) == bits(encode(embedder, TEXTS, matryoshka_dim=dimensions))


def test_what_the_python_client_sends(server: InThread, embedder: Embedder) -> None:
    body = {
        "texts": TEXTS, "model": MODEL, "task_type": "search_query", "dimensionality": None,
        "long_text_mode": "truncate",
    }  # fmt: skip
    reply = server.call("/v1/embedding/text", body, headers={"authorization": "Bearer nk-any"})
    assert bits(reply.vectors) == bits(encode(embedder, TEXTS, "search_query", truncate="end"))


def test_null_and_unknown_keys(server: InThread, embedder: Embedder) -> None:
    keys = (
        "model", "task_type", "long_text_mode", "max_tokens_per_text", "dimensionality", "on_long",
        "report", "unheard",
    )  # fmt: skip
    for key in keys:
        reply = ask(server, TEXTS, **{key: None})
        assert bits(reply.vectors) == bits(encode(embedder, TEXTS)), key
        assert reply.json["model"] == MODEL
    reply = server.call("/v1/embedding/text?semantic_search=1", {"texts": TEXTS})
    assert bits(reply.vectors) == bits(encode(embedder, TEXTS))


def test_long_text_mode_truncate(server: InThread, embedder: Embedder) -> None:
    with pytest.warns(TruncationWarning):
        wanted = encode(embedder, ["short", LONG], truncate="end")
    reply = ask(server, ["short", LONG], long_text_mode="truncate", report=True)
    assert bits(reply.vectors) == bits(wanted)
    assert reply.headers["x-truncated-texts"] == "1"
    assert reply.json["usage"]["truncated_texts"] == 1
    assert reply.json["lengths"][1][1] == 64


@pytest.mark.parametrize("more", [{}, {"long_text_mode": "mean"}, {"long_text_mode": None}])
def test_long_text_mode_mean_is_the_default(
    server: InThread, embedder: Embedder, more: dict[str, Any]
) -> None:
    texts = ["short", LONG, "b " * 150]
    reply = ask(server, texts, **more)
    assert bits(reply.vectors) == bits(encode(embedder, texts))
    assert "x-truncated-texts" not in reply.headers
    reply = ask(server, texts, dimensionality=16, **more)
    assert bits(reply.vectors) == bits(encode(embedder, texts, matryoshka_dim=16))
    # a short text has the same bits without long ones beside it
    assert bits(ask(server, texts[:1], **more).vectors) == bits(encode(embedder, texts)[:1])


def test_on_long_overrides_the_mode(server: InThread, embedder: Embedder) -> None:
    reply = ask(server, [LONG], long_text_mode="truncate", on_long="mean")
    assert bits(reply.vectors) == bits(encode(embedder, [LONG]))
    reply = ask(server, [LONG], on_long="chunk")
    assert bits(reply.vectors) == bits(encode(embedder, [LONG], truncate="chunk"))
    reply = ask(server, ["a", LONG], on_long="error")
    assert reply.status == 422
    assert reply.json["detail"][0]["loc"] == ["body", "texts"]
    assert "at most 64 tokens" in reply.json["detail"][0]["msg"]


def test_max_tokens_per_text(server: InThread, embedder: Embedder) -> None:
    # with "mean": tokens of the whole text, without prompt and special tokens
    assert ask(server, [LONG], max_tokens_per_text=100).status == 200
    reply = ask(server, [LONG], max_tokens_per_text=99)
    assert reply.status == 422
    assert "at most 99 tokens. Given: 100" in reply.json["detail"][0]["msg"]
    # with "truncate": what is left of it, without prompt and special tokens
    cut = ask(server, [LONG], max_tokens_per_text=10, long_text_mode="truncate", report=True)
    assert cut.json["lengths"] == [[106, 16]]
    assert cut.json["usage"]["truncated_texts"] == 1
    short = encode(embedder, ["a" * 10], truncate="end")
    assert bits(cut.vectors) == bits(short)
    assert ask(server, ["ab"], max_tokens_per_text=1, on_long="chunk").status == 200
    reply = ask(server, [LONG], max_tokens_per_text=10**30, long_text_mode="truncate")
    assert reply.json["usage"]["prompt_tokens"] == 64
    for given in (0, -1):
        reply = ask(server, ["a"], max_tokens_per_text=given)
        assert reply.json["detail"][0]["loc"] == ["body", "max_tokens_per_text"]


def test_texts_beyond_the_hosted_limit(tmp_path: Path) -> None:
    with in_thread(tiny(tmp_path)) as server:
        assert ask(server, ["a " * 8192], dimensionality=1).status == 200
        reply = ask(server, ["a " * 8193], dimensionality=1)
        assert reply.status == 422
        assert "at most 8192 tokens. Given: 8193" in reply.json["detail"][0]["msg"]
        reply = ask(server, ["a " * 8193], dimensionality=1, max_tokens_per_text=9000)
        assert reply.status == 200


@pytest.mark.parametrize(
    ("more", "place"),
    [
        ({"texts": []}, "texts"), ({"texts": "a"}, "texts"), ({"texts": [1]}, "texts"),
        ({"texts": None}, "texts"), ({"task_type": "separation"}, "task_type"),
        ({"task_type": 1}, "task_type"), ({"task_type": ""}, "task_type"),
        ({"long_text_mode": "chunk"}, "long_text_mode"),
        ({"dimensionality": 0}, "dimensionality"), ({"dimensionality": 65}, "dimensionality"),
        ({"model": "text-embedding-3-small"}, "model"), ({"on_long": "cut"}, "on_long"),
    ],
)  # fmt: skip
def test_errors_in_fastapis_form(server: InThread, more: dict[str, Any], place: str) -> None:
    reply = server.call("/v1/embedding/text", {"texts": ["a"]} | more)
    assert reply.status == 422
    (detail,) = reply.json["detail"]
    assert detail["loc"] == ["body", place]
    assert isinstance(detail["msg"], str)
    assert isinstance(detail["type"], str)


def test_a_checkpoint_without_prompts(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path / "minilm", "minilm", num_hidden_layers=1)
    embedder = Embedder(str(folder), device="cpu")
    with in_thread(folder) as server:
        found = [ask(server, ["a"], model=None, task_type=task) for task in TASKS]
    for reply in found:
        assert bits(reply.vectors) == bits(
            embedder.encode(["a"], matryoshka_dim=WIDTH, truncate="mean")
        )


def test_windows_are_no_longer_than_what_was_trained(tmp_path: Path) -> None:
    folder = tiny(tmp_path, max_trained_positions=32)
    embedder = Embedder(str(folder), device="cpu")
    with in_thread(folder, max_length=64) as server:
        reply = ask(server, ["a " * 80], report=True)
        embedder.max_seq_length = 32
        assert bits(reply.vectors) == bits(encode(embedder, ["a " * 80]))
        reply = ask(server, ["a " * 80], report=True, long_text_mode="truncate")
        assert reply.json["lengths"][0][1] == 64


def test_user(server: InThread) -> None:
    assert server.call("/v1/user").status == 200


def test_images(server: InThread) -> None:
    for body in ({"model": "nomic-embed-vision-v1.5"}, b"--boundary"):
        reply = server.call("/v1/embedding/image", body)
        assert reply.status == 501
        assert "not images" in json.loads(reply.body)["detail"][0]["msg"]
