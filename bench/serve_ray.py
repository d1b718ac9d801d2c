"""The server on Ray Serve against the same server alone, a replica that is killed, and scaling.

    PYTHONPATH=.:kernels python -m bench.serve_ray --checkpoint FOLDER --workers 2

It starts a cluster on this machine with one replica at / and `--workers` replicas at /more, each
with one thread, and `nomicbert serve --threads 1` beside them. `python -m bench.serve closed`
compares their speed. Then one of the replicas at /more is killed with SIGKILL under load, a few
times. At last an application that scales from 1 replica to 2 gets load for a while.
"""

import argparse
import contextlib
import os
import secrets
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import ray
from ray import serve

from nomicbert.serve.ray import Replicas, ServeSettings, deployment

CONNECTIONS = 16
RAY, ALONE = 8600, 8601
# as many lines of a text as make batches of some 50 ms
TEXTS = 16


def ask(url: str, number: int, tries: int) -> str:
    """One request with `tries` at most; "" if it was answered."""
    body = orjson.dumps({"inputs": [f"text {number} {n} " * 20 for n in range(TEXTS)]})
    problem = ""
    for _ in range(tries):
        request = urllib.request.Request(url + "/embed", body, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return "" if len(orjson.loads(answer.read())) == TEXTS else "rows"
        except OSError as error:
            problem = str(error)
            time.sleep(0.25)
    return problem


class Load:
    """Clients that ask until the block ends; `counts` has their outcomes, "" for an answer."""

    def __init__(self, url: str, clients: int, tries: int) -> None:
        self.counts: Counter[str] = Counter()
        self._stop = threading.Event()

        def run(first: int) -> None:
            number = first
            while not self._stop.is_set():
                number += clients
                self.counts[ask(url, number, tries)] += 1

        self._threads = [threading.Thread(target=run, args=(n,)) for n in range(clients)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def __str__(self) -> str:
        failed = {problem: count for problem, count in self.counts.items() if problem}
        return f"{self.counts['']} answered, {sum(failed.values())} failed {failed or ''}"


def running(name: str) -> int:
    (found,) = serve.status().applications[name].deployments.values()
    return found.replica_states.get("RUNNING", 0)


def until(condition: Callable[[], bool]) -> float:
    """Seconds until it holds."""
    began = time.monotonic()
    while not condition():
        time.sleep(0.05)
    return time.monotonic() - began


def replicas_of(name: str) -> list[int]:
    """Process ids of an application's replicas."""
    found = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            title = (process / "cmdline").read_bytes()
            if title.startswith(f"ray::ServeReplica:{name}:".encode()):
                found.append(int(process.name))
    return found


@contextlib.contextmanager
def alone(checkpoint: str) -> Iterator[str]:
    """`nomicbert serve` with one thread."""
    command = [sys.executable, "-m", "nomicbert", "serve", "-m", checkpoint, "--threads", "1"]
    flags = ["--device", "cpu", "--cache-bytes", "0", "--no-access-log", "--port", str(ALONE)]
    url = f"http://127.0.0.1:{ALONE}"

    def is_ready() -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(url + "/health/ready"):
            return True
        return False

    process = subprocess.Popen([*command, *flags], stderr=subprocess.DEVNULL)
    try:
        until(is_ready)
        yield url
    finally:
        process.terminate()
        process.wait()


def speed(urls: dict[str, str], rounds: int) -> None:
    for connections in (1, CONNECTIONS):
        command = [sys.executable, "-m", "bench.serve", "closed", "--rounds", str(rounds)]
        command += ["--connections", str(connections), "--workload", "short", "--seconds", "4"]
        for name, url in urls.items():
            command += ["--url", url, "--name", name]
        subprocess.run(command, check=True)


def kills(url: str, name: str, count: int) -> None:
    again = []
    with Load(url, CONNECTIONS // 2, 1) as plain, Load(url, CONNECTIONS // 2, 5) as patient:
        for _ in range(count):
            time.sleep(2)
            before = set(replicas_of(name))
            os.kill(min(before), signal.SIGKILL)
            again.append(
                until(
                    lambda b=before: (
                        len(set(replicas_of(name)) - b) == 1 and running(name) == len(b)
                    )
                )
            )
    print(f"{count} kills, {CONNECTIONS // 2} clients without retries: {plain}")
    print(f"{CONNECTIONS // 2} clients that retry: {patient}")
    print(f"replaced after {statistics.median(again):.1f} s (median)")


def scaling(settings: ServeSettings, url: str) -> None:
    replicas = Replicas(max_replicas=2, upscale_delay_s=1, downscale_delay_s=5)
    serve.run(deployment(settings, replicas), name="scaled", route_prefix="/scaled")
    with Load(url + "/scaled", CONNECTIONS, 1) as load:
        print(f"1 -> 2 replicas after {until(lambda: running('scaled') == 2):.1f} s: {load}")
    with Load(url + "/scaled", 1, 1) as load:
        seconds = until(lambda: len(replicas_of("scaled")) == 1)
        print(f"2 -> 1 replica after {seconds:.1f} s: {load}")
    print(f"at the end: {load}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--checkpoint", required=True, help="folder or repository id")
    parser.add_argument("--workers", type=int, default=2, help="replicas at /more")
    parser.add_argument("--rounds", type=int, default=5, help="of each comparison")
    parser.add_argument("--kills", type=int, default=3, help="of replicas at /more")
    given = parser.parse_args()
    settings = ServeSettings(
        models=(given.checkpoint,), threads=1, cache_bytes=0, access_log=False, open_metrics=True
    )
    options: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False}
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(16)  # else Ray keeps one in the home
    ray.init(num_cpus=given.workers + 4, object_store_memory=100 << 20, **options)
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": RAY})
    url = f"http://127.0.0.1:{RAY}"
    try:
        serve.run(deployment(settings), name="one", route_prefix="/")
        more = deployment(settings, Replicas(min_replicas=given.workers))
        serve.run(more, name="more", route_prefix="/more")
        with alone(given.checkpoint) as beside:
            speed({"alone": beside, "one": url, "more": url + "/more"}, given.rounds)
        serve.delete("one")
        kills(url + "/more", "more", given.kills)
        serve.delete("more")
        scaling(settings, url)
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
