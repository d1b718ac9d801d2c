"""Cohere's routes for embeddings: bodies, defaults, answers, and the bits of their vectors."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pybase64
import pytest

from nomicbert import Embedder
from nomicbert.serve.http.forms import unit_ranges
from nomicbert.user_warnings import TruncationWarning
from tests.support.checkpoints import build_checkpoint
from tests.support.sameness import HAS_ONEDNN
from tests.support.served import JSON, LONG, MODEL, WIDTH, bits, embedder_of, same_quantised, tiny
from tests.support.serving import InThread, Reply, in_thread

TEXTS = ["What is TSNE?", "", "t-distributed stochastic neighbour embedding"]
TASKS = ["search_query", "search_document", "classification", "clustering"]
TYPES = ["float", "int8", "uint8", "binary", "ubinary", "base64"]
PATHS = ["/v1/embed", "/v2/embed"]
QUERY = {"input_type": "search_query"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InThread]:
    with in_thread(tiny(tmp_path_factory.mktemp("cohere")), max_length=64) as found:
        yield found
        assert found.metric("nomicbert_internal_errors_total") == 0


@pytest.fixture(scope="module")
def embedder(server: InThread) -> Embedder:
    return embedder_of(server)


def ask(server: InThread, texts: Any = TEXTS, path: str = "/v2/embed", **more: Any) -> Reply:
    return server.call(path, {"model": MODEL, "texts": texts, **more})


def encode(embedder: Embedder, texts: Any, task: str | None = None, **more: Any) -> np.ndarray:
    prompt = {"prompt": ""} if task is None else {"prompt_name": task}
    chosen = {} if "matryoshka_dim" in more else {"normalize_embeddings": True}
    found: np.ndarray = embedder.encode(texts, **prompt, **chosen, **more)
    return found


def floats(rows: Any) -> np.ndarray:
    return np.array(rows, np.float64).astype(np.float32)


def refused(reply: Reply, status: int, *parts: str) -> None:
    assert reply.status == status, reply.body[:300]
    assert reply.headers["content-type"] == "application/json"
    assert set(reply.json) == {"message"}
    for part in parts:
        assert part in reply.json["message"]


def test_version_2(server: InThread, embedder: Embedder) -> None:
    reply = ask(server, **QUERY)
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    found = reply.json
    tokens = sum(embedder.tokenizer.count([f"search_query: {text}" for text in TEXTS]))
    vectors = found.pop("embeddings")
    assert found == {
        "id": reply.headers["x-request-id"],
        "response_type": "embeddings_by_type",
        "texts": TEXTS,
        "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": tokens}},
    }
    assert list(vectors) == ["float"]
    assert bits(floats(vectors["float"])) == bits(encode(embedder, TEXTS, "search_query"))
    assert len(reply.headers["x-embedding-fingerprint"]) > 30


def test_version_1(server: InThread, embedder: Embedder) -> None:
    reply = ask(server, path="/v1/embed", **QUERY)
    assert reply.json["response_type"] == "embeddings_floats"
    assert reply.json["meta"]["api_version"] == {"version": "1"}
    assert bits(reply.vectors) == bits(encode(embedder, TEXTS, "search_query"))
    typed = ask(server, path="/v1/embed", embedding_types=["float"], **QUERY).json
    assert typed["response_type"] == "embeddings_by_type"
    assert bits(floats(typed["embeddings"]["float"])) == bits(reply.vectors)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("task", TASKS)
def test_input_types_are_prompts(
    server: InThread, embedder: Embedder, path: str, task: str
) -> None:
    reply = ask(server, path=path, input_type=task, embedding_types=["float"])
    found = floats(reply.json["embeddings"]["float"])
    assert bits(found) == bits(encode(embedder, TEXTS, task))


@pytest.mark.parametrize("dimensions", [None, 1, 12, 64])
def test_every_type_and_dimension(
    server: InThread, embedder: Embedder, dimensions: int | None
) -> None:
    more = {} if dimensions is None else {"matryoshka_dim": dimensions}
    kinds = [*TYPES, "int8"]  # a type counts once
    reply = ask(server, embedding_types=kinds, output_dimension=dimensions, **QUERY)
    found = reply.json["embeddings"]
    assert list(found) == TYPES
    wanted = encode(embedder, TEXTS, "search_query", **more)
    assert bits(floats(found["float"])) == bits(wanted)
    packed = [np.frombuffer(pybase64.b64decode(row), "<f4") for row in found["base64"]]
    assert bits(np.stack(packed)) == bits(wanted)
    ranges = unit_ranges(dimensions or WIDTH)
    for precision in ("int8", "uint8", "binary", "ubinary"):
        given = {"ranges": ranges} if precision in ("int8", "uint8") else {}
        quantised = encode(embedder, TEXTS, "search_query", precision=precision, **given, **more)
        assert same_quantised(found[precision], quantised, precision), precision
        alone = ask(
            server, TEXTS[:1], embedding_types=[precision], output_dimension=dimensions, **QUERY
        ).json["embeddings"]
        assert list(alone) == [precision]
        if HAS_ONEDNN:  # no other text matters
            assert alone[precision] == found[precision][:1]


def test_inputs(server: InThread, embedder: Embedder) -> None:
    inputs = [{"content": [{"type": "text", "text": text}]} for text in TEXTS]
    body = {"model": MODEL, "inputs": inputs, "texts": None, "images": None, **QUERY}
    reply = server.call("/v2/embed", body)
    assert reply.json["texts"] == TEXTS
    found = floats(reply.json["embeddings"]["float"])
    assert bits(found) == bits(encode(embedder, TEXTS, "search_query"))


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
A = {"type": "text", "text": "a"}


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ({}, "`texts` is missing"), ({"texts": None, "inputs": None}, "`texts` is missing"),
        ({"texts": ["a"], "inputs": []}, "not both"), ({"images": ["data:"]}, "not images"),
        ({"texts": ["a"], "images": []}, "not images"), ({"texts": []}, "`texts` cannot be empty"),
        ({"inputs": []}, "`inputs` cannot be empty"), ({"inputs": ["a"]}, "inputs"),
        ({"inputs": [{"content": "a"}]}, "content"), ({"inputs": [{"content": [IMAGE]}]}, "images"),
        ({"inputs": [{"content": [A]}, {"content": [A, IMAGE]}]}, "inputs[1]"),
        ({"inputs": [{"content": []}]}, "not 0"), ({"inputs": [{"content": [A, A]}]}, "not 2"),
        ({"inputs": [{"content": [{"type": "text"}]}]}, "with a `text`"),
        ({"inputs": [{"content": [{"type": "audio", "text": "a"}]}]}, "audio"),
    ],
)  # fmt: skip
def test_inputs_that_are_refused(server: InThread, body: dict[str, Any], part: str) -> None:
    for path in PATHS:
        refused(server.call(path, {"model": MODEL, **body}), 400, part)


@pytest.mark.parametrize(
    ("more", "part"),
    [
        ({"input_type": "image"}, "not images"), ({"input_type": "document"}, "input_type"),
        ({"input_type": ""}, "input_type"), ({"input_type": 1}, "input_type"),
        ({"embedding_types": []}, "cannot be empty"), ({"embedding_types": ["int4"]}, "int4"),
        ({"embedding_types": "float"}, "embedding_types"), ({"output_dimension": 0}, "1 to 64"),
        ({"output_dimension": 65}, "1 to 64"), ({"output_dimension": -1}, "output_dimension"),
        ({"output_dimension": "8"}, "output_dimension"), ({"truncate": "MIDDLE"}, "MIDDLE"),
        ({"truncate": "START"}, "lose their end; send END or NONE"), ({"truncate": 1}, "truncate"),
        ({"max_tokens": 2}, "at least 3"), ({"max_tokens": "9"}, "max_tokens"),
        ({"priority": "high"}, "priority"), ({"on_long": "start"}, "on_long"),
        ({"texts": "a"}, "texts"), ({"texts": [1]}, "texts"), ({"texts": [None]}, "texts"),
        ({"texts": [[1, 2]]}, "texts"),
    ],
)  # fmt: skip
def test_wrong_values(server: InThread, more: dict[str, Any], part: str) -> None:
    for path in PATHS:
        refused(server.call(path, {"model": MODEL, "texts": ["a"], **more}), 400, part)


def test_models(server: InThread, embedder: Embedder) -> None:
    refused(ask(server, model="embed-v4.0"), 404, "embed-v4.0", MODEL)
    assert ask(server, model=None).status == 200
    body = {"texts": TEXTS, **QUERY}
    found = floats(server.call("/v2/embed", body).json["embeddings"]["float"])
    assert bits(found) == bits(encode(embedder, TEXTS, "search_query"))


@pytest.mark.parametrize("path", PATHS)
def test_null_and_unknown_keys(server: InThread, embedder: Embedder, path: str) -> None:
    keys = (
        "inputs", "images", "embedding_types", "output_dimension", "truncate", "max_tokens",
        "priority", "on_long", "unheard",
    )  # fmt: skip
    wanted = encode(embedder, TEXTS, "search_query")
    for key in keys:
        reply = ask(server, path=path, **{key: None}, **QUERY).json
        found = reply["embeddings"]
        assert bits(floats(found["float"] if path == "/v2/embed" else found)) == bits(wanted), key
        assert "warnings" not in reply["meta"]


def test_what_is_not_a_text(server: InThread) -> None:
    for body in (b'{"texts": ["\\ud800"]}', b'{"texts": ["a"]', b"", b"\xff"):
        refused(server.call("/v2/embed", body, headers=JSON), 400, "the body is not JSON")
    refused(server.call("/v2/embed", b"{}", headers={"content-type": "text/plain"}), 415)
    refused(server.call("/v2/embed", b"[]", headers=JSON), 400)


# --- warnings ---


def test_without_an_input_type(server: InThread, embedder: Embedder) -> None:
    reply = ask(server).json
    assert bits(floats(reply["embeddings"]["float"])) == bits(encode(embedder, TEXTS))
    (warning,) = reply["meta"]["warnings"]
    assert "no input_type" in warning


def test_texts_that_are_cut(server: InThread, embedder: Embedder) -> None:
    with pytest.warns(TruncationWarning):
        wanted = encode(embedder, ["short", LONG, LONG], "search_query")
    before = server.metric("nomicbert_truncated_texts_total")
    for more in ({}, {"truncate": "END"}, {"truncate": None}, {"on_long": "end"}):
        reply = ask(server, ["short", LONG, LONG], **more, **QUERY)
        assert bits(floats(reply.json["embeddings"]["float"])) == bits(wanted)
        assert reply.headers["x-truncated-texts"] == "2"
        assert reply.json["meta"]["warnings"] == ["2 texts were cut to 64 tokens"]
    assert server.metric("nomicbert_truncated_texts_total") == before + 8
    one = ask(server, [LONG], path="/v1/embed", **QUERY).json
    assert one["meta"]["warnings"] == ["1 text was cut to 64 tokens"]
    refused(ask(server, ["short", LONG], truncate="NONE", **QUERY), 400, "at most 64", "text 1")
    assert ask(server, ["short"], truncate="NONE", **QUERY).status == 200
    for policy in ("mean", "chunk"):
        reply = ask(server, [LONG], on_long=policy, truncate="NONE", **QUERY)
        found = floats(reply.json["embeddings"]["float"])
        assert bits(found) == bits(encode(embedder, [LONG], "search_query", truncate=policy))
        assert "warnings" not in reply.json["meta"]


def test_max_tokens(server: InThread, embedder: Embedder) -> None:
    with pytest.warns(TruncationWarning):
        wanted = encode(embedder, ["a" * 30], "search_query", max_length=20)
    reply = ask(server, ["a" * 30], max_tokens=20, **QUERY)
    assert bits(floats(reply.json["embeddings"]["float"])) == bits(wanted)
    assert reply.json["meta"]["warnings"] == ["1 text was cut to 20 tokens"]
    assert reply.json["meta"]["billed_units"] == {"input_tokens": 20}
    refused(ask(server, ["a" * 30], max_tokens=20, truncate="NONE", **QUERY), 400, "at most 20")
    # more than the model has room for: the model's limit
    reply = ask(server, [LONG], max_tokens=100_000, **QUERY)
    assert reply.json["meta"]["warnings"] == ["1 text was cut to 64 tokens"]


def test_priority_has_no_effect_and_says_so(server: InThread, embedder: Embedder) -> None:
    reply = ask(server, priority=3, **QUERY).json
    assert [text.partition(":")[0] for text in reply["meta"]["warnings"]] == [
        "priority has no effect"
    ]
    assert bits(floats(reply["embeddings"]["float"])) == bits(
        encode(embedder, TEXTS, "search_query")
    )
    assert "warnings" not in ask(server, priority=0, **QUERY).json["meta"]


# --- other checkpoints, other settings ---


def test_a_checkpoint_without_prompts(tmp_path: Path) -> None:
    folder = build_checkpoint(tmp_path / "plain", "minilm", num_hidden_layers=1)
    with in_thread(folder) as server:
        embedder = embedder_of(server)
        wanted = embedder.encode(["a"], normalize_embeddings=True)
        for task in (*TASKS, None):
            reply = server.call("/v2/embed", {"texts": ["a"], "input_type": task}).json
            assert bits(floats(reply["embeddings"]["float"])) == bits(wanted)
            assert "warnings" not in reply["meta"]
        refused(server.call("/v2/embed", {"texts": ["a"], "input_type": "x"}), 400, "input_type")


def test_a_checkpoint_with_other_names_for_its_prompts(tmp_path: Path) -> None:
    with in_thread(build_checkpoint(tmp_path / "e5", "e5", num_hidden_layers=1)) as server:
        embedder = embedder_of(server)
        for given, prompt in {
            "search_query": "query: ", "query": "query: ", "search_document": "passage: ",
            "passage": "passage: ",
        }.items():  # fmt: skip
            wanted = embedder.encode(["a"], prompt=prompt, normalize_embeddings=True)
            reply = server.call("/v2/embed", {"texts": ["a"], "input_type": given}).json
            assert bits(floats(reply["embeddings"]["float"])) == bits(wanted)
        for given in ("classification", "clustering", "document"):
            reply = server.call("/v2/embed", {"texts": ["a"], "input_type": given})
            refused(reply, 400, "input_type", "'query', 'passage'")


def test_settings_of_the_server(tmp_path: Path) -> None:
    folder = tiny(tmp_path)
    settings = {"max_length": 64, "on_long": "error", "default_prompt_name": "clustering"}
    with in_thread(folder, max_client_batch_size=2, **settings) as server:
        embedder = embedder_of(server)
        refused(ask(server, [LONG], truncate="END", **QUERY), 400, "at most 64")
        refused(ask(server, ["a"] * 3), 400, "batch size 3 > maximum allowed batch size 2")
        reply = ask(server, ["a"]).json
        assert bits(floats(reply["embeddings"]["float"])) == bits(
            encode(embedder, ["a"], "clustering")
        )
        assert "warnings" not in reply["meta"]


def test_the_size_of_an_answer(tmp_path: Path) -> None:
    with in_thread(tiny(tmp_path), max_response_bytes=20_000) as server:
        assert ask(server, ["a"] * 100, embedding_types=["ubinary"]).status == 200
        refused(ask(server, ["a"] * 100), 413, "--max-response-bytes")
        many = ["float", "base64", "int8"]
        assert ask(server, ["a"] * 15, embedding_types=["float"]).status == 200
        refused(ask(server, ["a"] * 15, embedding_types=many), 413, "--max-response-bytes")
        # the texts are a part of the answer
        refused(ask(server, ["a" * 20_000], embedding_types=["ubinary"]), 413, "answer")


def test_beside_other_protocols(server: InThread, embedder: Embedder) -> None:
    """Requests of all protocols at once have the bits that each has alone."""
    texts = [f"text {i} " + "b " * (i % 20) for i in range(24)]
    calls: list[tuple[str, dict[str, Any]]] = []
    for i, text in enumerate(texts):
        calls += [
            ("/v2/embed", {"texts": [text], "embedding_types": TYPES, "output_dimension": 8 + i,
                           "input_type": TASKS[i % 4]}),
            ("/v1/embed", {"texts": [text, "b"], "input_type": TASKS[i % 3]}),
            ("/api/embed", {"model": MODEL, "input": [text, "c"], "dimensions": 64 - i}),
            ("/api/embeddings", {"model": MODEL, "prompt": text}),
            ("/v1/embeddings", {"model": MODEL, "input": text, "embed_dtype": "int8"}),
            ("/embed", {"inputs": text}), ("/v1/embedding/text", {"texts": [text]}),
        ]  # fmt: skip

    def vectors(call: tuple[str, dict[str, Any]]) -> Any:
        found = server.call(*call).json
        if isinstance(found, dict):
            found = found.get("embeddings") or found.get("embedding") or found["data"]
        return found

    alone = [vectors(call) for call in calls]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(vectors, calls))
    for (path, _), one, other in zip(calls, together, alone, strict=True):
        if path in ("/v1/embed", "/api/embed", "/embed"):
            assert bits(floats(one)) == bits(floats(other)), path
        elif HAS_ONEDNN:
            assert one == other, path
    # and those are the vectors of `encode`
    wanted = encode(embedder, texts[:1], TASKS[0], matryoshka_dim=8)
    assert bits(floats(together[0]["float"])) == bits(wanted)
