"""The engine on an event loop: failures stay with their request, and nothing is left behind."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nomicbert import Embedder
from nomicbert.serve.engine import engine as engine_module
from nomicbert.serve.engine.compute import NotFinite, Replica
from nomicbert.serve.engine.engine import Engine
from nomicbert.serve.engine.jobs import Group, Job, Piece
from nomicbert.serve.models import Loaded
from nomicbert.serve.tokens import Wanted, tokenise
from nomicbert.vectors.pooling import Finish
from tests.support.checkpoints import build_checkpoint
from tests.support.engines import load_models, make_engine, rows_of, run, same_rows, want
from tests.support.sameness import HAS_ONEDNN
from tests.support.serving import in_thread, wait_until
from tests.support.vocabularies import SENTENCES, WORDS

BAD = 77  # a token id that a test plants an error for
exact = pytest.mark.skipif(not HAS_ONEDNN, reason="without oneDNN bits depend on the batch")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("nomic"), "nomic-v1.5", num_hidden_layers=1)


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Loaded:
    return load_models(folder)


def job(*texts: list[int], **rest: Any) -> Job:
    return Job(Group(0), [[101, *ids, 102] for ids in texts], Finish(), **rest)


Plant = Callable[[Any], None]


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Iterator[Plant]:
    """Make every batch with the token BAD raise an error, or give "nan"; None heals."""
    original = Replica.rows

    def planted(kind: Any) -> None:
        def rows(self: Replica, batch: list[Piece]) -> list[torch.Tensor]:
            bad = [BAD in piece.ids for piece in batch]
            if kind is not None and kind != "nan" and any(bad):
                raise kind("planted")
            found = original(self, batch)
            if kind == "nan":
                return [
                    row * math.nan if is_bad else row
                    for row, is_bad in zip(found, bad, strict=True)
                ]
            return found

        monkeypatch.setattr(Replica, "rows", rows)

    return planted


class Gate:
    """Holds the compute threads at the beginning of a batch, and lists what they compute."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = threading.Event()
        self.entered = threading.Semaphore(0)
        self.batches: list[list[tuple[Job, int]]] = []
        original = Replica.rows

        def rows(replica: Replica, batch: list[Piece]) -> list[torch.Tensor]:
            self.batches.append([(piece.job, piece.number) for piece in batch])
            self.entered.release()
            assert self.opened.wait(60)
            return original(replica, batch)

        monkeypatch.setattr(Replica, "rows", rows)

    async def wait(self) -> None:
        """Until one more batch has begun."""
        assert await asyncio.to_thread(self.entered.acquire, timeout=60)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    found = Gate(monkeypatch)
    yield found
    found.opened.set()


async def ends(*futures: asyncio.Future[Any]) -> list[Any]:
    return await asyncio.gather(*futures, return_exceptions=True)


@exact
@pytest.mark.parametrize(
    ("kind", "error"),
    [(RuntimeError, RuntimeError), (torch.OutOfMemoryError, torch.OutOfMemoryError),
     ("nan", NotFinite)],
)  # fmt: skip
def test_only_the_request_at_fault_fails(
    loaded: Loaded, plant: Plant, kind: Any, error: type[Exception]
) -> None:
    pieces = [[[5, 6], [7]], [[8] * 20, [BAD, 9]], [[10] * 30], [[BAD]], [[5, 6], [11]]]

    async def alone(engine: Engine) -> list[list[torch.Tensor]]:
        return [await engine.submit(job(*texts)) for texts in pieces]

    async def together(engine: Engine) -> list[Any]:
        jobs = [job(*texts) for texts in pieces]
        found = await ends(*(engine.submit(one) for one in jobs))
        assert engine.scheduler.waiting_texts == 0
        assert not engine._futures
        return found

    truth = run(loaded, alone)
    plant(kind)
    found = run(loaded, together)
    for number, (rows, wanted) in enumerate(zip(found, truth, strict=True)):
        if number in (1, 3):
            assert type(rows) is error
        else:
            assert same_rows(rows, wanted)


def test_the_rest_of_a_failed_request_is_not_computed(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, computed = Replica.rows, []

    def rows(self: Replica, batch: list[Piece]) -> list[torch.Tensor]:
        computed.extend(piece.ids[1] for piece in batch)
        if BAD in computed[-len(batch) :]:
            raise RuntimeError("planted")
        return original(self, batch)

    monkeypatch.setattr(Replica, "rows", rows)

    async def scenario(engine: Engine) -> None:
        failing = job([BAD] * 120, *([[6] * 100] * 5))
        with pytest.raises(RuntimeError, match="planted"):
            await engine.submit(failing)
        await engine.submit(job([7] * 100))
        assert computed == [BAD, 7]
        assert engine.scheduler.waiting_texts == engine.scheduler.waiting_tokens == 0

    run(loaded, scenario)


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_an_error_in_joining_windows(loaded: Loaded, cache_bytes: int) -> None:
    def broken(_model: Any, _rows: Any) -> Any:
        raise RuntimeError("planted")

    def not_finite(_model: Any, rows: Any) -> Any:
        return [row * math.nan for row in rows]

    def swapped(_model: Any, rows: Any) -> Any:
        return rows[::-1]

    async def scenario(engine: Engine) -> None:
        texts = [[5, 6], [7, 8]]
        for _ in range(2):  # with a cache the second time nothing is computed
            found = await ends(
                *(engine.submit(job(*texts, join=join)) for join in (broken, not_finite, swapped)),
                engine.submit(job(*texts)),
            )
            assert [type(one) for one in found[:2]] == [RuntimeError, ArithmeticError]
            assert same_rows(found[2], found[3][::-1])
        assert not engine._futures
        assert not engine.is_failing

    run(loaded, scenario, cache_bytes)


def test_three_failed_batches_in_a_row(loaded: Loaded, plant: Plant) -> None:
    async def scenario(engine: Engine) -> None:
        async def fails(*texts: list[int]) -> bool:
            (found,) = await ends(engine.submit(job(*texts)))
            return isinstance(found, Exception)

        plant(RuntimeError)
        for wanted in (False, False, True, True):
            assert await fails([BAD])
            assert engine.is_failing == wanted
        assert not await fails([5])
        assert not engine.is_failing
        for _ in range(5):  # not all of the batch
            assert await fails([BAD], [5])
        assert not engine.is_failing
        for kind in ("nan", RuntimeError, "nan"):
            plant(kind)
            assert await fails([BAD])
        assert engine.is_failing
        samples = engine._metrics.failed_batches.collect()[0].samples
        assert samples[0].value == 12

    run(loaded, scenario)


def test_readiness_after_failed_batches(
    folder: Path, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Replica.rows

    def broken(self: Replica, batch: list[Piece]) -> list[torch.Tensor]:
        raise RuntimeError("planted")

    body = {"input": "the fox", "model": "nomic"}
    with in_thread(folder, any_model_name=True) as server:
        vectors = server.call("/v1/embeddings", body).vectors
        assert server.call("/health/ready").status == 200
        monkeypatch.setattr(Replica, "rows", broken)
        for _ in range(3):
            assert server.call("/v1/embeddings", body).status == 500
        assert server.service.engine is not None
        assert server.service.engine.is_failing
        for _ in range(2):
            answer = server.call("/health/ready")
            assert answer.status == 503
            assert answer.json["reason"] == "the last batches have failed"
        assert server.call("/health/live").status == 200
        monkeypatch.setattr(Replica, "rows", original)
        # nobody sends requests to a server that is not ready: it finds out by itself
        assert server.call("/health/ready").status == 200
        np.testing.assert_array_equal(server.call("/v1/embeddings", body).vectors, vectors)
        # a text that always fails does not make a server unready
        plant(RuntimeError)
        (model,) = server.service.models
        bad = [[*model.tokenizer.prefix, BAD, *model.tokenizer.suffix]]
        for _ in range(4):
            assert server.call("/v1/embeddings", body | {"input": bad}).status == 500
        assert server.service.engine.is_failing
        assert server.call("/health/ready").status == 200


def test_a_stuck_batch(folder: Path, gate: Gate) -> None:
    gate.opened.set()
    with in_thread(folder, any_model_name=True, stuck_seconds=0.05) as server:
        engine = server.service.engine
        assert engine is not None
        assert engine.busy_seconds() == 0.0
        assert server.call("/health/live").json == {"alive": True}
        gate.opened.clear()
        thread = threading.Thread(
            target=server.call, args=("/v1/embeddings", {"input": "the fox", "model": "a"})
        )
        thread.start()
        wait_until(lambda: engine.busy_seconds() > 0.05)
        first = engine.busy_seconds()
        assert server.call("/health/live").status == 503
        assert first < engine.busy_seconds() < 1000
        gate.opened.set()
        thread.join(60)
        assert not thread.is_alive()
        wait_until(lambda: engine.busy_seconds() == 0.0)
        assert server.call("/health/live").status == 200


def test_a_thread_that_dies_is_seen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    with in_thread(folder, any_model_name=True) as server:
        engine = server.service.engine
        assert engine is not None

        def broken(*_: Any) -> None:
            raise SystemExit

        monkeypatch.setattr(engine, "_record", broken)
        reply = server.call(
            "/v1/embeddings", {"input": "a", "model": "a"}, headers={"x-request-timeout-ms": "500"}
        )
        assert reply.status == 503
        assert engine.busy_seconds() == math.inf
        assert server.call("/health/live").status == 503


def test_what_is_cancelled_is_not_computed(loaded: Loaded, gate: Gate) -> None:
    async def scenario(engine: Engine) -> None:
        jobs = [job(*([[number + 5] * 100] * 4)) for number in range(3)]
        futures = [engine.submit(one) for one in jobs]
        await gate.wait()
        assert engine.scheduler.waiting_texts == 11
        futures[0].cancel()
        futures[1].cancel()
        futures[1].cancel()
        await asyncio.sleep(0)
        assert engine.scheduler.waiting_texts == 4
        assert engine.scheduler.waiting_tokens == 4 * 102
        gate.opened.set()
        await futures[2]
        computed = [one for batch in gate.batches for one, _ in batch]
        assert [computed.count(one) for one in jobs] == [1, 0, 4]
        assert not engine._futures
        assert engine.scheduler.waiting_tokens == 0

    run(loaded, scenario)


def test_what_is_cancelled_on_its_way_to_a_batch_is_not_computed(
    loaded: Loaded, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate.opened.set()

    async def scenario(engine: Engine) -> None:
        first, second = job([5]), job([6])
        take = engine.scheduler.take

        def late(budgets: Any) -> list[Piece] | None:
            batch = take(budgets)
            engine.scheduler.drop(first)
            return batch

        monkeypatch.setattr(engine.scheduler, "take", late)
        await engine.submit(job([7]))  # the thread was in the scheduler's own `take`
        future = engine.submit(first)
        await engine.submit(second)
        assert first not in [one for batch in gate.batches for one, _ in batch]
        assert not future.done()
        future.cancel()

    run(loaded, scenario)


def test_a_query_is_in_the_batch_after_it_arrives(loaded: Loaded, gate: Gate) -> None:
    async def scenario(engine: Engine) -> None:
        bulk = job(*([[5] * 60] * 64))
        futures = [engine.submit(bulk)]
        await gate.wait()
        query = job([7, 8, 9])
        futures.append(engine.submit(query))
        gate.opened.set()
        await futures[1]
        assert not futures[0].done()
        assert query in [one for one, _ in gate.batches[1]]
        await futures[0]

    run(loaded, scenario)


def test_devices_compute_at_the_same_time(folder: Path, gate: Gate) -> None:
    both = load_models(folder, devices=("cpu", "cpu"))

    async def scenario(engine: Engine) -> None:
        future = engine.submit(job(*([[5] * 100] * 4)))
        await gate.wait()
        await gate.wait()  # while the first one is held
        engine.rate = 51.0
        assert engine.scheduler.waiting_tokens == 2 * 102
        assert engine.seconds_ahead() == 2.0  # of two devices
        gate.opened.set()
        rows = await future
        assert same_rows(rows, [rows[0]] * 4)

    run(both, scenario)


def test_the_rate_and_the_metrics_of_batches(loaded: Loaded) -> None:
    async def scenario(engine: Engine) -> None:
        assert engine.seconds_ahead() == 0.0
        engine.scheduler.add(job([5] * 8))
        while engine.scheduler.waiting_texts or engine.busy_seconds():
            await asyncio.sleep(0.001)

    engine, _ = make_engine(loaded)
    batch = [Piece(job([5] * 8), 0)] * 3
    engine._measure(batch, 0.5)
    assert engine.rate == 60.0
    engine._measure(batch, 0.05)
    assert engine.rate == pytest.approx(0.9 * 60 + 0.1 * 600)
    found = {
        sample.name: sample.value
        for metric in engine._metrics.registry.collect()
        for sample in metric.samples
        if sample.name.endswith(("_sum", "_count"))
    }
    assert found["nomicbert_batch_tokens_sum"] == 60
    assert found["nomicbert_batch_texts_sum"] == 6
    assert found["nomicbert_batch_seconds_sum"] == pytest.approx(0.55)
    assert found["nomicbert_batch_seconds_count"] == 2
    run(loaded, scenario)


def test_a_job_without_texts(loaded: Loaded) -> None:
    async def scenario(engine: Engine) -> None:
        assert await engine.submit(job()) == []
        for policy in ("end", "chunk", "mean"):
            assert await rows_of(engine, want(loaded.models[0], [], on_long=policy)) == []
        assert not engine._futures

    run(loaded, scenario)


def test_an_engine_whose_loop_is_closed_ends(loaded: Loaded, gate: Gate) -> None:
    engine, _ = make_engine(loaded)

    async def main() -> None:
        engine.start(asyncio.get_running_loop())
        engine.submit(job([5])).cancel()
        engine.submit(job([6]))
        await gate.wait()

    asyncio.run(main())
    gate.opened.set()
    engine.stop()
    assert not any(thread.is_alive() for thread in engine._threads)


def test_a_stuck_batch_does_not_keep_the_process(
    loaded: Loaded, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "STOP", 0.01)
    engine, _ = make_engine(loaded)

    async def main() -> None:
        engine.start(asyncio.get_running_loop())
        engine.submit(job([5]))
        await gate.wait()
        engine.stop()

    asyncio.run(main())
    (thread,) = engine._threads
    assert thread.is_alive()
    assert thread.daemon
    gate.opened.set()
    thread.join(60)
    assert not thread.is_alive()


PROMPTS = ("", "search_query: ", "classification: ")


def request(rng: np.random.Generator, model: Any, texts: list[str]) -> tuple[Wanted, list[Any]]:
    """A random request, and what decides each of its rows."""
    finish = [
        Finish(), Finish(normalize=True), Finish(int(rng.integers(1, 5)) * 16), Finish(None, 24),
    ][rng.integers(4)]  # fmt: skip
    kind = ["end", "end", "end", "mean", "chunk", "hidden"][rng.integers(6)]
    hidden = kind == "hidden"
    wish = {
        "prompt": PROMPTS[rng.integers(3)],
        "finish": Finish() if hidden else finish,
        "on_long": "end" if hidden else kind,
        "max_length": 24 if kind in ("mean", "chunk") else 60,
        "hidden": hidden,
    }
    chosen = [texts[i] for i in rng.integers(0, len(texts), rng.choice([1, 1, 2, 5]))]
    return want(model, chosen, **wish), [(text, *wish.values()) for text in chosen]


@exact
@pytest.mark.parametrize("cache_bytes", [0, 1 << 18], ids=["no cache", "cache"])
@pytest.mark.filterwarnings("ignore:.*were longer than")
def test_2000_requests_64_at_once(
    folder: Path, loaded: Loaded, cache_bytes: int, seed: int
) -> None:
    rng = np.random.default_rng([seed, cache_bytes])
    (model,) = loaded.models
    texts = [
        *SENTENCES, "",
        *(" ".join(rng.choice(WORDS, int(length))) for length in rng.integers(1, 70, 33)),
    ]  # fmt: skip
    requests = [request(rng, model, texts) for _ in range(2000)]
    found: list[Any] = [None] * len(requests)

    async def scenario(engine: Engine) -> None:
        numbers = iter(range(len(requests)))

        async def client() -> None:
            for number in numbers:
                found[number] = await rows_of(engine, requests[number][0])

        await asyncio.gather(*(client() for _ in range(64)))
        assert not engine._futures
        assert engine.scheduler.waiting_texts == engine.scheduler.waiting_tokens == 0
        if cache_bytes:
            assert engine._cache.hits > 1000
            assert 0.9 * cache_bytes < engine._cache.bytes <= cache_bytes

    run(loaded, scenario, cache_bytes)
    embedder, alone = Embedder(folder), {}
    for rows, (_, keys) in zip(found, requests, strict=True):
        assert len(rows) == len(keys)
        for row, key in zip(rows, keys, strict=True):
            if key not in alone:
                text, prompt, finish, policy, length, hidden = key
                alone[key] = embedder.encode(
                    [text], prompt=prompt, max_length=length, truncate=policy,
                    matryoshka_dim=finish.matryoshka_dim, truncate_dim=finish.truncate_dim,
                    normalize_embeddings=finish.normalize, convert_to_numpy=False,
                    output_value="token_embeddings" if hidden else "sentence_embedding",
                )[0]  # fmt: skip
            assert torch.equal(row, alone[key]), key


def test_jobs_are_made_of_requests(loaded: Loaded) -> None:
    """What `tokenise` makes waits shortest first, so that the longest is taken first."""
    made = tokenise(want(loaded.models[0], ["fox " * 9, "a", "fox " * 5])).job
    assert made.waiting == [1, 2, 0]
    assert made.missing == 3
