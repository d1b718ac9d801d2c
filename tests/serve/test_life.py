"""The life of a server: start, signals, sockets, TLS, browsers, and its log."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import signal
import socket
import ssl
import subprocess
import threading
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from nomicbert.serve.server import listen
from nomicbert.serve.settings import ServeSettings
from tests.support.command_line import run_python
from tests.support.served import JSON, MODEL, tiny
from tests.support.serving import Process, call, in_thread, serving, wait_until

SECRET = "a text that nobody else shall read"
KEY = "nk-the-key"
HEADERS = {"authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("life"))


def ask(server: Process, number: int) -> Any:
    body = {"model": MODEL, "input": [f"{SECRET} {number} {i}" for i in range(8)]}
    return server.call("/v1/embeddings", body, headers=HEADERS)


class Load:
    """Eight clients that ask until they are told to stop, and then twice more."""

    def __init__(self, server: Process) -> None:
        self._server = server
        self._stop = threading.Event()
        self.answers: Counter[object] = Counter()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(8)]
        for thread in self._threads:
            thread.start()

    def _ask(self, number: int) -> None:
        rounds = 2
        while rounds:
            rounds -= self._stop.is_set()
            try:
                self.answers[ask(self._server, number).status] += 1
            except OSError as error:
                self.answers[repr(error)] += 1
                return

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_sigterm_under_load(folder: Path) -> None:
    flags = ("--drain-seconds", "5", "--api-key", KEY, "--log-format", "json", "--max-length", "64")
    with serving(folder, *flags) as server:
        load = Load(server)
        wait_until(lambda: load.answers[200] >= 8)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: server.call("/health/ready").status == 503)
        assert server.call("/health/ready").json["reason"] == "draining"
        assert server.call("/health/live").status == 200
        load.stop()
        assert set(load.answers) == {200}
        # mistakes must not show texts or keys in the log either
        for body in ({"input": SECRET}, {"model": MODEL, "input": [SECRET, 1]}, {"model": SECRET}):
            server.call("/v1/embeddings", body, headers=HEADERS)
        long = {"inputs": [SECRET * 30, f"search_query: {SECRET}"], "prompt_name": "search_query"}
        server.call("/embed", long, headers=HEADERS | {"x-request-id": "the-id"})
        server.call("/embed", long, headers={"authorization": f"Bearer {KEY}x"})
        assert server.process.wait(60) == 0
        log = server.log()
    assert SECRET not in log
    assert KEY not in log
    assert "Traceback" not in log
    # after the line for people
    first, *others = log.splitlines()
    assert "serving on http://127.0.0.1:" in first
    events = [json.loads(line) for line in others]
    names = Counter(event["event"] for event in events)
    assert names["request"] >= load.answers[200]
    assert names["draining"] == 1
    assert names.keys() >= {"ready", "truncated", "doubled_prompt", "no_prompt"}
    assert all(event["level"] in ("info", "warning") for event in events)
    (own,) = (e for e in events if e["event"] == "request" and e["id"] == "the-id")
    assert own.items() >= {
        "route": "/embed", "status": 200, "model": MODEL, "texts": 2, "truncated": 1
    }.items()  # fmt: skip
    assert own["ms"] > 0
    assert own["time"].endswith("Z")


def test_a_second_signal_ends_at_once(folder: Path) -> None:
    with serving(folder, "--drain-seconds", "500", "--log-format", "text") as server:
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: server.call("/health/ready").status == 503)
        assert server.call("/embed", {"inputs": "a"}).status == 200
        assert server.stop(signal.SIGTERM) == 0
        log = server.log()
    assert "nomicbert: draining seconds=500" in log
    assert "nomicbert: request id=" in log


def test_sigint_answers_what_is_in_flight(folder: Path) -> None:
    """And an open address without a key warns."""
    flags = ("--host", "0.0.0.0", "--drain-seconds", "500", "--no-access-log")
    with serving(folder, *flags) as server:
        body = json.dumps({"model": MODEL, "input": [f"{i} " * 100 for i in range(300)]}).encode()
        place = urlsplit(server.url)
        connection = http.client.HTTPConnection("127.0.0.1", place.port, timeout=120)
        connection.request("POST", "/v1/embeddings", body, JSON)
        wait_until(lambda: server.metric("nomicbert_batch_texts_sum") > 2)
        assert server.metric("nomicbert_outcomes_total", outcome="disconnected") == 0
        server.process.send_signal(signal.SIGINT)
        answer = connection.getresponse()
        assert (answer.status, len(json.loads(answer.read())["data"])) == (200, 300)
        connection.close()
        assert server.process.wait(60) == 0
        log = server.log()
    assert "warning: 0.0.0.0 can be reached from other machines, and no --api-key is set" in log
    assert '"request"' not in log


def test_a_port_that_is_taken_and_a_wrong_model(folder: Path, tmp_path: Path) -> None:
    with contextlib.closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = run_python("-m", "nomicbert", "serve", "-m", str(folder), "--port", port)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in done.stderr
    empty = tmp_path / "empty"
    empty.mkdir()
    done = run_python("-m", "nomicbert", "serve", "-m", str(empty), "--port", "0")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("nomicbert: ")
    assert "config.json" in last


# --- in this process ---


def test_the_sockets_of_connections_send_at_once(folder: Path) -> None:
    """Nagle's algorithm would hold the body of an answer back."""
    with contextlib.closing(listen(ServeSettings(models=("m",), port=0))) as listener:
        assert listener.proto == socket.IPPROTO_TCP
    with in_thread(folder) as server:
        place = urlsplit(server.url)
        connection = http.client.HTTPConnection(place.hostname, place.port)
        with contextlib.closing(connection):
            connection.request("GET", "/health/live")
            connection.getresponse().read()
            (protocol,) = server.server.server_state.connections
            own = protocol.transport.get_extra_info("socket")
            assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_unix_socket(folder: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")

    def request() -> tuple[int, Any]:
        connection = http.client.HTTPConnection("localhost", timeout=60)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(path)
        with contextlib.closing(connection):
            connection.request("POST", "/embed", b'{"inputs": "a"}', JSON)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    stale = socket.socket(socket.AF_UNIX)
    stale.bind(path)
    stale.close()  # the file of a server that was killed
    with in_thread(folder, uds=path):
        status, vectors = request()
        assert (status, len(vectors[0])) == (200, 64)
        taken = ServeSettings(models=("m",), uds=path)
        with pytest.raises(OSError, match=r"cannot listen on .*socket: Address already in use"):
            listen(taken)
        assert request()[0] == 200
    plain = tmp_path / "file"
    plain.write_text("keep me")
    with pytest.raises(OSError, match="cannot listen"):
        listen(ServeSettings(models=("m",), uds=str(plain)))
    assert plain.read_text() == "keep me"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A certificate for localhost, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    place = tmp_path_factory.mktemp("tls")
    cert, key = str(place / "cert.pem"), str(place / "key.pem")
    command = [
        "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
        "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert,
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


def test_tls(folder: Path, certificate: tuple[str, str]) -> None:
    cert, key = certificate
    with in_thread(folder, tls_cert=cert, tls_key=key, head_seconds=2) as server:
        place = urlsplit(server.url)
        trusted = ssl.create_default_context(cafile=cert)
        connection = http.client.HTTPSConnection(
            "127.0.0.1", place.port, timeout=60, context=trusted
        )
        with contextlib.closing(connection):
            for _ in range(3):
                connection.request("POST", "/embed", b'{"inputs": "a"}', JSON)
                answer = connection.getresponse()
                assert answer.status == 200
                assert len(json.loads(answer.read())[0]) == 64
        with pytest.raises((http.client.HTTPException, OSError)):
            server.call("/health/live")  # plain text


def test_cors(folder: Path) -> None:
    origin = "https://app.example"
    with in_thread(folder, cors_origins=(origin,), api_keys=(KEY,)) as server:
        asked = {
            "origin": origin,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type",
        }
        reply = server.call("/v1/embeddings", method="OPTIONS", headers=asked)
        assert reply.status == 200
        assert reply.headers["access-control-allow-origin"] == origin
        assert "POST" in reply.headers["access-control-allow-methods"]
        body = {"model": MODEL, "input": "a"}
        for headers, status in ((HEADERS, 200), ({}, 401)):
            reply = server.call("/v1/embeddings", body, headers=headers | {"origin": origin})
            assert reply.status == status
            assert reply.headers["access-control-allow-origin"] == origin
            exposed = reply.headers["access-control-expose-headers"]
            assert {"x-embedding-fingerprint", "retry-after"} <= {*exposed.split(", ")}
        other = server.call("/v1/embeddings", body, headers=HEADERS | {"origin": "https://evil"})
        assert "access-control-allow-origin" not in other.headers
        refused = server.call(
            "/v1/embeddings", method="OPTIONS", headers=asked | {"origin": "https://evil"}
        )
        assert refused.status == 400
    with in_thread(folder) as server:
        reply = server.call("/health", headers={"origin": origin})
        assert "access-control-allow-origin" not in reply.headers


def test_a_model_that_cannot_be_loaded_ends_the_server(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(Exception, match=r"config\.json"), in_thread(empty):
        pass


def test_what_is_in_flight_at_the_end_is_answered(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies = []
    with in_thread(folder) as server:
        body = {"model": MODEL, "input": [f"{i} " * 50 for i in range(100)]}
        thread = threading.Thread(
            target=lambda: replies.append(call(server.url, "/v1/embeddings", body))
        )
        thread.start()
        wait_until(lambda: server.service.in_flight == 1)
        server.server.should_exit = True
        thread.join()
    assert [reply.status for reply in replies] == [200]
