"""A cluster of Ray on loopback with Ray Serve, the replicas on it, and clients that ask them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from tests.support.ray_cluster import cluster
from tests.support.served import bits

# Ray's intervals, in seconds, so that a test need not wait for them; read by its processes.
QUICK = {
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.3",
    "RAY_SERVE_AUTOSCALING_METRIC_RECORD_INTERVAL_FACTOR": "0.1",
}


@contextlib.contextmanager
def serving_cluster(**environment: str) -> Iterator[str]:
    """Run a cluster with a proxy; its address. `environment` is that of all its processes."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**QUICK, **environment}.items():
            patch.setenv(name, value)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        with cluster(data=False):
            from ray import serve

            serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
            try:
                yield f"http://127.0.0.1:{port}"
            finally:
                serve.shutdown()


def running(application: str) -> int:
    """Replicas that take requests."""
    from ray import serve

    (found,) = serve.status().applications[application].deployments.values()
    return found.replica_states.get("RUNNING", 0)


def processes() -> set[int]:
    """Process ids of the replicas on this machine that are children of this cluster's."""
    found = set()
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):  # it has ended, or is no process
            title = (process / "cmdline").read_bytes()
            if title.startswith(b"ray::ServeReplica") and _is_ours(int(process.name)):
                found.add(int(process.name))
    return found


def _is_ours(process: int) -> bool:
    """Whether this process is among its parents."""
    while process > 1:
        if process == os.getpid():
            return True
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return False


class Clients:
    """Threads that ask for vectors until they are told to stop, and compare all of their bits.

    Attributes:
        answered: requests with the right vectors.
        failed: what the others got, each after `retries` more tries.
        retried: tries that failed before another one.
    """

    def __init__(
        self,
        url: str,
        bodies: Sequence[tuple[Mapping[str, Any], np.ndarray]],
        *,
        count: int,
        retries: int = 0,
        pause: float = 0.0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`bodies`: for /v1/embeddings, with their vectors."""
        self._place = urlsplit(url)
        self._bodies = bodies
        self._retries, self._pause = retries, pause
        self._headers = {"content-type": "application/json", **(headers or {})}
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.answered = self.retried = 0
        self.failed: list[str] = []
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(count)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Wait for the last answers."""
        self._stop.set()
        for thread in self._threads:
            thread.join(180)
            assert not thread.is_alive()

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self, number: int) -> None:
        connection = http.client.HTTPConnection(
            self._place.hostname or "", self._place.port, timeout=120
        )
        with contextlib.closing(connection):
            while not self._stop.is_set():
                body, wanted = self._bodies[number % len(self._bodies)]
                number += 1
                for left in range(self._retries, -1, -1):
                    problem = self._ask(connection, body, wanted)
                    if not problem:
                        break
                    with self._lock:
                        self.retried += left > 0
                    time.sleep(0.2)
                with self._lock:
                    self.answered += not problem
                    if problem:
                        self.failed.append(problem)
                time.sleep(self._pause)

    def _ask(
        self, connection: http.client.HTTPConnection, body: Mapping[str, Any], wanted: np.ndarray
    ) -> str:
        """Why there is no right answer; "" if there is."""
        try:
            connection.request("POST", "/v1/embeddings", json.dumps(body), self._headers)
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return repr(error)
        if answer.status != 200:
            return f"{answer.status} {content[:300]!r}"
        rows = [item["embedding"] for item in json.loads(content)["data"]]
        found = np.array(rows, np.float64).astype(np.float32)
        return "" if bits(found) == bits(wanted) else "other vectors"
