"""HTTP itself: heads and bodies that are slow, large, ambiguous, pipelined, or no HTTP at all."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from nomicbert.serve.http.connection import LARGEST_HEAD
from tests.support.served import JSON, MODEL, NDJSON, Gate, tiny
from tests.support.serving import InThread, in_thread, raw, wait_until

BODY = b'{"inputs": "a"}'
HEAD = b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
RIGHT = HEAD + b"content-length: 15\r\n\r\n" + BODY
CLOSE = b"GET /health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
# Seconds for a head and for a body, on the server of the tests of slow clients.
IMPATIENT = 0.6


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InThread]:
    with in_thread(tiny(tmp_path_factory.mktemp("protocol"))) as found:
        yield found
        assert found.metric("nomicbert_internal_errors_total") == 0


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InThread]:
    folder = tiny(tmp_path_factory.mktemp("impatient"))
    with in_thread(folder, head_seconds=IMPATIENT, body_seconds=IMPATIENT) as found:
        yield found


def connected(server: InThread) -> socket.socket:
    place = urlsplit(server.url)
    return socket.create_connection((place.hostname, place.port), timeout=60)


def rest(plain: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while part := plain.recv(65536):
            found += part
    return found


def statuses(answers: bytes) -> list[int]:
    """Of all answers in a stream of bytes."""
    return [int(part[:3]) for part in answers.split(b"HTTP/1.1 ")[1:]]


def is_well(server: InThread) -> None:
    assert server.call("/embed", {"inputs": "a"}).status == 200


# --- slow clients ---


@pytest.mark.parametrize("half", [b"", b"\r\n"])
def test_an_idle_connection_is_closed(impatient: InThread, half: bytes) -> None:
    assert raw(impatient.url, half) == b""


@pytest.mark.parametrize("half", [b"G", b"POST /embed HT", HEAD, HEAD + b"content-length: 15\r\nx"])
def test_half_a_head_gets_408(impatient: InThread, half: bytes) -> None:
    answer = raw(impatient.url, half)
    assert statuses(answer) == [408]
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    assert b"content-type: application/json\r\n" in head
    assert "head did not come" in json.loads(body)["error"]["message"]


@pytest.mark.parametrize(
    "half",
    [
        HEAD + b"content-length: 15\r\n\r\n", HEAD + b"content-length: 15\r\n\r\n" + BODY[:-1],
        HEAD + b"transfer-encoding: chunked\r\n\r\nf\r\n" + BODY + b"\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\n{",
    ],
)  # fmt: skip
def test_half_a_body_gets_408(impatient: InThread, half: bytes) -> None:
    answer = raw(impatient.url, half)
    assert statuses(answer) == [408]
    assert "body did not come" in json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]
    wait_until(lambda: impatient.service.in_flight == 0)


def test_slow_clients_do_not_delay_others(impatient: InThread) -> None:
    """A byte now and then does not help: the clock is that of the whole head, or body."""
    with contextlib.ExitStack() as stack:
        heads = [stack.enter_context(connected(impatient)) for _ in range(100)]
        bodies = [stack.enter_context(connected(impatient)) for _ in range(100)]
        for plain in heads:
            plain.sendall(HEAD + b"x: ")
        for plain in bodies:
            plain.sendall(HEAD + b"content-length: 10000\r\n\r\n{")
        asked = 0
        while impatient.service.in_flight > 50 or asked < 10:
            is_well(impatient)
            asked += 1
            for plain in heads + bodies:
                with contextlib.suppress(OSError):
                    plain.sendall(b"x")
        assert {answer[:12] for answer in map(rest, heads)} <= {b"HTTP/1.1 408", b""}
        assert {answer[:12] for answer in map(rest, bodies)} <= {b"HTTP/1.1 408", b""}
    wait_until(lambda: impatient.service.in_flight == 0)
    is_well(impatient)


def test_a_slow_answer_is_waited_for(impatient: InThread, monkeypatch: pytest.MonkeyPatch) -> None:
    with connected(impatient) as plain, connected(impatient) as other:
        with Gate.on(monkeypatch) as gate:
            # and half of the next head is no reason to drop it
            plain.sendall(RIGHT + b"GET /health/li")
            other.sendall(HEAD)
            wait_until(lambda: gate.batches == 1)
            assert statuses(rest(other)) == [408]  # the time is over
            with connected(impatient) as third:
                third.sendall(HEAD)
                assert statuses(rest(third)) == [408]  # and over again
        plain.sendall(b"ve HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert statuses(rest(plain)) == [200, 200]


def test_a_stream_may_last_but_not_pause(impatient: InThread) -> None:
    head = (
        f"POST /v1/embeddings?model={MODEL} HTTP/1.1\r\nhost: x\r\ncontent-type: {NDJSON}\r\n"
        "transfer-encoding: chunked\r\n\r\n"
    )
    with connected(impatient) as plain:
        plain.sendall(head.encode())
        for _ in range(2):  # twice the limit
            with connected(impatient) as clock:
                clock.settimeout(0.1)
                clock.sendall(HEAD)
                is_over = False
                while not is_over:
                    plain.sendall(b'4\r\n"a"\n\r\n')
                    with contextlib.suppress(TimeoutError):
                        is_over = bool(clock.recv(1000))
        plain.sendall(b"0\r\n\r\n")
        answer = http.client.HTTPResponse(plain)
        answer.begin()
        assert answer.status == 200
        assert len(answer.read().splitlines()) > 10
    with connected(impatient) as plain:
        plain.sendall(head.encode() + b'4\r\n"a"\n\r\n')
        assert statuses(rest(plain)) == [408]


# --- what may be smuggled, and what is too large ---


@pytest.mark.parametrize(
    "lines",
    [
        b"content-length: 15\r\ntransfer-encoding: chunked\r\n",
        b"transfer-encoding: chunked\r\ncontent-length: 15\r\n",
        b"content-length: 15\r\ncontent-length: 16\r\n", b"content-length: +15\r\n",
        b"content-length: -1\r\n", b"content-length: 0xf\r\n", b"content-length: 15, 15\r\n",
        b"content-length: 1" + b"0" * 30 + b"\r\n", b"transfer-encoding: chunked, identity\r\n",
        b"transfer-encoding: xchunked\r\n", b"transfer-encoding : chunked\r\n",
        b" folded: value\r\n", b"no colon\r\n", b"name\0: x\r\n", b"x: a\0b\r\n", b": empty\r\n",
    ],
)  # fmt: skip
def test_ambiguous_heads(server: InThread, lines: bytes) -> None:
    answer = raw(server.url, HEAD + lines + b"\r\n" + BODY)
    assert statuses(answer) == [400]
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json\r\n" in head
    assert json.loads(body)["error"]["type"] == "invalid_request_error"
    is_well(server)


@pytest.mark.parametrize(
    "chunks", [b"zz\r\n", b"-1\r\n", b"f\r\n" + BODY + b"x\r\n", b"f" * 20 + b"\r\n"]
)
def test_broken_chunks(server: InThread, chunks: bytes) -> None:
    answer = raw(server.url, HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunks)
    assert statuses(answer) == [400]
    wait_until(lambda: server.service.in_flight == 0)


@pytest.mark.parametrize(
    "large",
    [
        b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nhost: x\r\nx: " + b"x" * 70_000 + b"\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nhost: x\r\n" + b"name: value\r\n" * 7400 + b"\r\n",
        # no end is in sight
        b"GET /health/live HTTP/1.1\r\nx: " + b"x" * 1_000_000,
        b"GET /" + b"x" * 1_000_000,
        b"GET /health/live HTTP/1.1\r\n" + b"x" * 1_000_000,
    ],
)
def test_large_heads(server: InThread, large: bytes) -> None:
    with connected(server) as plain:
        with contextlib.suppress(ConnectionError):
            for start in range(0, len(large), 10_000):
                plain.sendall(large[start : start + 10_000])
        # a reset may come first if there was more to read, but nobody waits for the head to end
        allowed = ([431],) if len(large) < 10**5 else ([431], [])
        assert statuses(rest(plain)) in allowed
    is_well(server)


def test_a_head_may_be_long(server: InThread) -> None:
    headers = {"x": "x" * (LARGEST_HEAD - 1000)}
    assert server.call("/health/live", headers=headers).status == 200


# --- ordinary HTTP that is less common ---


def test_pipelined_requests(server: InThread) -> None:
    other = HEAD + b"content-length: 18\r\n\r\n" + b'{"inputs": "abcd"}'
    answer = raw(server.url, RIGHT + other + RIGHT + CLOSE)
    assert statuses(answer) == [200, 200, 200, 200]
    bodies = [part.partition(b"\r\n\r\n")[2] for part in answer.split(b"HTTP/1.1 ")[1:]]
    assert bodies[0] == bodies[2] != bodies[1]
    assert json.loads(bodies[3]) == {"alive": True}
    answer = raw(server.url, RIGHT + b"BROKEN\r\n\r\n")
    assert statuses(answer) in ([200], [200, 400], [])


def test_keep_alive(server: InThread) -> None:
    place = urlsplit(server.url)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=60)
    with contextlib.closing(connection):
        for number in range(5):
            connection.request("POST", "/embed", BODY, JSON)
            assert connection.getresponse().read()
            own = connection.sock
            if number == 2:  # a refusal keeps it too
                connection.request("POST", "/embed", b"{", JSON)
                answer = connection.getresponse()
                assert (answer.status, answer.read()[:1]) == (400, b"{")
            assert connection.sock is own is not None


def test_head(server: InThread) -> None:
    for path, status in (("/health", 200), ("/v1/models", 200), ("/nowhere", 404), ("/embed", 405)):
        head = f"HEAD {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode()
        answer = raw(server.url, head)
        assert statuses(answer) == [status]
        assert answer.endswith(b"\r\n\r\n")  # no body


def test_http_1_0(server: InThread) -> None:
    old = RIGHT.replace(b"HTTP/1.1", b"HTTP/1.0")
    answer = raw(server.url, old)  # the server closes
    assert statuses(answer) == [200]
    assert json.loads(answer.partition(b"\r\n\r\n")[2])


def test_expect_100_continue(server: InThread) -> None:
    with connected(server) as plain:
        plain.sendall(HEAD + b"content-length: 15\r\nexpect: 100-continue\r\n\r\n")
        assert plain.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        plain.sendall(BODY)
        assert plain.recv(15) == b"HTTP/1.1 200 OK"
    with connected(server) as plain:  # a refusal comes at once
        head = HEAD.replace(b"application/json", b"text/plain")
        plain.sendall(head + b"content-length: 15\r\nexpect: 100-continue\r\n\r\n")
        assert plain.recv(12) == b"HTTP/1.1 415"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/health%2Flive", 200), ("/%68ealth/live", 200), ("/health/live?x=%00&y", 200),
        ("/v1/models/%F0%9F%98%80", 404), ("/%ff%fe", 404), ("/%00", 404), ("/%", 404),
        ("/..%2f..%2fetc/passwd", 404), ("//health/live", 404), ("/health/live#x", 200),
        ("/%zz", 404), ("http://other/health/live", 200), ("/v1/models/../health", 404),
    ],
)  # fmt: skip
def test_paths(server: InThread, path: str, status: int) -> None:
    answer = raw(
        server.url, f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode()
    )
    assert statuses(answer) == [status]
    json.loads(answer.partition(b"\r\n\r\n")[2])


@pytest.mark.parametrize(
    "line",
    [
        b"GET /\xff\xfe HTTP/1.1", "GET /ü HTTP/1.1".encode(), b"GET * HTTP/1.1",
        b"OPTIONS * HTTP/1.1", b"CONNECT x:80 HTTP/1.1", b"GET  HTTP/1.1", b"GET / HTTP/3.7",
        b"get / HTTP/1.1", b"FOO / HTTP/1.1", b"GET / HTTP/1.1 x", b"GET http:// HTTP/1.1",
        b"PRI * HTTP/2.0", b"\x16\x03\x01\x02\x00\x01\x00", b"GET ? HTTP/1.1", b"GET x HTTP/1.1",
    ],
)  # fmt: skip
def test_lines_that_are_no_request(server: InThread, line: bytes) -> None:
    answer = raw(server.url, line + b"\r\nhost: x\r\nconnection: close\r\n\r\n", shut=True)
    assert set(statuses(answer)) <= {400, 404, 405}
    assert b"Traceback" not in answer
    is_well(server)


def test_upgrades_are_not_followed(server: InThread) -> None:
    for kind in (b"websocket", b"h2c"):
        head = CLOSE.replace(b"connection: close", b"connection: upgrade\r\nupgrade: " + kind)
        with connected(server) as plain:
            plain.sendall(head)
            assert plain.recv(12) in (b"HTTP/1.1 200", b"HTTP/1.1 400")


def test_garbage(server: InThread, seed: int) -> None:
    random_bytes = random.Random(seed)
    for number in range(60):
        size = random_bytes.randrange(1, 3000)
        garbage = random_bytes.randbytes(size)
        if number % 3 == 0:  # damage to a right request
            place = random_bytes.randrange(len(RIGHT))
            garbage = RIGHT[:place] + random_bytes.randbytes(3) + RIGHT[place + 3 :] + CLOSE
        elif number % 3 == 1:
            garbage = RIGHT[: random_bytes.randrange(len(RIGHT))]
        answer = raw(server.url, garbage, shut=True)
        assert set(statuses(answer)) <= {200, 400, 404, 405, 413, 415, 422}, garbage
    wait_until(lambda: server.service.in_flight == 0)
    is_well(server)


def test_an_answer_that_is_not_taken(impatient: InThread) -> None:
    """A client that does not read its answer is dropped; others are not affected."""
    body = b'{"inputs": [' + b",".join([b'"a"'] * 3000) + b"]}"
    request = (
        b"POST /embed_all HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%b" % (len(body), body)
    )
    with connected(impatient) as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for _ in range(4):  # more than the sockets hold
            plain.sendall(request)
        wait_until(lambda: impatient.service.in_flight > 0)
        wait_until(lambda: impatient.service.in_flight == 0)
    assert impatient.service.bodies.held == 0
    is_well(impatient)
