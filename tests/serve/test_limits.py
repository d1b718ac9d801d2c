"""Limits: bodies, answers, the queue; and clients that leave."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.served import JSON, MODEL, NDJSON, Gate, lines, resident_bytes, tiny
from tests.support.serving import InThread, Reply, in_thread, raw, wait_until

PAYLOAD = 100_000
ANSWER = 200_000
MIB = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InThread]:
    folder = tiny(tmp_path_factory.mktemp("limits"))
    with in_thread(folder, payload_limit=PAYLOAD, max_response_bytes=ANSWER) as found:
        yield found


def ask(server: InThread, given: Any, **more: Any) -> Reply:
    return server.call("/v1/embeddings", {"model": MODEL, "input": given, **more})


def body_of(size: int) -> bytes:
    """A body of exactly this many bytes."""
    frame = json.dumps({"model": MODEL, "on_long": "end", "input": ""}).encode()
    return frame[:-2] + b"a" * (size - len(frame)) + frame[-2:]


def chunked(server: InThread, path: str, parts: Any) -> Reply:
    place = urlsplit(server.url)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=60)
    with contextlib.closing(connection):
        connection.request("POST", path, parts, JSON, encode_chunked=True)
        answer = connection.getresponse()
        return Reply(answer.status, dict(answer.getheaders()), answer.read())


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embed", "/v1/embedding/text", "/tokenize"])
def test_bodies_over_the_limit(server: InThread, path: str) -> None:
    for reply in (
        server.call(path, body_of(PAYLOAD + 1), headers=JSON),
        chunked(server, path, [body_of(PAYLOAD + 1)]),
        chunked(server, path, [b" " * 1000] * 200),
    ):
        assert reply.status == 413
        text = reply.body.decode()
        assert "larger than 100,000 bytes (--payload-limit)" in text
        assert NDJSON in text


def test_a_body_at_the_limit(server: InThread) -> None:
    body = body_of(PAYLOAD)
    assert len(body) == PAYLOAD
    assert server.call("/v1/embeddings", body, headers=JSON).status == 200
    halves = [body[:70_000], body[70_000:]]
    assert chunked(server, "/v1/embeddings", halves).status == 200


def test_the_length_decides_before_the_body_comes(server: InThread) -> None:
    head = (
        b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: 10000000000\r\n\r\n"
    )
    place = urlsplit(server.url)
    with socket.create_connection((place.hostname, place.port), timeout=60) as plain:
        plain.sendall(head)
        assert plain.recv(12) == b"HTTP/1.1 413"


def test_a_million_texts_are_refused_before_anything_is_computed(tmp_path: Path) -> None:
    with in_thread(tiny(tmp_path)) as server:
        batches = server.metric("nomicbert_batch_texts_count")
        body = b'{"model":"%b","input":[%b"a"]}' % (MODEL.encode(), b'"a",' * (10**6 - 1))
        reply = server.call("/v1/embeddings", body, headers=JSON)
        tei = server.call("/embed", b'{"inputs":[%b"a"]}' % (b'"a",' * (10**6 - 1)), headers=JSON)
        nomic = b'{"texts":[%b"a"]}' % (b'"a",' * (10**6 - 1))
        assert server.call("/v1/embedding/text", nomic, headers=JSON).status == 413
        assert server.metric("nomicbert_batch_texts_count") == batches
        assert server.metric("nomicbert_tokenise_seconds_count") == 0
    assert reply.status == tei.status == 413
    error = reply.json["error"]
    assert (error["code"], error["param"]) == ("answer_size", "input")
    assert NDJSON in error["message"]
    assert tei.json["error_type"] == "Validation"


def test_answers_over_the_limit(server: InThread) -> None:
    fits = int(ANSWER / (64 * 13))
    assert ask(server, ["a"] * fits).status == 200
    reply = ask(server, ["a"] * (fits + 1))
    assert reply.status == 413
    assert "--max-response-bytes" in reply.json["error"]["message"]
    assert NDJSON in reply.json["error"]["message"]
    # shorter vectors, and base64, need less
    assert ask(server, ["a"] * (fits + 1), dimensions=8).status == 200
    assert ask(server, ["a"] * (fits + 1), encoding_format="base64").status == 200
    instances = [{"inputs": ["a"] * (fits // 2)}] * 3
    assert server.call("/vertex", {"instances": instances}).status == 413
    assert server.call("/embed_all", {"inputs": "a" * 90}).status == 200
    assert server.call("/embed_all", {"inputs": "a b " * 300}).status == 413
    assert server.call("/tokenize", {"inputs": "a" * 4000}).status == 413


def test_an_answer_over_the_limit_is_a_stream(server: InThread) -> None:
    place = {"model": MODEL, "input": ["a"] * 1000}
    assert server.call("/v1/embeddings", place).status == 413
    reply = server.call("/v1/embeddings", place, headers={"accept": NDJSON})
    assert reply.status == 200
    assert len(reply.body.splitlines()) == 1000
    assert len(reply.body) > ANSWER


def test_64_mib_in_chunks_are_not_kept(tmp_path: Path) -> None:
    with in_thread(tiny(tmp_path), payload_limit=MIB) as server:
        assert chunked(server, "/embed", [b" " * MIB * 2]).status == 413
        before, most = resident_bytes(), 0
        part = b" " * 65536

        def parts() -> Iterator[bytes]:
            nonlocal most
            for _ in range(1024):
                most = max(most, resident_bytes())
                yield part

        reply = chunked(server, "/embed", parts())
        assert reply.status == 413
        assert max(most, resident_bytes()) - before < 11 * MIB


# --- the queue ---


def test_a_full_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with in_thread(tiny(tmp_path), max_waiting_tokens=100) as server:
        with ThreadPoolExecutor(8) as pool, Gate.on(monkeypatch) as gate:
            first = pool.submit(ask, server, "first")
            wait_until(lambda: gate.batches == 1)
            waiting = [pool.submit(ask, server, "a " * 30) for _ in range(2)]
            wait_until(lambda: server.metric("nomicbert_waiting_texts") == 2)
            waits = server.metric("nomicbert_waiting_tokens")
            assert waits == 64
            long = "a " * 90
            refused = [ask(server, long), server.call("/embed", {"inputs": long})]
            refused += [server.call("/v1/embedding/text", {"texts": [long]})]
            gate.open()
            assert first.result().status == 200
            assert [call.result().status for call in waiting] == [200, 200]
        for reply in refused:
            assert reply.status == 429
            assert int(reply.headers["retry-after"]) >= 1
            assert int(reply.headers["retry-after-ms"]) >= 200
        assert refused[0].json["error"]["code"] == "rate_limit_exceeded"
        assert refused[0].json["error"]["type"] == "rate_limit_error"
        assert refused[1].json["error_type"] == "Overloaded"
        # more than the whole queue: waiting would not help
        reply = ask(server, ["a" * 50] * 20)
        assert reply.status == 413
        assert "--max-waiting-tokens" in reply.json["error"]["message"]
        assert server.metric("nomicbert_refused_total", reason="queue_full") == 3


def test_too_many_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with in_thread(tiny(tmp_path), max_waiting_requests=3) as server:
        with ThreadPoolExecutor(8) as pool, Gate.on(monkeypatch) as gate:
            calls = [pool.submit(ask, server, f"text {i}") for i in range(3)]
            wait_until(lambda: server.service.admission.requests == 3)
            assert ask(server, "one more").status == 429
            assert server.call("/health/ready").status == 200  # load is no reason to be unready
            gate.open()
            assert {call.result().status for call in calls} == {200}
        assert ask(server, "again").status == 200


# --- clients that leave ---


def test_clients_that_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = ["a b c d e f g h " * 10] * 64
    texts = [f"{i} {text}" for i, text in enumerate(long)]
    body = json.dumps({"model": MODEL, "input": texts}).encode()
    with in_thread(tiny(tmp_path)) as server:
        place = urlsplit(server.url)
        with Gate.on(monkeypatch) as gate:
            connections = []
            for _ in range(100):
                connection = http.client.HTTPConnection(place.hostname, place.port, timeout=60)
                connection.request("POST", "/v1/embeddings", body, JSON)
                connections.append(connection)
            wait_until(lambda: server.service.engine.scheduler.waiting_texts > 63 * 100)
            assert gate.batches == 1
            taken = gate.texts
            for connection in connections:
                connection.close()
            wait_until(lambda: server.service.in_flight == 0)
            assert server.service.engine.scheduler.waiting_texts == 0
            gate.open()
            # a text of another request is computed next; theirs are not
            assert ask(server, "mine").status == 200
            assert gate.texts == taken + 1
        for name in ("waiting_texts", "waiting_tokens", "queue_seconds_ahead"):
            assert server.metric(f"nomicbert_{name}") == 0
        assert server.service.admission.requests == 0
        assert server.service.admission.expected == 0
        assert server.metric("nomicbert_in_flight_requests") == 1  # this one
        assert server.metric("nomicbert_outcomes_total", outcome="disconnected") == 100
        assert server.metric("nomicbert_internal_errors_total") == 0


def test_the_balance(tmp_path: Path) -> None:
    """requests = answered + refused + failed + disconnected."""
    with in_thread(tiny(tmp_path), max_length=64) as server:
        place = urlsplit(server.url)

        def answered() -> None:
            assert ask(server, "a").status == 200

        def refused() -> None:
            assert ask(server, []).status == 400
            assert server.call("/predict", {}).status == 424
            assert server.call("/embed", b"{", headers=JSON).status == 400

        def left() -> None:
            connection = http.client.HTTPConnection(place.hostname, place.port)
            body = json.dumps({"model": MODEL, "input": ["a"] * 500}).encode()
            connection.request("POST", "/v1/embeddings", body, JSON)
            connection.close()

        def half() -> None:
            raw(server.url, b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n"
                b"content-type: application/json\r\n\r\n{", shut=True)  # fmt: skip

        threads = [
            threading.Thread(target=work)
            for _ in range(10)
            for work in (answered, refused, left, half)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_until(lambda: server.service.in_flight == 0)
        # one look, since each look is a request itself
        found = lines(server)
        outcomes = {
            name: found[f'nomicbert_outcomes_total{{outcome="{name}"}}']
            for name in ("answered", "refused", "failed", "disconnected")
        }
        series = [name for name in found if name.startswith("nomicbert_requests_total{")]
        assert sum(found[name] for name in series) == sum(outcomes.values()) == 60
        assert outcomes["answered"] >= 10
        assert outcomes["refused"] == 30
        assert outcomes["failed"] == 0
        assert outcomes["disconnected"] >= 10


def test_bodies_of_all_requests_together(server: InThread) -> None:
    """Half bodies are counted, and forgotten when their clients leave."""
    bodies, place = server.service.bodies, urlsplit(server.url)
    assert bodies.limit == 8 * PAYLOAD
    head = (
        "POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"content-length: {PAYLOAD}\r\n\r\n"
    ).encode()
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            plain = socket.create_connection((place.hostname, place.port))
            stack.enter_context(plain)
            plain.sendall(head + b"a" * (PAYLOAD - 1))
        wait_until(lambda: bodies.held == 8 * (PAYLOAD - 1))
        refused = server.call("/embed", {"inputs": "a" * 1000})
        assert (refused.status, refused.json["error_type"]) == (429, "Overloaded")
        assert "retry-after" in refused.headers
    wait_until(lambda: bodies.held == 0)
    assert ask(server, "a").status == 200
