"""Streams of lines: order, ids, mistakes, flat memory, and clients that leave or do not read."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import numpy as np
import pytest

from nomicbert import Embedder
from nomicbert.serve.dialects import ndjson
from nomicbert.serve.service import Service
from tests.support.served import LONG, MODEL, NDJSON, Gate, bits, embedder_of, tiny
from tests.support.serving import InThread, Reply, in_thread, wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InThread]:
    with in_thread(tiny(tmp_path_factory.mktemp("ndjson")), max_length=64) as found:
        yield found


@pytest.fixture(scope="module")
def embedder(server: InThread) -> Embedder:
    return embedder_of(server)


def encode(embedder: Embedder, texts: Any, **more: Any) -> np.ndarray:
    """What the server computes for a request without a prompt: `normalize_embeddings=True`."""
    chosen = {"prompt": "", "normalize_embeddings": True} | more
    return embedder.encode(texts, **chosen)


def send(server: InThread, body: bytes, **query: Any) -> Reply:
    """Lines in, lines out."""
    path = "/v1/embeddings?" + urlencode({"model": MODEL} | query)
    return server.call(path, body, headers={"content-type": NDJSON})


def parsed(reply: Reply) -> list[dict[str, Any]]:
    assert reply.headers["content-type"] == NDJSON
    assert reply.body.endswith(b"\n") or not reply.body
    return [json.loads(line) for line in reply.body.splitlines()]


def vectors(found: list[dict[str, Any]]) -> np.ndarray:
    return np.array([line["embedding"] for line in found], np.float64).astype(np.float32)


def as_lines(texts: Iterable[Any]) -> bytes:
    return b"".join(json.dumps(text).encode() + b"\n" for text in texts)


def test_lines_in_and_out(server: InThread, embedder: Embedder) -> None:
    texts = [f"text {i}" for i in range(200)]
    reply = send(server, as_lines(texts))
    assert reply.status == 200
    assert len(reply.headers["x-embedding-fingerprint"]) > 30
    found = parsed(reply)
    assert [line["index"] for line in found] == list(range(200))
    assert all(set(line) == {"index", "embedding", "tokens", "truncated"} for line in found)
    assert [line["tokens"] for line in found] == embedder.tokenizer.count(texts)
    assert bits(vectors(found)) == bits(encode(embedder, texts))


def test_a_body_of_json_is_answered_in_lines(server: InThread, embedder: Embedder) -> None:
    texts = [f"text {i}" for i in range(200)]
    for accept in (NDJSON, f"{NDJSON}, application/json;q=0.5"):
        reply = server.call(
            "/v1/embeddings", {"model": MODEL, "input": texts}, headers={"accept": accept}
        )
        assert reply.status == 200
        assert bits(vectors(parsed(reply))) == bits(encode(embedder, texts))
    one = server.call("/embeddings", {"model": MODEL, "input": "a"}, headers={"accept": NDJSON})
    assert bits(vectors(parsed(one))) == bits(encode(embedder, ["a"]))


def test_lines_are_strings_or_objects(server: InThread, embedder: Embedder) -> None:
    body = (
        b'"plain"\n\n  \n{"input": "named", "id": "x/1"}\r\n\n'
        b'{"input": "numbered", "id": 7, "more": [1]}\n{"input": "", "id": null}\n"the last"'
    )
    found = parsed(send(server, body))
    assert [line.get("id") for line in found] == [None, "x/1", 7, None, None]
    assert ["id" in line for line in found] == [False, True, True, False, False]
    texts = ["plain", "named", "numbered", "", "the last"]
    assert bits(vectors(found)) == bits(encode(embedder, texts))


def test_no_lines(server: InThread) -> None:
    for body in (b"", b"\n\n", b" "):
        reply = send(server, body)
        assert (reply.status, reply.body) == (200, b"")


def test_settings_are_in_the_query(server: InThread, embedder: Embedder) -> None:
    texts = ["a", "short", LONG]
    body = as_lines(texts)
    found = parsed(send(server, as_lines(texts[:2]), dimensions=16))
    assert bits(vectors(found)) == bits(embedder.encode(texts[:2], prompt="", matryoshka_dim=16))
    found = parsed(send(server, body, on_long="mean", prompt_name="search_query"))
    wanted = encode(embedder, texts, prompt="search_query: ", truncate="mean")
    assert bits(vectors(found)) == bits(wanted)
    found = parsed(send(server, as_lines(["a"]), encoding_format="base64"))
    assert base64.b64decode(found[0]["embedding"]) == bits(encode(embedder, ["a"]))
    reply = send(server, body, on_long="end", report="true")
    found = parsed(reply)
    assert [line["truncated"] for line in found] == [False, False, True]
    assert found[2]["tokens"] == 64
    assert [line["whole"] for line in found] == embedder.token_count(texts)
    # later slices may be cut too: only the lines count
    assert "x-truncated-texts" not in reply.headers


@pytest.mark.parametrize(
    ("query", "status", "param"),
    [
        ({"dimensions": 0}, 400, "dimensions"), ({"dimensions": "x"}, 400, None),
        ({"dimensions": ""}, 400, None), ({"encoding_format": "hex"}, 400, None),
        ({"on_long": "cut"}, 400, "on_long"), ({"prompt_name": "none"}, 400, "prompt_name"),
        ({"model": "other"}, 404, "model"), ({"max_length": 10**30}, 400, "max_length"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("body", [b'"a"\n', b""])
def test_wrong_settings(
    server: InThread, query: dict[str, Any], status: int, param: str | None, body: bytes
) -> None:
    reply = send(server, body, **query)
    assert reply.status == status
    assert reply.headers["content-type"] == "application/json"
    assert reply.json["error"]["param"] == param


def test_a_stream_needs_a_model(server: InThread) -> None:
    reply = server.call("/v1/embeddings", b'"a"\n', headers={"content-type": NDJSON})
    assert (reply.status, reply.json["error"]["param"]) == (400, "model")


WRONG_LINES = [
    b"5",
    b"{}",
    b'{"input": 1}',
    b"[1]",
    b"not json",
    b'"\xff"',
    b'"\\ud800"',
    b"[" * 10**5,
]


@pytest.mark.parametrize("line", WRONG_LINES)
def test_a_mistake_in_the_first_slice_is_refused(server: InThread, line: bytes) -> None:
    reply = send(server, b'"a"\n"b"\n' + line + b'\n"c"\n')
    assert reply.status == 400
    assert reply.json["error"]["param"] == "input"
    assert "line 3 " in reply.json["error"]["message"]


@pytest.mark.parametrize("line", WRONG_LINES)
@pytest.mark.parametrize("place", [64, 65, 150])
def test_a_later_mistake_is_the_last_line(
    server: InThread, embedder: Embedder, line: bytes, place: int
) -> None:
    texts = [f"text {i}" for i in range(place)]
    reply = send(server, as_lines(texts) + line + b"\n" + as_lines(["never"] * 100))
    assert reply.status == 200
    *found, last = parsed(reply)
    assert bits(vectors(found)) == bits(encode(embedder, texts))
    assert list(last) == ["error"]
    assert f"line {place + 1} " in last["error"]["message"]
    assert last["error"]["type"] == "invalid_request_error"


def test_a_text_that_is_too_long_ends_the_stream(server: InThread) -> None:
    texts = ["a"] * 150
    texts[100] = LONG
    *found, last = parsed(send(server, as_lines(texts)))
    assert [line["index"] for line in found] == list(range(64))
    assert last["error"]["code"] == "context_length_exceeded"
    assert "in text 100" in last["error"]["message"]
    assert send(server, as_lines([LONG])).status == 400


def test_a_line_longer_than_the_limit(tmp_path: Path) -> None:
    with in_thread(tiny(tmp_path), payload_limit=20_000, max_client_batch_size=10) as server:
        assert send(server, as_lines(["a b " * 4000]), on_long="end", max_length=8).status == 200
        reply = send(server, as_lines(["a", "a b " * 100_000]), on_long="end")
        assert reply.status == 413
        assert "line 2 " in reply.json["error"]["message"]
        # neither limit is one of the whole stream
        assert len(parsed(send(server, as_lines(["a" * 60] * 500)))) == 500


def test_an_internal_error_ends_the_stream(
    server: InThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    async def embed(self: Service, *arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise ZeroDivisionError("planted")
        return await own(self, *arguments, **keywords)

    own = Service.embed
    monkeypatch.setattr(Service, "embed", embed)
    *found, last = parsed(send(server, as_lines(["a"] * 300)))
    assert [line["index"] for line in found] == list(range(128))
    assert last["error"]["type"] == "server_error"
    assert "planted" not in json.dumps(last)


# --- sockets ---


class Stream:
    """A stream whose lines are sent and read step by step."""

    def __init__(self, server: InThread, **query: Any) -> None:
        place = urlsplit(server.url)
        path = "/v1/embeddings?" + urlencode({"model": MODEL} | query)
        self.socket = socket.create_connection((place.hostname, place.port), timeout=60)
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: {NDJSON}\r\n"
        self.socket.sendall(f"{head}transfer-encoding: chunked\r\n\r\n".encode())

    def send(self, data: bytes) -> None:
        self.socket.sendall(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self) -> None:
        self.socket.sendall(b"0\r\n\r\n")

    def answer(self) -> http.client.HTTPResponse:
        response = http.client.HTTPResponse(self.socket)
        response.begin()
        return response

    def leave(self) -> None:
        self.socket.close()


class Pending:
    """Counts the slices that are computed at a time."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = self.most = self.calls = 0
        own = Service.embed

        async def embed(service: Service, *arguments: Any, **keywords: Any) -> Any:
            self.now += 1
            self.calls += 1
            self.most = max(self.most, self.now)
            try:
                return await own(service, *arguments, **keywords)
            finally:
                self.now -= 1

        patch.setattr(Service, "embed", embed)


def test_5000_lines_in_flat_memory(server: InThread, monkeypatch: pytest.MonkeyPatch) -> None:
    pending = Pending(monkeypatch)
    stream = Stream(server, encoding_format="base64", dimensions=8)

    def write() -> None:
        for start in range(0, 5000, 100):
            stream.send(as_lines({"input": f"t {i}", "id": i} for i in range(start, start + 100)))
        stream.end()

    writer = threading.Thread(target=write)
    writer.start()
    count = 0
    for line in stream.answer():
        found = json.loads(line)
        assert found["index"] == found["id"] == count
        count += 1
    writer.join()
    stream.leave()
    assert count == 5000
    assert pending.calls == -(-5000 // ndjson.SLICE_TEXTS)
    assert pending.most <= ndjson.AHEAD


def test_vectors_come_before_the_stream_has_ended(server: InThread) -> None:
    stream = Stream(server)
    stream.send(as_lines(["a"] * 3 * ndjson.SLICE_TEXTS))
    answer = stream.answer()
    assert json.loads(answer.readline())["index"] == 0
    stream.end()
    assert len(answer.read().splitlines()) == 3 * ndjson.SLICE_TEXTS - 1
    stream.leave()


def asked_for_lines(server: InThread, texts: list[str]) -> http.client.HTTPConnection:
    """A connection that has sent a body of JSON, for an answer in lines."""
    place = urlsplit(server.url)
    connection = http.client.HTTPConnection(place.hostname, place.port)
    body = json.dumps({"model": MODEL, "input": texts})
    headers = {"content-type": "application/json", "accept": NDJSON}
    connection.request("POST", "/v1/embeddings", body, headers)
    return connection


@pytest.mark.parametrize("reads_lines", [True, False])
def test_a_client_that_leaves(
    server: InThread, monkeypatch: pytest.MonkeyPatch, reads_lines: bool
) -> None:
    gone = server.metric("nomicbert_outcomes_total", outcome="disconnected")
    texts = [f"text {i}" for i in range(1000)]
    with Gate.on(monkeypatch) as gate:
        if reads_lines:
            stream = Stream(server)
            stream.send(as_lines(texts))
            leave = stream.leave
        else:
            connection = asked_for_lines(server, texts)
            leave = connection.close
        wait_until(lambda: gate.batches == 1)
        leave()
        if not reads_lines:
            wait_until(lambda: server.service.in_flight == 0)
        gate.open()
        wait_until(lambda: server.service.in_flight == 0)
        assert gate.texts <= 2 * ndjson.SLICE_TEXTS
    assert server.service.engine.scheduler.waiting_texts == 0
    wait_until(lambda: server.metric("nomicbert_in_flight_requests") == 1)  # that of /metrics
    assert server.metric("nomicbert_outcomes_total", outcome="disconnected") == gone + 1


def test_a_client_that_leaves_while_it_reads(
    server: InThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slices that are quick: each ends before anyone looks whether the client is there."""
    pending = Pending(monkeypatch)
    connection = asked_for_lines(server, ["a"] * 20_000)
    answer = connection.getresponse()
    assert json.loads(answer.readline())["index"] == 0
    answer.close()
    connection.close()
    wait_until(lambda: server.service.in_flight == 0)
    assert pending.calls < 20_000 / ndjson.SLICE_TEXTS / 2


def test_a_reader_that_does_not_read_stops_the_stream(
    server: InThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    pending = Pending(monkeypatch)
    stream = Stream(server)
    stream.socket.settimeout(2)
    part = as_lines(["a"] * 1000)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < 2_000_000:  # the answer is larger than what sockets hold
            stream.send(part)
            sent += 1000
    assert sent < 2_000_000
    calls = pending.calls
    assert calls * ndjson.SLICE_TEXTS < sent
    assert pending.now <= ndjson.AHEAD
    stream.socket.settimeout(60)
    # what it computed meanwhile is what it had read; the rest waits in sockets
    assert pending.calls == calls
    stream.leave()
    wait_until(lambda: server.service.in_flight == 0)
