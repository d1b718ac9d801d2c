"""Servers for tests: one as a process, one in a thread of the test, and a small HTTP client."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pybase64

from nomicbert.serve.server import Server, listen, make_server
from nomicbert.serve.settings import ServeSettings

ROOT = Path(__file__).parents[2]
# Seconds to load a tiny model, on a machine that is busy with other things.
START = 180


@dataclass(frozen=True)
class Reply:
    """An answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def vectors(self) -> np.ndarray:
        """The vectors of any dialect, fp32."""
        found = self.json
        if isinstance(found, dict):
            found = found.get("embeddings") or [item["embedding"] for item in found["data"]]
        if found and isinstance(found[0], str):
            return np.stack([np.frombuffer(pybase64.b64decode(row), "<f4") for row in found])
        return np.array(found, np.float64).astype(np.float32)


def call(
    url: str,
    path: str,
    body: Any = None,
    *,
    method: str | None = None,
    headers: dict[str, str] | None = None,
    timeout: float = 120,
) -> Reply:
    """One request on a connection of its own; a body that is not bytes is sent as JSON."""
    content = body
    given = dict(headers or {})
    if body is not None and not isinstance(body, bytes):
        content = json.dumps(body).encode()
        given.setdefault("content-type", "application/json")
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=timeout)
    with contextlib.closing(connection):
        connection.request(method or ("GET" if body is None else "POST"), path, content, given)
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Reply(answer.status, found, answer.read())


def metric(url: str, name: str, **labels: str) -> float:
    """The value of a metric, summed over the series with these labels."""
    total = 0.0
    seen = False
    for line in call(url, "/metrics").body.decode().splitlines():
        match = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
        if match is None:
            continue
        own = dict(re.findall(r'(\w+)="([^"]*)"', match[1] or ""))
        if all(own.get(key) == value for key, value in labels.items()):
            total += float(match[2])
            seen = True
    assert seen, f"no metric {name} {labels}"
    return total


def raw(url: str, data: bytes, *, timeout: float = 30, shut: bool = False) -> bytes:
    """Send bytes on a socket and read until the server closes it."""
    place = urlsplit(url)
    with socket.create_connection((place.hostname, place.port), timeout=timeout) as plain:
        plain.sendall(data)
        if shut:
            plain.shutdown(socket.SHUT_WR)
        found = b""
        while part := plain.recv(65536):
            found += part
        return found


def wait_until(condition: Any, seconds: float = 60) -> None:
    """Wait for a condition, without a claim on how long it takes."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition was not met"
        time.sleep(0.01)


class InThread:
    """A server in a thread of this process, whose parts a test can look at or break."""

    def __init__(self, server: Server, url: str) -> None:
        self.server = server
        self.service = server.service
        self.url = url

    def call(self, path: str, body: Any = None, **keywords: Any) -> Reply:
        return call(self.url, path, body, **keywords)

    def metric(self, name: str, **labels: str) -> float:
        return metric(self.url, name, **labels)


@contextlib.contextmanager
def in_thread(*models: Path | str, wait: bool = True, **settings: Any) -> Iterator[InThread]:
    """Run a server in a thread until the block ends; by default wait until it is ready."""
    values = {"port": 0, "max_batch_tokens": 256, "cache_bytes": 0, "devices": ("cpu",)}
    chosen = ServeSettings(models=tuple(map(str, models)), **(values | settings))
    server = make_server(chosen)
    with contextlib.closing(listen(chosen)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}" if chosen.uds is None else ""

        def run() -> None:
            asyncio.run(server.serve(sockets=[listener]))

        thread = threading.Thread(target=run, name="server")
        thread.start()
        try:
            if wait:
                wait_until(lambda: server.service.is_loaded or server.failure is not None, START)
                if server.failure is not None:
                    raise server.failure
            yield InThread(server, url)
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


@dataclass(frozen=True)
class Process:
    """A server that runs as a process."""

    url: str
    process: subprocess.Popen[bytes]
    log_file: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def log(self) -> str:
        return self.log_file.read_text("utf-8", "replace")

    def call(self, path: str, body: Any = None, **keywords: Any) -> Reply:
        return call(self.url, path, body, **keywords)

    def metric(self, name: str, **labels: str) -> float:
        return metric(self.url, name, **labels)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


@contextlib.contextmanager
def serving(folder: Path | str, *flags: str, ready: bool = True) -> Iterator[Process]:
    """Run `nomicbert serve` as a process on a free port; by default wait until it is ready."""
    with tempfile.TemporaryDirectory() as place:
        log_file = Path(place, "log")
        command = [sys.executable, "-m", "nomicbert", "serve", "-m", str(folder), "--port", "0"]
        known = {"--device": "cpu", "--drain-seconds": "0", "--max-batch-tokens": "256"}
        for name, value in known.items():
            command += [] if name in flags else [name, value]
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
        with log_file.open("wb") as log:
            process = subprocess.Popen([*command, *flags], stderr=log, env=environment)
        try:
            wait_until(lambda: _address(log_file) or process.poll() is not None, START)
            url = _address(log_file)
            assert url, log_file.read_text()
            if ready:
                wait_until(
                    lambda: process.poll() is not None or call(url, "/health/ready").status == 200,
                    START,
                )
                assert process.poll() is None, log_file.read_text()
            yield Process(url, process, log_file)
        finally:
            process.kill()
            process.wait()


def _address(log_file: Path) -> str:
    match = re.search(r"serving on (http://\S+)", log_file.read_text("utf-8", "replace"))
    return match[1] if match else ""
