"""Health, metrics, and what every answer has: fingerprints, request ids, deadlines, loading."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nomicbert.serve import models, service
from nomicbert.serve.app import PAGES
from nomicbert.serve.engine.compute import Replica
from nomicbert.serve.http.problems import Reason
from tests.support.served import JSON, MODEL, Gate, embedder_of, lines, tiny
from tests.support.serving import InThread, Reply, in_thread, wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InThread]:
    with in_thread(tiny(tmp_path_factory.mktemp("health")), max_length=64) as found:
        yield found


def ask(server: InThread, headers: dict[str, str] | None = None, **more: Any) -> Reply:
    return server.call("/v1/embeddings", {"model": MODEL, "input": "a", **more}, headers=headers)


def test_a_ready_server(server: InThread) -> None:
    assert server.call("/health/live").json == {"alive": True}
    ready = server.call("/health/ready")
    assert ready.status == 200
    assert ready.json == {"ready": True, "reason": "", "queue_seconds_ahead": 0.0}
    for path in ("/health", "/", "/ping"):
        reply = server.call(path)
        assert (reply.status, reply.body) == (200, b"")


def test_every_series_exists_before_the_first_request(tmp_path: Path) -> None:
    with in_thread(tiny(tmp_path)) as server:
        found = lines(server)
    counted = {name: value for name, value in found.items() if name.startswith("nomicbert_")}
    for page in PAGES:
        series = (
            f'nomicbert_requests_total{{dialect="{page.dialect.name}",route="{page.path}",'
            'status="200"}'
        )
        assert counted[series] == 0, page
    for reason in Reason:
        assert counted[f'nomicbert_refused_total{{reason="{reason.value}"}}'] == 0
    for outcome in ("answered", "refused", "failed", "disconnected"):
        assert counted[f'nomicbert_outcomes_total{{outcome="{outcome}"}}'] == 0
    for series in (f'nomicbert_truncated_texts_total{{model="{MODEL}"}}',):
        assert counted[series] == 0
    families = {re.split(r"[{ ]", name)[0].removesuffix("_count") for name in counted}
    assert families >= {
        f"nomicbert_{name}"
        for name in (
            "request_seconds", "queue_seconds", "tokenise_seconds", "compute_seconds",
            "encode_seconds", "texts_total", "tokens_total", "doubled_prompts_total",
            "input_tokens", "batch_tokens", "batch_texts", "batch_seconds", "waiting_texts",
            "waiting_tokens", "in_flight_requests", "failed_batches_total", "cache_hits_total",
            "cache_bytes", "ready", "draining", "model_info", "queue_seconds_ahead",
            "internal_errors_total",
        )
    }  # fmt: skip
    assert any(name.startswith("process_") for name in found)
    moving = ("_ready", "_model_info", "_created", "_in_flight_requests", "_batch_")  # self-test
    for name, value in counted.items():
        assert value == 0 or any(part in name for part in moving), name


def test_metrics_count(server: InThread) -> None:
    before = lines(server)
    ask(server)
    server.call("/embed", {"inputs": ["a" * 80, "b"]})
    server.call("/embed", {"inputs": ["search_query: b"], "prompt_name": "search_query"})
    server.call("/embed", {"inputs": []})
    server.call("/nowhere")
    after = lines(server)

    def grown(series: str) -> float:
        return after[f"nomicbert_{series}"] - before[f"nomicbert_{series}"]

    assert grown('requests_total{dialect="openai",route="/v1/embeddings",status="200"}') == 1
    assert grown('requests_total{dialect="tei",route="/embed",status="200"}') == 2
    assert grown('requests_total{dialect="tei",route="/embed",status="400"}') == 1
    assert grown('refused_total{reason="empty"}') == 1
    assert grown('request_seconds_count{route="/embed"}') == 3
    assert grown(f'texts_total{{model="{MODEL}"}}') == 4
    # "search_query: " has 4 tokens besides the two special ones
    assert grown(f'tokens_total{{model="{MODEL}"}}') == 3 + 64 + 3 + (2 + 4 + 4 + 1)
    assert grown(f'truncated_texts_total{{model="{MODEL}"}}') == 1
    assert grown("doubled_prompts_total") == 1
    assert grown("input_tokens_count") == 4
    assert grown('outcomes_total{outcome="answered"}') == 3 + 1  # and the first /metrics
    assert grown('outcomes_total{outcome="refused"}') == 1


def test_no_label_comes_from_a_client(server: InThread) -> None:
    secret = "planted-by-a-client"
    ask(server, {"x-request-id": secret}, model=secret)
    server.call(f"/{secret}")
    server.call(f"/v1/models/{secret}")
    server.call("/v1/embeddings", {"model": MODEL, "input": secret, "user": secret}, method="POST")
    assert secret not in server.call("/metrics").body.decode()


def test_request_ids(server: InThread) -> None:
    for given in ("abc", "a b/c?=%", "x" * 128):
        for path in ("/health", "/v1/models", "/nowhere", "/embed"):
            reply = server.call(path, headers={"x-request-id": given})
            assert reply.headers["x-request-id"] == given
    for given in ("x" * 129, "ü", "tab\there", ""):
        found = server.call("/health", headers={"x-request-id": given}).headers["x-request-id"]
        assert found != given
        assert re.fullmatch("[0-9a-f]{16}", found)
    assert len({server.call("/health").headers["x-request-id"] for _ in range(9)}) == 9


def test_addresses_and_methods_that_do_not_exist(server: InThread) -> None:
    for method, path, status in (
        ("GET", "/nowhere", 404), ("GET", "/embed", 405), ("POST", "/health", 405),
        ("DELETE", "/", 405), ("GET", "/embed/", 404), ("PUT", "/v1/models/a/b", 405),
    ):  # fmt: skip
        reply = server.call(path, method=method)
        assert (method, path, reply.status) == (method, path, status)
        assert reply.headers["content-type"] == "application/json"
        what = {404: "route", 405: "method"}[status]
        assert reply.json["error"]["message"] == f"no such {what}: {method} {path}"
    assert server.call("/", method="DELETE").headers["allow"] == "GET, HEAD, POST"
    assert server.call("/embed").headers["allow"] == "POST"
    assert server.call("/v1/models/x", method="PUT").headers["allow"] == "GET, HEAD"
    assert len(server.call("/" + "x" * 5000).body) < 1000


def test_the_pattern_of_a_route_is_an_address_like_others(server: InThread) -> None:
    for path in ("/v1/models/{name:path}", "/v1/models/%7Bname:path%7D", "/pages/{name}"):
        assert server.call(path).status == 404
    assert server.metric("nomicbert_internal_errors_total") == 0


# --- fingerprints ---


def fingerprint(reply: Reply) -> str:
    assert reply.status == 200
    return reply.headers["x-embedding-fingerprint"]


def test_a_fingerprint_names_the_space_and_the_call(server: InThread) -> None:
    whole = fingerprint(ask(server))
    assert fingerprint(ask(server)) == whole
    space = whole.partition(".")[0]
    others = [
        fingerprint(ask(server, dimensions=16)),
        fingerprint(ask(server, prompt_name="search_query")),
        fingerprint(ask(server, normalize=False)),
    ]
    assert len({whole, *others}) == 4
    info = server.call("/info").json["fingerprint"]
    assert whole.startswith(info)
    assert all(len(other) == len(whole) for other in others)
    assert fingerprint(server.call("/embed", {"inputs": "a"})) == whole
    assert space


def test_a_differing_fingerprint_is_refused(server: InThread) -> None:
    whole = fingerprint(ask(server))
    expect = "x-expect-fingerprint"
    space, _, _ = whole.partition(".")
    assert fingerprint(ask(server, {expect: whole})) == whole
    assert fingerprint(ask(server, {expect: space})) == whole
    other = ("1" if space[0] == "0" else "0") + space[1:]
    for given in (other, f"{other}.{whole.partition('.')[2]}", whole[:-1] + "x", "", "x" * 500):
        reply = ask(server, {expect: given})
        assert reply.status == 412, given
        assert reply.json["error"]["code"] == "fingerprint"
        assert whole in reply.json["error"]["message"]
        tei = server.call("/embed", {"inputs": "a"}, headers={expect: given})
        nomic = server.call("/v1/embedding/text", {"texts": ["a"]}, headers={expect: given})
        assert (tei.status, nomic.status) == (412, 412)
    # of the same space, but not of the same call
    assert ask(server, {expect: whole}, dimensions=16).status == 412
    assert ask(server, {expect: space}, dimensions=16).status in (200, 412)


# --- deadlines ---


def test_a_deadline(server: InThread, monkeypatch: pytest.MonkeyPatch) -> None:
    short = {"x-request-timeout-ms": "50"}
    with Gate.on(monkeypatch):
        openai = ask(server, short)
        tei = server.call("/embed", {"inputs": "a"}, headers=short)
        nomic = server.call("/v1/embedding/text", {"texts": ["a"]}, headers=short)
        wait_until(lambda: server.service.engine.scheduler.waiting_texts == 0)
    for reply in (openai, tei, nomic):
        assert reply.status == 503
        assert reply.headers["retry-after"] == "1"
        assert reply.headers["retry-after-ms"] == "1000"
    assert openai.json["error"]["code"] == "deadline"
    assert tei.json["error_type"] == "Unhealthy"
    assert "within 0.05 s" in nomic.json["detail"][0]["msg"]
    assert ask(server, {"x-request-timeout-ms": "60000"}).status == 200


def test_a_deadline_while_texts_are_tokenised(
    server: InThread, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    go, own, ended = threading.Event(), service.tokenise, threading.Event()

    def slow(wanted: Any) -> Any:
        assert go.wait(60)
        try:
            return own(wanted)
        finally:
            ended.set()

    monkeypatch.setattr(service, "tokenise", slow)
    long = {"input": ["a b c " * 1000], "on_long": "end"}
    assert ask(server, {"x-request-timeout-ms": "50"}, **long).status == 503
    go.set()
    assert ended.wait(60)
    assert ask(server, **long).status == 200
    assert [record for record in caplog.records if record.name == "asyncio"] == []


@pytest.mark.parametrize("given", ["0", "-1", "1.5", "soon", "1" * 30, "²"])
def test_deadlines_that_are_none(server: InThread, given: str) -> None:
    reply = ask(server, {"x-request-timeout-ms": given})
    assert reply.status == 400
    assert "x-request-timeout-ms" in reply.json["error"]["message"]


# --- loading, failing, stopping ---


def test_while_models_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, own = threading.Event(), models.load

    def slow(*arguments: Any) -> Any:
        assert go.wait(120)
        return own(*arguments)

    monkeypatch.setattr(models, "load", slow)
    with in_thread(tiny(tmp_path), wait=False) as server:
        wait_until(lambda: server.server.started)
        refused = {
            path: server.call(path, body)
            for path, body in (
                ("/v1/embeddings", {"model": MODEL, "input": "a"}), ("/embed", {"inputs": "a"}),
                ("/v1/embedding/text", {"texts": ["a"]}), ("/", {"inputs": "a"}),
                ("/similarity", {}), ("/vertex", {}), ("/tokenize", {}), ("/decode", {}),
                ("/predict", {}), ("/embed_all", {}), ("/info", None),
            )
        }  # fmt: skip
        stream = server.call(
            "/v1/embeddings", b'"a"', headers={"content-type": "application/x-ndjson"}
        )
        ready, live, health = (
            server.call(path) for path in ("/health/ready", "/health/live", "/health")
        )
        loading = server.metric("nomicbert_ready")
        assert server.call("/v1/models").json["data"][0]["id"] == MODEL
        go.set()
        wait_until(lambda: server.call("/health/ready").status == 200)
        assert ask(server).status == 200
        assert server.metric("nomicbert_ready") == 1
    for path, reply in {**refused, "stream": stream}.items():
        assert (path, reply.status) == (path, 503)
        assert reply.headers["retry-after"] == "2"
    assert refused["/embed"].json["error_type"] == "Unhealthy"
    assert refused["/v1/embeddings"].json["error"]["code"] == "loading"
    assert (ready.status, ready.json["reason"]) == (503, "loading")
    assert (live.status, health.status, health.body) == (200, 503, b"")
    assert loading == 0


def test_a_text_that_cannot_be_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with in_thread(tiny(tmp_path)) as server:
        own = Replica.rows
        poison = embedder_of(server).tokenizer.encode(["poison"], 64)[0][0]

        broken = False

        def rows(replica: Replica, batch: Any) -> Any:
            if broken or any(piece.ids == poison for piece in batch):
                raise RuntimeError("planted")
            return own(replica, batch)

        monkeypatch.setattr(Replica, "rows", rows)
        openai = ask(server, {"x-request-id": "the-id"}, input=["fine", "poison"])
        tei = server.call("/embed", {"inputs": "poison"})
        nomic = server.call("/v1/embedding/text", {"texts": ["poison"], "on_long": "end"})
        assert ask(server, input="fine").status == 200
        assert nomic.status == 200  # it has a prompt
        assert (openai.status, openai.json["error"]["type"]) == (500, "server_error")
        assert (tei.status, tei.json["error_type"]) == (424, "Backend")
        assert "planted" not in openai.body.decode() + tei.body.decode()
        assert server.metric("nomicbert_outcomes_total", outcome="failed") == 2
        assert any("the-id" in record.getMessage() for record in caplog.records)
        # three failed batches in a row: unready, unless the self-test shows that it is the texts
        for _ in range(3):
            server.call("/embed", {"inputs": "poison"})
        assert server.call("/health/ready").status == 200
        broken = True
        for _ in range(3):
            server.call("/embed", {"inputs": "fine"})
        reply = server.call("/health/ready")
        assert (reply.status, server.call("/health").status) == (503, 503)
        assert "failed" in reply.json["reason"]
        broken = False
        assert ask(server, input="fine").status == 200
        assert server.call("/health/ready").status == 200


def test_a_stuck_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with in_thread(tiny(tmp_path), stuck_seconds=0.05) as server:
        with Gate.on(monkeypatch) as gate:
            asking = threading.Thread(target=ask, args=(server,))
            asking.start()
            wait_until(lambda: gate.batches == 1)
            wait_until(lambda: server.call("/health/live").status == 503)
        asking.join()
        wait_until(lambda: server.call("/health/live").status == 200)


def test_draining_and_stopping(tmp_path: Path) -> None:
    with in_thread(tiny(tmp_path)) as server:
        server.service.draining = True
        ready = server.call("/health/ready")
        assert (ready.status, ready.json["reason"]) == (503, "draining")
        assert server.metric("nomicbert_draining") == 1
        assert server.metric("nomicbert_ready") == 0
        assert server.call("/health/live").status == 200
        reply = ask(server)
        assert reply.status == 200
        # a client that keeps its connections shall open the next one elsewhere
        assert reply.headers["connection"] == "close"
        server.service.stopping = True
        reply = ask(server)
        assert (reply.status, reply.json["error"]["code"]) == (503, "stopping")
        assert reply.headers["retry-after"] == "1"
        assert server.call("/embed", {"inputs": "a"}).json["error_type"] == "Unhealthy"


def test_the_wrong_content_type_does_not_matter_to_health(server: InThread) -> None:
    assert server.call("/health", headers=JSON).status == 200
