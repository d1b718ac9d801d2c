"""The server on a cluster of Ray: bits, keys, scaling, replicas that die, errors.

`tests/serve/test_ray_settings.py` has what needs no cluster.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from nomicbert import Embedder
from nomicbert.serve.ray import Replicas, ServeSettings, deployment
from tests.support.ray_serving import Clients, processes, running, serving_cluster
from tests.support.served import MODEL, NDJSON, WIDTH, bits, tiny
from tests.support.serving import Reply, call, metric, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (importlib.util.find_spec("ray") and importlib.util.find_spec("fastapi")),
        reason="Ray Serve is not installed: pip install '.[ray]'",
    ),
    # Ray Serve's own classes, when they are imported
    pytest.mark.filterwarnings(
        "ignore:Using extra keyword arguments on `Field`:DeprecationWarning"
    ),
    # shorter than the interval that another, old setting still has
    pytest.mark.filterwarnings("ignore:`look_back_period_s`:FutureWarning"),
]
KEY = "nk-from-the-environment"
HEADERS = {"authorization": f"Bearer {KEY}"}
TEXTS = ["What is TSNE?", "", "t-distributed stochastic neighbour embedding", "a" * 900]
PATIENCE = 180.0  # for a machine that is busy with other things


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("ray"), num_hidden_layers=4)


@pytest.fixture(scope="module")
def embedder(folder: Path) -> Embedder:
    return Embedder(folder, device="cpu")


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    settings = ServeSettings(
        models=(str(folder),), max_batch_tokens=1024, cache_bytes=0, open_metrics=True
    )
    replicas = Replicas(
        max_replicas=2,
        utilisation=0.1,
        backlog_seconds=1.0,
        upscale_delay_s=0.2,
        downscale_delay_s=1.0,
        look_back_period_s=2.0,
    )
    with serving_cluster(NOMICBERT_API_KEY=KEY) as address:
        from ray import serve

        serve.run(deployment(settings, replicas), name="text", route_prefix="/")
        yield address


def ask(url: str, path: str, body: Any = None, **headers: str) -> Reply:
    return call(url, path, body, headers={**HEADERS, **headers})


def test_vectors_of_all_protocols(url: str, embedder: Embedder) -> None:
    unit = embedder.encode(TEXTS, prompt="", normalize_embeddings=True)
    query = embedder.encode(TEXTS, prompt_name="search_query", matryoshka_dim=32)
    hosted = embedder.encode(TEXTS, prompt_name="search_document", matryoshka_dim=WIDTH)
    openai = {"model": MODEL, "input": TEXTS}
    for form in ("float", "base64"):
        reply = ask(url, "/v1/embeddings", {**openai, "encoding_format": form})
        assert bits(reply.vectors) == bits(unit), form
    assert reply.headers["content-type"] == "application/json"
    # as on one machine: the fingerprint of the vectors, and the client's id
    wanted = embedder.fingerprint(prompt="", normalize_embeddings=True)
    assert reply.headers["x-embedding-fingerprint"] == wanted
    reply = ask(url, "/embeddings", openai, **{"x-request-id": "mine"})
    assert reply.headers["x-request-id"] == "mine"
    reply = ask(url, "/embed", {"inputs": TEXTS, "prompt_name": "search_query", "dimensions": 32})
    assert bits(reply.vectors) == bits(query)
    reply = ask(url, "/", {"inputs": TEXTS})
    assert bits(reply.vectors) == bits(unit)
    body = {"model": MODEL, "texts": TEXTS, "long_text_mode": "truncate"}
    reply = ask(url, "/v1/embedding/text", body)
    assert bits(reply.vectors) == bits(hosted)
    body = {"model": MODEL, "texts": TEXTS, "input_type": "search_query", "output_dimension": 32}
    rows = ask(url, "/v2/embed", body).json["embeddings"]["float"]
    assert bits(np.array(rows, np.float64).astype(np.float32)) == bits(query)
    reply = ask(url, "/api/embed", {"model": MODEL, "input": TEXTS})
    assert bits(reply.vectors) == bits(unit)
    assert call(url, "/docs").headers["content-type"].startswith("text/html")


def test_a_stream_of_lines(url: str, embedder: Embedder) -> None:
    texts = [f"text {number}" for number in range(300)]
    lines = b"".join(json.dumps(text).encode() + b"\n" for text in texts)
    reply = ask(url, f"/v1/embeddings?model={MODEL}", lines, **{"content-type": NDJSON})
    assert reply.headers["content-type"] == NDJSON
    found = [json.loads(line) for line in reply.body.splitlines()]
    assert [line["index"] for line in found] == [*range(300)]
    rows = np.array([line["embedding"] for line in found], np.float64).astype(np.float32)
    assert bits(rows) == bits(embedder.encode(texts, prompt="", normalize_embeddings=True))


def test_refusals_and_state(url: str) -> None:
    reply = call(url, "/v1/embeddings", {"model": MODEL, "input": "a"})
    assert reply.status == 401
    assert reply.headers["www-authenticate"] == "Bearer"
    reply = ask(url, "/v1/embeddings", {"model": "other", "input": "a"})
    assert (reply.status, reply.json["error"]["code"]) == (404, "model_not_found")
    reply = ask(url, "/v1/embedding/text", {"texts": "a"})
    assert reply.status == 422
    assert "detail" in reply.json
    reply = ask(url, "/rerank", {"query": "a", "texts": ["b"]})
    assert (reply.status, reply.json["error_type"]) == (424, "Backend")
    assert ask(url, "/no/such/route").json["error"]["type"] == "not_found"
    assert call(url, "/health/ready").json["ready"] is True
    assert ask(url, "/v1/models").json["data"][0]["id"] == MODEL


def test_a_client_that_leaves(url: str) -> None:
    """Its request is cancelled and counted; nothing of it stays in the queue."""
    body = json.dumps({"model": MODEL, "input": [f"{n} " * 400 for n in range(400)]}).encode()
    head = f"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n"
    head += f"content-type: application/json\r\nauthorization: Bearer {KEY}\r\n\r\n"
    before = (
        metric(url, "nomicbert_outcomes_total", outcome="disconnected"),
        metric(url, "nomicbert_batch_tokens_sum"),
    )
    place = urlsplit(url)
    with socket.create_connection((place.hostname, place.port)) as client:
        client.sendall(head.encode() + body)
        wait_until(lambda: metric(url, "nomicbert_waiting_texts") > 100, PATIENCE)
    wait_until(lambda: metric(url, "nomicbert_waiting_texts") == 0, PATIENCE)
    gone = metric(url, "nomicbert_outcomes_total", outcome="disconnected") - before[0]
    assert gone == 1
    assert metric(url, "nomicbert_batch_tokens_sum") - before[1] < 400 * 800


def test_a_cluster_that_is_too_small(url: str, folder: Path) -> None:
    settings = ServeSettings(models=(str(folder),))
    message = "this cluster has room for 1 of 2 replicas with 3 CPUs and 0 GPUs each"
    with pytest.warns(UserWarning, match=message):
        deployment(settings, Replicas(num_cpus=3, min_replicas=2))


def test_a_model_that_does_not_load(url: str, tmp_path: Path) -> None:
    from ray import serve

    empty = tmp_path / "empty"
    empty.mkdir()
    settings = ServeSettings(models=(str(empty),))
    target = serve.RunTarget(deployment(settings), name="bad", route_prefix="/bad")
    serve.run_many([target], wait_for_applications_running=False)

    def message() -> str:
        return serve.status().applications["bad"].deployments["nomicbert"].message

    wait_until(lambda: "Error:" in message(), PATIENCE)
    assert f"ConfigError: {empty}/config.json is missing: is {empty} a checkpoint" in message()
    serve.delete("bad")
    assert call(url, "/health/ready").status == 200


def starts(url: str) -> dict[float, float]:
    """Start of the replica that answers -> requests that it has answered."""
    lines = ask(url, "/metrics").body.decode().splitlines()
    found = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    answered = found['nomicbert_outcomes_total{outcome="answered"}']
    return {float(found["process_start_time_seconds"]): float(answered)}


def test_load_adds_a_replica_one_dies_and_without_load_one_goes(
    url: str, embedder: Embedder
) -> None:
    texts = [[f"{word} {number} " * 120 for number in range(3)] for word in "abcde"]
    heavy = [
        (
            {"model": MODEL, "input": each},
            embedder.encode(each, prompt="", normalize_embeddings=True),
        )
        for each in texts
    ]
    wait_until(lambda: running("text") == 1 and len(processes()) == 1, PATIENCE)
    plain = Clients(url, heavy, count=2, pause=0.05, headers=HEADERS)
    patient = Clients(url, heavy, count=2, pause=0.05, headers=HEADERS, retries=20)
    with plain, patient:
        wait_until(lambda: running("text") == 2, PATIENCE)
        assert not plain.failed
        seen: dict[float, float] = {}

        def both_answer() -> bool:
            seen.update(starts(url))
            return len(seen) == 2 and min(seen.values()) >= 5

        wait_until(both_answer, PATIENCE)
        before = processes()
        assert len(before) == 2
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: len(processes() - before) == 1 and running("text") == 2, PATIENCE)
        count = plain.answered
        wait_until(lambda: plain.answered > count + 10, PATIENCE)
    # those that the dead replica was computing, at most one per client; no others
    assert len(plain.failed) <= 2, plain.failed
    assert all(problem.startswith("500") for problem in plain.failed)
    assert patient.failed == []
    assert patient.retried <= 6

    few = TEXTS[:3]
    wanted = embedder.encode(few, prompt="", normalize_embeddings=True)
    light = [({"model": MODEL, "input": few}, wanted)]
    with Clients(url, light, count=2, headers=HEADERS, pause=0.2) as clients:
        wait_until(lambda: len(processes()) == 1 and running("text") == 1, PATIENCE)
        count = clients.answered
        wait_until(lambda: clients.answered > count + 10, PATIENCE)
    assert clients.failed == []
