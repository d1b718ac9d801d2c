"""`--isolate`: workers that die, hang, or cannot be started cost no request but that of the text at
fault, and no bit of a vector."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nomicbert import Embedder
from nomicbert.serve import models
from nomicbert.serve.engine import isolated, keeper, process
from nomicbert.serve.engine.deadly import DeadlyTexts
from nomicbert.serve.engine.jobs import Group, Job, Piece
from nomicbert.serve.names import Names
from nomicbert.serve.settings import ServeSettings
from nomicbert.vectors.pooling import Finish
from tests.support import planted_worker
from tests.support.planted_worker import CRASH, EXIT, HANG, HUGE, RAISE
from tests.support.sameness import HAS_ONEDNN
from tests.support.served import MODEL, Bits, bits, embedder_of, tiny
from tests.support.serving import InThread, Reply, in_thread, wait_until
from tests.support.vocabularies import SENTENCES

SETTINGS = {"isolate": True, "threads": 1, "max_length": 64}
# Seconds that a batch may take where one is to hang: few sound ones do, on a busy machine either.
STUCK = 2.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("isolated"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[InThread]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "CODE", planted_worker.code(folder))
        patch.setattr(isolated, "DeadlyTexts", NeverDeadly)
        with in_thread(folder, **SETTINGS) as found:
            yield found


class NeverDeadly(DeadlyTexts):
    """Each test finds out by itself what a text does."""

    def add(self, piece: Any) -> None:
        pass


@pytest.fixture(scope="module")
def embedder(server: InThread) -> Embedder:
    return embedder_of(server)


def keepers_of(server: InThread) -> Sequence[keeper.Keeper]:
    loaded = server.service.loaded
    assert loaded is not None
    assert loaded.workers is not None
    return loaded.workers.keepers


def pid(server: InThread, number: int = 0) -> int:
    found = keepers_of(server)[number].pid
    assert found is not None
    return found


def is_ready(server: InThread) -> bool:
    return server.call("/health/ready").status == 200


def restarts(server: InThread) -> float:
    return server.metric("nomicbert_worker_restarts_total")


def ask(server: InThread, inputs: Any, **more: Any) -> Reply:
    return server.call("/v1/embeddings", {"model": MODEL, "input": inputs, **more})


def bad(token: int) -> list[int]:
    """The ids of a text with a token that a fault is planted for."""
    return [101, token, 102]


def encode(embedder: Embedder, texts: list[str], **keywords: Any) -> Any:
    """What the server must return: unit vectors, or of a width."""
    if "matryoshka_dim" not in keywords:
        keywords.setdefault("normalize_embeddings", True)
    return embedder.encode(texts, prompt="", **keywords)


def rows(reply: Reply) -> list[Bits]:
    assert reply.status == 200, reply.body
    return [bits(row) for row in reply.vectors]


class Others:
    """Clients that ask for texts of their own until the block ends; all must get their vectors."""

    def __init__(self, server: InThread, embedder: Embedder, count: int) -> None:
        self._server = server
        self._stop = threading.Event()
        self.texts = [f"{SENTENCES[number % len(SENTENCES)]} {number}"[:60] for number in range(64)]
        self._truth = [bits(row) for row in encode(embedder, self.texts)]
        self.outcomes: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(count)]

    def _ask(self, number: int) -> None:
        while not self._stop.is_set():
            places = [(number * 3 + i) % len(self.texts) for i in range(1 + number % 3)]
            try:
                reply = ask(self._server, [self.texts[place] for place in places])
                same = reply.status == 200 and rows(reply) == [self._truth[i] for i in places]
                self.outcomes["sound" if same else f"{reply.status}"] += 1
            except OSError as error:
                self.outcomes[repr(error)] += 1

    def more(self, count: int) -> None:
        """Wait for further answers."""
        wanted = self.outcomes.total() + count
        wait_until(lambda: self.outcomes.total() >= wanted)

    def __enter__(self) -> Others:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(120)
        assert self.outcomes.keys() == {"sound"}, self.outcomes


class Probes:
    """Asks for health all the time, and notes what it is, and whether a worker was ready."""

    def __init__(self, server: InThread) -> None:
        self._server = server
        self._stop = threading.Event()
        self.live: Counter[int] = Counter()
        self.ready: Counter[int] = Counter()
        self.green_while_dead = 0
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        keepers = keepers_of(self._server)
        while not self._stop.wait(0.02):
            dead = [one.restarts for one in keepers if not one.is_ready]
            status = self._server.call("/health/ready").status
            # dead before and after the probe, and the same death
            still = [one.restarts for one in keepers if not one.is_ready]
            self.green_while_dead += bool(dead) and dead == still and status == 200
            self.ready[status] += 1
            self.live[self._server.call("/health/live").status] += 1

    def __enter__(self) -> Probes:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)


@pytest.mark.filterwarnings("ignore:.*were longer than")
def test_the_bits_of_encode(server: InThread, embedder: Embedder) -> None:
    texts = [*SENTENCES, "", "deep learning of the river " * 30]
    assert rows(ask(server, texts, on_long="end")) == [bits(row) for row in encode(embedder, texts)]
    for policy in ("mean", "chunk"):  # the second needs the model for the joined rows
        for more, keywords in (({}, {}), ({"dimensions": 16}, {"matryoshka_dim": 16})):
            found = rows(ask(server, texts, on_long=policy, **more))
            truth = encode(embedder, texts, truncate=policy, **keywords)
            assert found == [bits(row) for row in truth], (policy, more)
    states = server.call("/embed_all", {"inputs": texts, "truncate": True}).json
    truth = embedder.encode(texts, prompt="", output_value="token_embeddings")
    assert [bits(np.array(one, np.float32)) for one in states] == [
        bits(one.numpy()) for one in truth
    ]


def test_what_is_said_of_the_model(server: InThread, folder: Path, embedder: Embedder) -> None:
    info = server.call("/info").json
    assert info["fingerprint"] == embedder.fingerprint(normalize_embeddings=True).partition(".")[0]
    assert (info["backend"], info["model_dtype"]) == (embedder.model.ops.name, "float32")
    assert info["max_input_length"] == 64
    assert info["prompts"] == embedder.prompts
    assert server.call("/embed", {"inputs": "a"}).headers["x-compute-type"] == "cpu"
    (model,) = server.service.models
    assert model.runs.description == repr(embedder)
    # the server's own copy has no values
    assert all(one.is_meta for one in model.embedder.embedding_model.parameters())
    assert pid(server) != os.getpid()


def test_workers_that_are_killed_under_load(server: InThread, embedder: Embedder) -> None:
    before = restarts(server)
    with Others(server, embedder, 32) as others, Probes(server) as probes:
        for _ in range(2):
            others.more(100)
            wait_until(lambda: is_ready(server))
            own = pid(server)
            os.kill(own, signal.SIGKILL)
            wait_until(
                lambda own=own: probes.ready[503] and keepers_of(server)[0].pid not in (None, own)
            )
        others.more(100)
    assert restarts(server) == before + 2
    assert probes.green_while_dead == 0
    assert probes.ready[503] > 0
    assert probes.live.keys() == {200}
    wait_until(lambda: is_ready(server))


@contextlib.contextmanager
def stuck_after(server: InThread, seconds: float) -> Iterator[None]:
    """Workers that are started now, and the one that runs, have this time for a batch."""
    (own,) = keepers_of(server)
    before, running = own._settings, own._ready
    assert running is not None
    own._settings, running._seconds = replace(before, stuck_seconds=seconds), seconds
    try:
        yield
    finally:
        own._settings = before
        if own._ready is not None:
            own._ready._seconds = before.stuck_seconds


@pytest.mark.parametrize("token", [CRASH, HANG, RAISE], ids=["crash", "hang", "error"])
def test_a_text_at_fault(token: int, server: InThread, embedder: Embedder) -> None:
    wait_until(lambda: is_ready(server))
    before = restarts(server)
    with (
        stuck_after(server, STUCK if token == HANG else 120),
        Others(server, embedder, 3) as others,
    ):
        others.more(3)
        reply = ask(server, [bad(6), bad(token), bad(7)])
        assert (reply.status, reply.json["error"]["type"]) == (500, "server_error")
        others.more(6)
    # alone it has two tries; before that it is in a batch with others
    assert (restarts(server) - before >= 3) == (token != RAISE)
    assert server.call("/health/live").status == 200
    wait_until(lambda: is_ready(server))
    assert ask(server, [bad(6), bad(7)]).status == 200


def test_a_worker_that_cannot_be_started_again(
    server: InThread, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(keeper, "LONGEST", 0.1)
    wait_until(lambda: is_ready(server))
    short = replace(server.service.settings, stuck_seconds=1)
    monkeypatch.setattr(server.service, "settings", short)
    refuse = folder / "refuse"
    refuse.touch()
    try:
        os.kill(pid(server), signal.SIGKILL)
        waiting = ask(server, "a")  # of the time when it was not known yet
        later = ask(server, "a")
        tei = server.call("/embed", {"inputs": "a"})
        ready = server.call("/health/ready")
        assert (ready.status, "started again" in ready.json["reason"]) == (503, True)
        # for longer than a batch may take: restart the server
        wait_until(lambda: server.call("/health/live").status == 503)
    finally:
        refuse.unlink()
    for reply in (waiting, later):
        assert (reply.status, reply.json["error"]["code"]) == (503, "loading")
        assert int(reply.headers["retry-after"]) >= 1
    assert (tei.status, tei.json["error_type"]) == (503, "Unhealthy")
    wait_until(lambda: is_ready(server))
    assert server.call("/health/live").status == 200
    assert ask(server, "a").status == 200
    events = Counter(record.getMessage() for record in caplog.records)
    assert events["worker_died"] == 1
    assert events["worker_not_started"] >= 3


def test_a_worker_with_other_weights_is_not_used(
    server: InThread, folder: Path, caplog: Any
) -> None:
    """Files that were replaced meanwhile would give vectors that belong in no index.

    The end of the worker is noticed without a request, and so is that another one is ready.
    """
    wait_until(lambda: is_ready(server))
    weights = folder / "model.safetensors"
    own = weights.read_bytes()
    vector = ask(server, "a").vectors
    with Probes(server) as probes:
        try:
            damaged = bytearray(own)
            damaged[-64:] = bytes(64)
            put(weights, damaged)
            os.kill(pid(server), signal.SIGSEGV)
            wait_until(lambda: any("files have changed" in why for why in reasons(caplog)))
        finally:
            put(weights, own)
        wait_until(lambda: is_ready(server))
    assert "killed by SIGSEGV" in reasons(caplog)
    assert probes.ready[503] > 0
    assert probes.green_while_dead == 0
    assert probes.live.keys() == {200}
    np.testing.assert_array_equal(ask(server, "a").vectors, vector)


def reasons(caplog: Any) -> list[str]:
    """Why workers have ended, by the log."""
    fields = [getattr(record, "fields", {}) for record in caplog.records]
    return [str(one["why"]) for one in fields if "why" in one]


def put(path: Path, content: bytes | bytearray) -> None:
    """Put another file in place of one that may be mapped."""
    other = path.with_suffix(".new")
    other.write_bytes(content)
    other.rename(path)


def test_a_deadly_text_is_not_tried_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a text that needs more memory than a worker may have ends no worker."""
    monkeypatch.setattr(process, "CODE", planted_worker.code(folder))
    monkeypatch.setattr(isolated, "DeadlyTexts", DeadlyTexts)
    with in_thread(folder, **SETTINGS, worker_memory=planted_worker.MEMORY) as server:
        own = pid(server)
        for _ in range(2):
            assert ask(server, [bad(6), bad(HUGE)]).status == 500
            assert ask(server, [bad(6)]).status == 200
        assert (pid(server), restarts(server)) == (own, 0)
        assert ask(server, [bad(6), bad(EXIT), bad(7)]).status == 500
        # the batch, a half of it, and twice alone
        count = restarts(server)
        assert count == 4
        for inputs in ([bad(EXIT)], [bad(6), bad(EXIT)]):
            assert ask(server, inputs).status == 500
        assert ask(server, [bad(6), bad(7)]).status == 200
        assert restarts(server) == count


def test_two_devices(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(process, "CODE", planted_worker.code(folder))
    both = {**SETTINGS, "devices": ("cpu", "cpu"), "max_batch_tokens": None}
    with in_thread(folder, **both) as server:
        embedder = embedder_of(server)
        pids = {pid(server, number) for number in (0, 1)}
        assert len(pids) == 2
        assert server.service.engine.rate > 0  # measured by the first
        (budget,) = server.service.engine.budgets
        names = Names(server.service.settings)
        models.load(replace(server.service.settings, max_batch_tokens=budget), names)
        lines = [text for text in caplog.messages if "batches of up to" in text]
        assert len(lines) == 2
        assert lines[0] == lines[1]
        with Others(server, embedder, 8) as others:
            others.more(20)
            os.kill(pid(server, 1), signal.SIGKILL)
            others.more(40)
        wait_until(lambda: is_ready(server))
        assert restarts(server) == 1
        assert len({pid(server, number) for number in (0, 1)} - pids) == 1
    for one in pids:
        wait_until(lambda one=one: not Path(f"/proc/{one}").exists())


def test_mistakes_are_found_at_the_start(folder: Path, tmp_path: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    broken = tiny(tmp_path, "broken")
    (broken / "model.safetensors").write_bytes(weights[:-100])
    for model, changes, message in (
        (tmp_path, {}, "config.json"),
        (folder, {"default_prompt_name": "nothing"}, "prompt_name"),
        (folder, {"max_length": 2}, "max_seq_length"),
        (broken, {}, "model.safetensors"),  # only the worker reads it
        (folder, {"worker_memory": 1 << 20}, "allocate|[mM]emory|loading"),
    ):
        with (
            pytest.raises(Exception, match=message),
            in_thread(model, **{**SETTINGS, **changes}),
        ):
            pass


def test_the_folder_of_a_model_is_given_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an id and as the folder that it is kept in."""
    monkeypatch.setattr(models.hub, "resolve", lambda *_, **__: folder)
    given = ServeSettings(models=("a/b", str(folder)), isolate=True)
    with pytest.raises(ValueError, match="two of the models are one folder"):
        isolated.load(given, Names(given))


def test_the_memory_of_a_gpu_is_not_limited(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "devices_of", lambda _: [torch.device("cuda")])
    given = ServeSettings(models=(str(folder),), isolate=True, worker_memory=1 << 35)
    with pytest.raises(ValueError, match="leave it out on a GPU"):
        isolated.load(given, Names(given))


def test_the_self_test_is_no_answer() -> None:
    """While all else hangs it would say every time that the worker answers."""
    asked: list[bool] = []

    class Asked:
        def ask(self, work: Any, *, is_test: bool) -> list[torch.Tensor]:
            asked.append(is_test)
            return [torch.ones(1)]

    own: Any = Asked()
    replica = isolated.IsolatedReplica(own, 0, DeadlyTexts(), [101, 5, 102])
    test, other = (
        Piece(Job(Group(0), [ids], Finish()), 0) for ids in ([101, 5, 102], [101, 6, 102])
    )
    for batch in ([test], [other], [test, other]):
        replica.rows(batch)
    replica.finish(torch.ones(1, 3), Finish())
    assert asked == [True, False, False, False]


def test_no_secrets_are_handed_on() -> None:
    given = ServeSettings(models=("a",), api_keys=("nk-secret",), uds="/x", isolate=True)
    found = isolated.settings_of_worker(given, [Path("/a")], "cpu", first=True)
    assert "secret" not in repr(found)


@pytest.mark.skipif(not HAS_ONEDNN, reason="without oneDNN the bits are equal up to rounding")
def test_the_self_test_compares_bits(server: InThread) -> None:
    assert server.service.models[0].runs.is_exact
