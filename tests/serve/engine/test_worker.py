"""The worker process: it ends with the server, and only a message makes it compute."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nomicbert.errors import CheckpointError, WorkerError
from nomicbert.serve.engine import process, wire, worker
from nomicbert.serve.engine.compute import Replica
from nomicbert.serve.engine.jobs import Group, Job, Piece, TokenMeans
from nomicbert.serve.engine.process import RemoteError, WorkerDied, WorkerProcess, WorkerStuck
from nomicbert.serve.models import Loaded
from nomicbert.serve.settings import ServeSettings
from nomicbert.vectors.pooling import Finish
from tests.support import planted_worker
from tests.support.engines import load_models, same_rows
from tests.support.served import tiny
from tests.support.serving import call, serving, wait_until


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("worker"))


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Loaded:
    return load_models(folder)


def pieces(*texts: list[int], finish: Finish | None = Finish(), **group: Any) -> list[Piece]:  # noqa: B008
    return [Piece(Job(Group(0, **group), [[101, *ids, 102]], finish), 0) for ids in texts]


# --- answers, in this process ---


class Here:
    """The server's end, whose worker is a thread of this process."""

    def __init__(self, loaded: Loaded) -> None:
        self._ours, self._theirs = socket.socketpair()
        self._ours.settimeout(60)
        self._loaded = loaded
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with self._theirs:
            try:
                while True:
                    worker.answer(self._theirs, self._loaded)
            except (EOFError, WorkerError, OSError, torch.AcceleratorError) as error:
                self.error = error

    def ask(self, header: Any, body: Any, shapes: Any) -> list[torch.Tensor]:
        wire.send(self._ours, header, body)
        found, content = wire.receive(self._ours, wire.ANSWERS)
        if isinstance(found, wire.Failed):
            raise RemoteError(found.kind, found.message, found.trace)
        return wire.to_rows(found, content, shapes)

    def write(self, content: bytes) -> None:
        self._ours.sendall(content)

    def close(self) -> None:
        self._ours.close()
        self._thread.join(60)
        assert not self._thread.is_alive()


@pytest.fixture
def here(loaded: Loaded) -> Iterator[Here]:
    found = Here(loaded)
    yield found
    found.close()


def test_rows_have_the_bits_of_a_replica(here: Here, loaded: Loaded) -> None:
    (replica,) = loaded.replicas[0]
    texts = [[7, 8, 9], [5], [], [6] * 30]
    for batch in (
        pieces(*texts),
        pieces(*texts, finish=None, skipped=1),
        [*pieces(*texts), *pieces(*texts, finish=Finish(16))],
        pieces(*texts, finish=None, hidden=True),
    ):
        hidden = batch[0].job.group.hidden
        shapes = [(len(piece.ids), None) if hidden else (None,) for piece in batch]
        assert same_rows(here.ask(*wire.of_batch(batch), shapes), replica.rows(batch))


def test_pooled_rows_have_the_bits_of_the_model(here: Here, loaded: Loaded) -> None:
    """So have the joined windows of a text, which a Join has finished there."""
    model = loaded.replicas[0][0].model
    pooled = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))

    class There:
        device = torch.device("cpu")

        def finish(self, pooled: torch.Tensor, finish: Finish) -> torch.Tensor:
            message = wire.of_pooled(0, pooled, finish)
            return torch.stack(here.ask(*message, [(None,)] * len(pooled)))

    for finish in (Finish(), Finish(16), Finish(None, 9, normalize=True)):
        join = TokenMeans((2, 1, 1), (5, 4, 0, 3), 0, finish)
        with torch.inference_mode():
            assert same_rows(join(There(), list(pooled)), join(model, list(pooled)))


def test_an_error_is_an_answer(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    own, batch = Replica.rows, pieces([5])
    for error in (RuntimeError("planted"), MemoryError(), IndexError("x" * 10**6)):

        def broken(*_: Any, error: Exception = error) -> Any:
            raise error

        monkeypatch.setattr(Replica, "rows", broken)
        with pytest.raises(RemoteError) as caught:
            here.ask(*wire.of_batch(batch), [(None,)])
        kind, message, trace = caught.value.args
        assert (kind, message) == (type(error).__name__, str(error))
        assert "in broken" in trace
    monkeypatch.setattr(Replica, "rows", own)
    assert len(here.ask(*wire.of_batch(batch), [(None,)])) == 1


def test_a_lost_device_ends_it(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered", 710)

    monkeypatch.setattr(Replica, "rows", broken)
    with pytest.raises(EOFError):
        here.ask(*wire.of_batch(pieces([5])), [(None,)])
    here.close()
    assert isinstance(here.error, torch.AcceleratorError)


def test_random_bytes_end_it(loaded: Loaded, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[Any] = []
    monkeypatch.setattr(Replica, "rows", lambda _, batch: computed.append(batch))
    rng = np.random.default_rng(seed)
    kinds = set()
    for _ in range(200):
        one = Here(loaded)
        one.write(rng.bytes(int(rng.integers(0, 300))))
        one.close()
        kinds.add(type(one.error))
    assert kinds == {EOFError, wire.WireError}  # too few bytes for a message; others
    assert not computed


# --- processes ---


def settings(folder: Path, **changes: Any) -> ServeSettings:
    given: dict[str, Any] = {"models": (str(folder),), "devices": ("cpu",), "threads": 1}
    given |= {"max_batch_tokens": 64, "isolate": True, "stuck_seconds": 60.0}
    return ServeSettings(**(given | changes))


def end(one: WorkerProcess) -> str:
    one.kill()
    return one.wait()


def test_a_process(folder: Path, loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers as a Replica; signals that are for the server do not end it; its end is told."""
    monkeypatch.setattr(process, "CODE", planted_worker.code(folder))
    one = WorkerProcess(settings(folder))
    try:
        facts, (vector,) = one.facts()
        (model,) = loaded.models
        assert facts.models[0].fingerprint == model.fingerprint
        assert facts.models[0].runs == model.runs
        assert model.is_same(vector)
        assert os.getpgid(one.pid) == os.getsid(one.pid) == one.pid
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(one.pid, number)
        batch = pieces([5, 6], [7])
        assert same_rows(one.rows(batch), loaded.replicas[0][0].rows(batch))
        assert one.answered == 1
        os.kill(one.pid, signal.SIGSTOP)  # it hangs
        one._seconds = 0.5
        with pytest.raises(WorkerStuck, match=r"no answer within 0\.5 s"):
            one.rows(batch)
    finally:
        assert end(one) == "killed by SIGKILL"
    with pytest.raises(WorkerDied):
        one.rows(batch)


ENDING = """
import time
from nomicbert.serve.engine.worker import end_with_parent
end_with_parent()
print("ready", flush=True)
time.sleep(1000)
"""


def test_it_ends_with_its_parent_while_it_computes() -> None:
    """Then it reads no message. The end of stdin tells, or of the thread that has started it."""
    started: list[subprocess.Popen[bytes]] = []
    go = threading.Event()

    def start() -> None:
        pipe = subprocess.PIPE
        path = os.pathsep.join(sys.path)
        one = subprocess.Popen(
            [sys.executable, "-c", ENDING],
            stdin=pipe, stdout=pipe, env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
        assert one.stdout is not None
        assert one.stdout.readline() == b"ready\n"
        started.append(one)
        assert go.wait(60)

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(started) == 2)
    first, second = started
    assert first.stdin is not None
    first.stdin.close()
    assert first.wait(60) == 0
    if sys.platform == "linux":
        assert second.poll() is None
        go.set()
        assert second.wait(60) == -signal.SIGKILL
    go.set()
    for one, thread in zip(started, threads, strict=True):
        thread.join(60)
        one.kill()
        with one:  # closes its pipes
            pass


PROGRAMS = {
    "garbage": ("s.sendall(b'garbage' * 100)", "while it was loading: a message begins with"),
    "nothing": ("", "while it was loading"),
    "half": ("s.sendall(b'nmb1' + bytes(9))", "while it was loading"),
    "rows": (
        "h = b'\\x82\\xa4type\\xa4Rows\\xa6shapes\\x90'; "
        "s.sendall(struct.pack('=4sIQ', b'nmb1', len(h), 0) + h)",
        "while it was loading: a header cannot be read",
    ),
    "crash": ("import os; os.abort()", "while it was loading"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_a_worker_may_send_at_the_start(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, message = PROGRAMS[name]
    code = f"import socket, struct, sys; s = socket.socket(fileno=int(sys.argv[1])); {program}"
    monkeypatch.setattr(process, "CODE", code)
    one = WorkerProcess(settings(folder))
    try:
        with pytest.raises(WorkerDied, match=message):
            one.facts()
    finally:
        end(one)


# Says that it is ready, then answers what it is given to answer, byte by byte.
ANSWERING = """
import socket, struct, sys
s = socket.socket(fileno=int(sys.argv[1]))
s.recv(1 << 16)
s.sendall(ANSWER)
s.recv(1)
"""


@pytest.mark.parametrize(
    "answer",
    [
        b"garbage" * 10,
        b"",
        b"nmb1" + bytes(12),
        "another number of rows",
        "hidden states",
        "values that are missing",
    ],
    ids=str,
)
def test_what_a_worker_may_answer(
    answer: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def message(*rows: torch.Tensor) -> bytes:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            wire.send(ours, *wire.of_rows(rows))
            ours.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: theirs.recv(1 << 16), b""))

    one_row = message(torch.ones(3))
    content = {
        "another number of rows": message(torch.ones(3), torch.ones(3)),
        "hidden states": message(torch.ones(3, 3)),
        "values that are missing": one_row[:8] + bytes(8) + one_row[28:],
    }.get(answer, answer)
    monkeypatch.setattr(process, "CODE", ANSWERING.replace("ANSWER", repr(content)))
    one = WorkerProcess(settings(folder, stuck_seconds=1.0))
    try:
        with pytest.raises(WorkerDied):
            one.rows(pieces([5]))
        assert one.answered == 0
    finally:
        end(one)


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_an_answer_that_cannot_be_read_ends_it(
    error: type[BaseException], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next question would get it."""
    monkeypatch.setattr(process, "CODE", ANSWERING.replace("ANSWER", "b'the rest of an answer'"))

    def receive(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(wire, "receive", receive)
    one = WorkerProcess(settings(folder))
    try:
        with pytest.raises(WorkerDied if error is MemoryError else error):
            one.rows(pieces([5]))
        assert one._process.wait(60) == -signal.SIGKILL
        assert one.answered == 0
    finally:
        end(one)


def test_a_start_that_hangs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "CODE", "import time; time.sleep(30)")
    one = WorkerProcess(settings(folder))
    try:
        with pytest.raises(WorkerStuck, match=r"not ready within 0\.1 s"):
            one.facts(0.1)
    finally:
        end(one)


def test_errors_of_loading_are_those_of_the_server(folder: Path) -> None:
    for kind, wanted in (
        ("CheckpointError", CheckpointError), ("ValueError", ValueError),
        ("TextError", WorkerError), ("SystemError", WorkerError), ("__name__", WorkerError),
        ("Path", WorkerError),
    ):  # fmt: skip
        found = process._error_of(wire.Failed(kind, "planted", "the trace"))
        assert type(found) is wanted
        assert "planted" in str(found)


# --- with a server that runs as a process ---


def child(server: Any) -> int:
    """The pid of the worker, from the server's log."""
    for line in server.log().splitlines():
        if '"worker_ready"' in line:
            return int(json.loads(line)["pid"])
    raise AssertionError(server.log())


def is_alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_the_worker_ends_with_a_server_that_is_killed(folder: Path) -> None:
    with serving(folder, "--isolate", "--log-format", "json") as server:
        own = child(server)
        assert is_alive(own)
        server.process.kill()
        wait_until(lambda: not is_alive(own))


def test_signals_under_load(folder: Path) -> None:
    """Ctrl-C goes to the whole group of the terminal, a service manager's SIGTERM to all
    processes: what is in flight is answered all the same."""
    flags = ("--isolate", "--log-format", "json", "--drain-seconds", "0.5", "--no-access-log")
    with serving(folder, *flags) as server:
        own = child(server)
        replies: list[Any] = []
        body = {"model": "tiny-v1.5", "input": [f"{i} " * 90 for i in range(100)]}

        def ask() -> None:
            replies.append(call(server.url, "/v1/embeddings", body))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_until(lambda: server.metric("nomicbert_batch_texts_sum") > 2)
        for one in (server.pid, own):
            os.kill(one, signal.SIGTERM)
        for thread in threads:
            thread.join(120)
        assert [reply.status for reply in replies] == [200] * 3
        assert server.process.wait(60) == 0
        wait_until(lambda: not is_alive(own))
        log = server.log()
    assert "Traceback" not in log
    assert "worker_died" not in log
