"""A server of rerankers: in company, failing, loading, with models of both kinds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nomicbert import CrossEncoder, Embedder
from nomicbert.serve import models
from nomicbert.serve.engine.compute import Replica
from tests.support import scoring
from tests.support.scoring import (
    CLASSIFIER,
    DOCUMENTS,
    EMBEDDER,
    MODULAR,
    ONE,
    PROMPTED,
    QUERY,
    UNTYPED,
    Scores,
    floats,
)
from tests.support.served import Gate, bits
from tests.support.serving import InThread, Reply, in_thread, wait_until

CUTS = "ignore:.*were longer than"
SERVED = (ONE, EMBEDDER, MODULAR, CLASSIFIER, UNTYPED, PROMPTED)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return scoring.build(tmp_path_factory.mktemp("scoring"))


@pytest.fixture(scope="module")
def server(folders: dict[str, Path]) -> Iterator[InThread]:
    with in_thread(*(folders[name] for name in SERVED)) as found:
        yield found


def ranked(reply: Reply) -> np.ndarray:
    assert reply.status == 200, reply.body
    results = sorted(reply.json["results"], key=lambda item: item["index"])
    return floats([item["relevance_score"] for item in results])


def scored(reply: Reply) -> np.ndarray:
    assert reply.status == 200, reply.body
    return floats([item["score"] for item in reply.json["data"]])


@pytest.mark.filterwarnings(CUTS)
def test_requests_of_all_kinds_at_once(
    server: InThread, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has the bits that it has alone, and fewer batches are computed than requests."""
    cases: list[tuple[str, dict[str, Any], Callable[[Reply], np.ndarray], np.ndarray]] = []
    for name in (ONE, MODULAR, UNTYPED, PROMPTED):
        model = CrossEncoder(folders[name])
        for texts in (DOCUMENTS, DOCUMENTS[:2], [DOCUMENTS[2]]):
            pairs = [(QUERY, text) for text in texts]
            cases.append(
                (
                    "/v1/rerank", {"query": QUERY, "documents": texts, "model": name}, ranked,
                    model.predict(pairs, activation_fn=nn.Sigmoid()),
                )
            )  # fmt: skip
            swapped = [(text, QUERY) for text in texts]
            cases.append(
                (
                    "/score",
                    {"text_1": texts, "text_2": [QUERY] * len(texts), "model": name,
                     "truncate_prompt_tokens": 40},
                    scored, model.predict(swapped, max_length=40),
                )
            )  # fmt: skip
    embedder = Embedder(folders[EMBEDDER])
    wanted = embedder.encode(DOCUMENTS, prompt="", normalize_embeddings=True)
    body = {"input": DOCUMENTS, "model": EMBEDDER, "on_long": "end"}
    cases += [("/v1/embeddings", body, lambda reply: reply.vectors, wanted)] * 4
    batches = 0
    with (
        Gate.on(monkeypatch) as gate,
        ThreadPoolExecutor(len(cases)) as pool,
    ):
        replies = [pool.submit(server.call, path, body) for path, body, _, _ in cases]
        wait_until(lambda: server.service.in_flight == len(cases))
        gate.open()
        found = [reply.result() for reply in replies]
        batches = gate.batches
    pieces = sum(len(truth) for *_, truth in cases)
    assert batches < pieces / 2
    for reply, (path, body, read, truth) in zip(found, cases, strict=True):
        assert Scores(read(reply)) == Scores(truth), (path, body)


def test_a_cached_pair_is_not_another_one(folders: dict[str, Path]) -> None:
    """The same token ids with another boundary, or as one text, are another input."""
    inputs = [["fox [SEP] dog", "cat"], ["fox", "dog [SEP] cat"], ["fox [SEP] dog [SEP] cat"]]

    def ask(server: InThread, batch: list[list[str]]) -> np.ndarray:
        reply = server.call("/predict", {"inputs": batch, "raw_scores": True})
        rows = [sorted(row, key=lambda item: item["label"]) for row in reply.json]
        return floats([[item["score"] for item in row] for row in rows])

    with in_thread(folders[CLASSIFIER]) as plain:
        truth = ask(plain, inputs)
        (model,) = plain.service.models
        ids = {tuple(model.job([tuple(pair)], 96)[0].pieces[0]) for pair in inputs[:2]}  # type: ignore[attr-defined]
    assert len(ids) == 1
    for i, j in ((0, 1), (1, 2), (0, 2)):
        assert np.abs(truth[i] - truth[j]).max() > 0.01
    with in_thread(folders[CLASSIFIER], cache_bytes=1 << 20) as server:
        for _ in range(2):
            assert Scores(np.stack([ask(server, [one])[0] for one in inputs])) == Scores(truth)
        assert server.metric("nomicbert_cache_hits_total") == 3
        assert server.metric("nomicbert_cache_misses_total") == 3


@pytest.mark.parametrize("kind", ["error", "nan"])
def test_a_pair_that_cannot_be_computed(
    server: InThread, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Its request fails; those that share its batch do not."""
    original = Replica.logits
    bad = server.service.models[0].tokenizer.encode(["zebra"], 96)[0][0][1:-1]

    def planted(self: Replica, pairs: Any, *rest: Any, **more: Any) -> Tensor:
        found = original(self, pairs, *rest, **more)
        for row, ids in zip(found, pairs, strict=True):
            if any([*ids[i : i + len(bad)]] == bad for i in range(len(ids))):
                if kind == "error":
                    raise RuntimeError("planted")
                row.fill_(torch.nan)
        return found

    texts = ["a fox", "a dog", "what is a cat"]
    wanted = CrossEncoder(folders[ONE]).predict([(QUERY, text) for text in texts])
    monkeypatch.setattr(Replica, "logits", planted)
    calls: list[tuple[str, dict[str, Any]]] = [
        ("/v1/rerank", {"query": QUERY, "documents": texts}),
        ("/v1/rerank", {"query": QUERY, "documents": [*texts, "a zebra"]}),
        ("/rerank", {"query": QUERY, "texts": ["zebra", *texts]}),
        ("/rerank", {"query": QUERY, "documents": ["zebra", *texts]}),
        ("/score", {"text_1": "zebra", "text_2": texts}),
        ("/v2/rerank", {"query": QUERY, "documents": texts}),
    ]
    failed = server.metric("nomicbert_outcomes_total", outcome="failed")
    with Gate.on(monkeypatch) as gate, ThreadPoolExecutor(len(calls)) as pool:
        replies = [pool.submit(server.call, path, body) for path, body in calls]
        wait_until(lambda: server.service.in_flight == len(calls))
        gate.open()
        found = [reply.result() for reply in replies]
    assert [reply.status for reply in found] == [200, 500, 424, 500, 500, 200]
    for reply in (found[0], found[-1]):
        assert Scores(ranked(reply)) == Scores(wanted)
    assert list(found[1].json) == ["message"]
    assert found[2].json["error_type"] == "Backend"
    assert found[3].json["error"]["type"] == "server_error"
    assert not any(b"planted" in reply.body for reply in found)
    assert server.metric("nomicbert_outcomes_total", outcome="failed") == failed + 4


def test_a_server_of_both_kinds(server: InThread, folders: dict[str, Path]) -> None:
    listed = server.call("/v1/models").json["data"]
    assert [item["id"] for item in listed] == [*SERVED]
    # the page for people tells the kinds apart by these
    assert [len(item.get("labels", ())) for item in listed] == [1, 0, 1, 3, 1, 1]
    assert [item["id"] for item in listed if "dimensions" in item] == [EMBEDDER]
    assert listed[1]["dimensions"] == Embedder(folders[EMBEDDER]).get_embedding_dimension()
    embedded = server.call("/embed", {"inputs": ["a"]})  # the first embedding model
    wanted = Embedder(folders[EMBEDDER]).encode(["a"], prompt="", normalize_embeddings=True)
    assert bits(embedded.vectors) == bits(wanted)
    assert "x-embedding-fingerprint" in embedded.headers
    # the first classifier, not the reranker before it
    assert len(server.call("/predict", {"inputs": ["a", "b"]}).json) == 3
    info = server.call("/info").json
    assert info["model_id"] == ONE
    assert info["model_type"] == {
        "reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    }
    assert info["max_input_length"] == 96
    assert not {"dimensions", "prompts", "fingerprint"} & set(info)
    body = server.call("/metrics").body.decode()
    for name in SERVED:
        assert f'nomicbert_texts_total{{model="{name}"}}' in body
    assert 'backend="torch",dtype="float32",fingerprint="",model="one"' in body


def test_models_of_the_other_kind(server: InThread) -> None:
    reply = server.call("/v1/embeddings", {"model": ONE, "input": "a"})
    assert (reply.status, reply.json["error"]["code"]) == (400, "wrong_task")
    assert reply.json["error"]["message"] == "the model 'one' is not an embedding model"
    assert reply.json["error"]["param"] == "model"
    assert server.call("/v1/embedding/text", {"model": ONE, "texts": ["a"]}).status == 422
    for name in (EMBEDDER, CLASSIFIER):
        for path in ("/v1/rerank", "/v2/rerank", "/rerank"):
            reply = server.call(path, {"model": name, "query": "a", "documents": ["b"]})
            assert reply.status == 400
            assert f"the model '{name}' is not a re-ranker model" in reply.body.decode()
        reply = server.call("/score", {"model": name, "text_1": "a", "text_2": "b"})
        assert (reply.status, reply.json["error"]["code"]) == (400, "wrong_task")


def test_any_name_is_the_first_of_a_kind(folders: dict[str, Path]) -> None:
    with in_thread(folders[ONE], folders[EMBEDDER], any_model_name=True) as server:
        assert server.call("/v1/embeddings", {"model": "gpt", "input": "a"}).status == 200
        body = {"model": "rerank-v3", "query": "a", "documents": ["b"]}
        assert server.call("/v2/rerank", body).json["model"] == "rerank-v3"
        assert server.call("/v1/embeddings", {"model": ONE, "input": "a"}).status == 400
        found = server.call("/v1/models/gpt").json
        assert (found["id"], found["root"]) == ("gpt", ONE)


def test_a_server_with_rerankers_only(folders: dict[str, Path]) -> None:
    with in_thread(folders[ONE]) as server:
        assert server.call("/health/ready").json["ready"] is True
        for path, body in (
            ("/embed", {"inputs": "a"}), ("/similarity", {}), ("/vertex", {}), ("/embed_all", {}),
            ("/embed_sparse", {}),
        ):  # fmt: skip
            reply = server.call(path, body)
            assert (reply.status, reply.json["error_type"]) == (424, "Backend"), path
        assert server.call("/v1/embeddings", {"model": ONE, "input": "a"}).status == 400
        assert server.call("/v1/embedding/text", {"texts": ["a"]}).status == 422
        assert len(server.call("/tokenize", {"inputs": "a fox"}).json[0]) == 4
        assert server.call("/tokenize", {"inputs": "a", "prompt_name": "find"}).status == 422
        assert server.call("/decode", {"ids": [101, 102]}).json == [""]
        document = server.call("/openapi.json").json
        assert "ScoreRequest" in document["components"]["schemas"]
        assert server.call("/rerank", {"query": "a", "texts": ["b"]}).status == 200


def test_a_server_without_rerankers(folders: dict[str, Path]) -> None:
    with in_thread(folders[EMBEDDER]) as server:
        for path, task in (("/rerank", "re-ranker"), ("/predict", "classifier")):
            for body in (b"no json", b"{}"):
                reply = server.call(path, body, headers={"content-type": "application/json"})
                wanted = {"error": f"the model is not a {task} model", "error_type": "Backend"}
                assert (reply.status, reply.json) == (424, wanted)
        for path in ("/v1/rerank", "/v2/rerank", "/score", "/v1/score"):
            reply = server.call(path, {})
            assert reply.status == 400
            assert "the model is not a re-ranker model" in reply.body.decode()


def test_another_score_of_the_self_test(folders: dict[str, Path]) -> None:
    with in_thread(folders[ONE]) as server:
        (model,) = server.service.models
        model.self_test[0] += 1
        tested = server.service._self_test
        assert tested is not None
        tested._began = -1e9
        answer = server.call("/health/ready")
        assert answer.status == 503
        assert answer.json["reason"] == "the self-test of one gives another score"
        model.self_test[0] -= 1


CALLS: list[tuple[str, dict[str, Any]]] = [
    ("/rerank", {"query": "a", "texts": ["b"]}),
    ("/rerank", {"query": "a", "documents": ["b"]}),
    ("/v1/rerank", {"query": "a", "documents": ["b"]}),
    ("/v2/rerank", {"query": "a", "documents": ["b"]}),
    ("/predict", {"inputs": ["a", "b"]}),
    ("/score", {"text_1": "a", "text_2": "b"}),
    ("/v1/score", {"text_1": "a", "text_2": "b"}),
    ("/", {"query": "a", "texts": ["b"]}),
]


def test_loading_draining_and_stopping(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    go, own = threading.Event(), models.load

    def slow(*arguments: Any) -> Any:
        assert go.wait(120)
        return own(*arguments)

    monkeypatch.setattr(models, "load", slow)
    with in_thread(folders[ONE], wait=False, api_keys=("nk-a",)) as server:
        wait_until(lambda: server.server.started)
        key = {"authorization": "Bearer nk-a"}
        for path, body in CALLS:
            assert server.call(path, body).status == 401
            reply = server.call(path, body, headers=key)
            assert (reply.status, reply.headers["retry-after"]) == (503, "2"), path
        go.set()
        wait_until(lambda: server.call("/health/ready").status == 200)
        server.service.draining = True
        for path, body in CALLS:
            reply = server.call(path, body, headers=key)
            assert (reply.status, reply.headers["connection"]) == (200, "close")
        server.service.stopping = True
        for path, body in CALLS:
            assert server.call(path, body, headers=key).status == 503


def test_limits(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with in_thread(
        folders[ONE], payload_limit=2000, max_response_bytes=500, max_waiting_tokens=100
    ) as server:
        big = {"query": "a", "documents": ["b" * 3000]}
        assert server.call("/v1/rerank", big).status == 413
        many = {"query": "a", "documents": ["b"] * 20}
        reply = server.call("/v2/rerank", many)
        assert reply.status == 413
        assert "--max-response-bytes" in reply.json["message"]
        echoed = {"query": "a", "documents": ["b" * 900]}
        assert server.call("/v2/rerank", echoed).status == 200
        assert server.call("/v2/rerank", echoed | {"return_documents": True}).status == 413
        long = {"query": "a", "documents": ["b" * 200] * 5}
        reply = server.call("/v2/rerank", long)
        assert reply.status == 413
        assert "--max-waiting-tokens" in reply.json["message"]
        with Gate.on(monkeypatch) as gate, ThreadPoolExecutor(1) as pool:
            small = {"query": "a", "documents": ["b"]}
            waiting = pool.submit(server.call, "/rerank", small)
            wait_until(lambda: gate.batches == 1)
            late = server.call("/rerank", small, headers={"x-request-timeout-ms": "50"})
            assert (late.status, late.json["error"]["code"]) == (503, "deadline")
            gate.open()
            assert waiting.result().status == 200


def test_options_that_do_not_fit(folders: dict[str, Path]) -> None:
    for settings, message in (
        ({"default_prompt": "a: "}, "are for embedding models"),
        ({"default_prompt_name": "find"}, "are for embedding models"),
        ({"max_length": 3}, "a pair needs more than 3 tokens"),
        ({"max_length": 97}, "max_seq_length"),
    ):
        with pytest.raises(ValueError, match=message), in_thread(folders[ONE], **settings):
            pass
