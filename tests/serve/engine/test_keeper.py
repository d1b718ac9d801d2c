"""When a worker is started again, and what those who ask meanwhile get. The processes are no real
ones: `test_isolated` has those."""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from nomicbert.errors import CheckpointError, WorkerError
from nomicbert.serve.engine import keeper as keeper_module
from nomicbert.serve.engine.cache import VectorCache
from nomicbert.serve.engine.engine import Engine
from nomicbert.serve.engine.keeper import Keeper
from nomicbert.serve.engine.process import RemoteError, WorkerDied, WorkerStuck
from nomicbert.serve.engine.workers import Workers
from nomicbert.serve.http.problems import Problem, Reason
from nomicbert.serve.settings import ServeSettings
from tests.support.serving import wait_until

PATIENCE = 60
SETTINGS = ServeSettings(models=("a",), devices=("cpu",))


class Plan:
    """What the next processes do: "ready", or an error that their start raises."""

    def __init__(self) -> None:
        self.next: list[Any] = []
        self.made: list[Process] = []
        self.hold = threading.Event()  # starts wait for it
        self.hold.set()

    def __call__(self, settings: ServeSettings) -> Process:
        outcome = self.next.pop(0) if self.next else "ready"
        if isinstance(outcome, OSError):
            raise outcome
        process = Process(self, settings, outcome)
        self.made.append(process)
        return process


class Process:
    numbers = itertools.count(1000)

    def __init__(self, plan: Plan, settings: ServeSettings, outcome: Any) -> None:
        self.settings = settings
        self.pid = next(self.numbers)
        self.turn = threading.Lock()
        self.answered = 0
        self._plan = plan
        self._outcome = outcome
        self.limit: float | None = -1.0
        self.ended = threading.Event()

    def facts(self, seconds: float | None) -> tuple[str, str]:
        self.limit = seconds
        assert self._plan.hold.wait(PATIENCE)
        if self.ended.is_set():
            raise WorkerDied("killed while it was loading")
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return "facts", "vectors"

    def work(self) -> int:
        if self.ended.is_set():
            raise WorkerDied("planted")
        self.answered += 1
        return self.pid

    def kill(self) -> None:
        self.ended.set()

    def wait(self) -> str:
        assert self.ended.wait(PATIENCE)
        return "killed"


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Iterator[Plan]:
    found = Plan()
    monkeypatch.setattr(keeper_module, "WorkerProcess", found)
    monkeypatch.setattr(keeper_module, "PAUSE", 0.001)
    monkeypatch.setattr(keeper_module, "LONGEST", 0.004)
    yield found
    found.hold.set()


class Kept:
    """Keepers of several devices; a context manager."""

    def __init__(self, count: int = 1, check: Any = lambda *_: None) -> None:
        self.changed = threading.Condition()
        self.keepers = [Keeper(SETTINGS, check, self.changed) for _ in range(count)]
        self.workers = Workers(self.keepers, self.changed)

    def __enter__(self) -> Kept:
        for keeper in self.keepers:
            keeper.start()
            keeper.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.workers.close()
        self.workers.stop(PATIENCE)
        assert not any(keeper._thread.is_alive() for keeper in self.keepers)


def ask(keeper: Keeper) -> int:
    return keeper.ask(lambda process: process.work())  # type: ignore[attr-defined]


def test_a_worker_that_ends_is_followed_by_another(plan: Plan) -> None:
    with Kept() as kept:
        (keeper,) = kept.keepers
        assert ask(keeper) == keeper.pid == plan.made[0].pid
        assert (keeper.restarts, keeper.dead_seconds(), kept.workers.problem) == (0, 0, "")
        for restarts in (1, 2):
            plan.hold.clear()
            plan.made[-1].kill()  # nobody asks: it is noticed all the same
            wait_until(lambda: not keeper.is_ready)
            assert "started again" in kept.workers.problem
            wait_until(lambda: kept.workers.dead_seconds() > 0)
            plan.hold.set()
            wait_until(lambda: keeper.is_ready)
            assert ask(keeper) == plan.made[-1].pid
            assert (keeper.restarts, kept.workers.restarts) == (restarts, restarts)
            assert (keeper.dead_seconds(), kept.workers.problem) == (0, "")
    assert plan.made[-1].ended.is_set()
    assert len(plan.made) == 3


def test_the_tokens_per_batch_are_measured_once(plan: Plan) -> None:
    with Kept() as kept:
        plan.made[0].kill()
        wait_until(lambda: len(plan.made) == 2 and kept.keepers[0].is_ready)
    assert [process.settings.max_batch_tokens for process in plan.made] == [None, 1]


@pytest.mark.parametrize("error", [WorkerDied, WorkerStuck])
def test_a_worker_that_fails_while_it_works_is_killed(plan: Plan, error: Any) -> None:
    def fail(process: Process) -> None:
        raise error("planted")

    with Kept() as kept:
        (keeper,) = kept.keepers
        with pytest.raises(error, match="planted"):
            keeper.ask(fail)  # type: ignore[arg-type]
        assert plan.made[0].ended.is_set()
        assert ask(keeper) == plan.made[1].pid  # waits for it

        def other(_: object) -> None:
            raise RuntimeError("of the computation")

        with pytest.raises(RuntimeError, match="of the computation"):
            keeper.ask(other)
        assert ask(keeper) == plan.made[1].pid


def test_who_waits_for_a_turn_gets_the_next_worker(plan: Plan) -> None:
    """And is not told that a worker died which had never heard of its work."""
    inside, go = threading.Event(), threading.Event()
    found: list[Any] = []

    def first(_: object) -> None:
        inside.set()
        assert go.wait(PATIENCE)
        raise WorkerDied("planted")

    def run(work: Any) -> None:
        try:
            found.append(kept.keepers[0].ask(work))
        except WorkerDied as error:
            found.append(error)

    with Kept() as kept:
        threads = [threading.Thread(target=run, args=(first,))]
        threads[0].start()
        assert inside.wait(PATIENCE)
        threads.append(threading.Thread(target=run, args=(Process.work,)))
        threads[1].start()
        go.set()
        for thread in threads:
            thread.join(PATIENCE)
        assert str(found[0]) == "planted"
        assert found[1] == plan.made[1].pid


def test_the_first_start_fails(plan: Plan) -> None:
    for error in (CheckpointError("planted"), OSError("no more processes")):
        plan.next = [error]
        kept = Kept()
        with pytest.raises(type(error), match=str(error)):
            kept.__enter__()
        kept.__exit__()
    assert [process.ended.is_set() for process in plan.made] == [True]


def test_a_first_worker_that_is_not_what_is_expected(plan: Plan) -> None:
    def check(*_: object) -> None:
        raise WorkerError("another vector")

    kept = Kept(check=check)
    with pytest.raises(WorkerError, match="another vector"):
        kept.__enter__()
    kept.__exit__()
    assert plan.made[0].ended.is_set()


def test_a_worker_that_cannot_be_started_again(plan: Plan) -> None:
    with Kept() as kept:
        (keeper,) = kept.keepers
        plan.next = [CheckpointError("gone"), OSError("no more processes")] * 10_000
        waiting = threading.Thread(target=lambda: refused(keeper))
        plan.hold.clear()
        plan.made[0].kill()
        wait_until(lambda: len(plan.made) == 2)
        waiting.start()  # what has begun to wait, and what comes later
        plan.hold.set()
        waiting.join(PATIENCE)
        assert not waiting.is_alive()
        refused(keeper)
        assert keeper.restarts >= 3
        plan.next = []  # it has gone on all the same
        wait_until(lambda: keeper.is_ready)
        assert not keeper.is_down
        assert ask(keeper) == plan.made[-1].pid


def refused(keeper: Keeper) -> Problem:
    with pytest.raises(Problem) as caught:
        ask(keeper)
    assert caught.value.reason is Reason.LOADING
    assert caught.value.retry_after is not None
    return caught.value


def test_pauses_between_starts(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    own = threading.Condition.wait_for

    def wait_for(condition: Any, predicate: Any, timeout: float | None = None) -> Any:
        if timeout is not None:
            pauses.append(timeout)
        return own(condition, predicate, timeout)

    monkeypatch.setattr(threading.Condition, "wait_for", wait_for)
    with Kept() as kept:
        (keeper,) = kept.keepers

        def end(answers: int) -> None:
            count = len(plan.made)
            for _ in range(answers):
                ask(keeper)
            wait_until(lambda: keeper.is_ready)
            plan.made[-1].kill()
            wait_until(lambda: len(plan.made) == count + 1 and keeper.is_ready)

        for answers in (1, 0, 0, 0, 0, 0, 2, 0):
            end(answers)
    assert pauses == [0, 0.001, 0.002, 0.004, 0.004, 0.004, 0, 0.001]


def test_another_device_has_the_work_meanwhile(plan: Plan) -> None:
    with Kept(2) as kept:
        first, second = kept.keepers
        for number in (0, 1):
            kept.workers.await_ready(number)
        plan.hold.clear()
        plan.next = [CheckpointError("gone")] * 100
        plan.made[0].kill()
        wait_until(lambda: not first.is_ready)
        passed = threading.Event()

        def wait() -> None:
            kept.workers.await_ready(0)
            passed.set()

        thread = threading.Thread(target=wait)
        thread.start()
        kept.workers.await_ready(1)
        plan.hold.set()
        wait_until(lambda: first.is_down)
        assert not passed.is_set()  # what waits is the other one's
        assert second.is_ready
        plan.made[1].kill()
        thread.join(PATIENCE)
        assert passed.is_set()  # both are down: what waits is refused
        refused(first)
        refused(second)
        plan.next = []
        wait_until(lambda: first.is_ready and second.is_ready)


def test_the_end_of_the_server(plan: Plan) -> None:
    found: list[Any] = []

    def run() -> None:
        try:
            ask(kept.keepers[0])
        except Problem as problem:
            found.append(problem.reason)

    with Kept() as kept:
        plan.hold.clear()
        plan.made[0].kill()
        wait_until(lambda: len(plan.made) == 2)
        thread = threading.Thread(target=run)
        thread.start()
        kept.workers.close()
        thread.join(PATIENCE)
        assert found == [Reason.STOPPING]
        kept.workers.await_ready(0)
        plan.made[1].kill()  # the process would see the end of its connection
        plan.hold.set()
    assert len(plan.made) == 2
    assert plan.made[1].ended.is_set()


def test_a_keeper_that_has_died_is_seen(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)

    def broken(process: Process) -> str:
        assert process.ended.wait(PATIENCE)
        raise SystemExit

    monkeypatch.setattr(Process, "wait", broken)
    with Kept() as kept:
        plan.made[0].kill()
        kept.keepers[0]._thread.join(PATIENCE)
        assert kept.workers.dead_seconds() == math.inf
        refused(kept.keepers[0])  # who asks must not wait for a worker that nobody starts


def test_a_bug_at_the_first_start_is_raised(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    found: list[BaseException] = []

    def check(*_: object) -> None:
        raise KeyError("planted")

    def enter() -> None:
        try:
            kept.__enter__()
        except KeyError as error:
            found.append(error)

    kept = Kept(check=check)
    thread = threading.Thread(target=enter, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert [str(error) for error in found] == ["'planted'"]
    kept.__exit__()
    assert plan.made[0].ended.is_set()


def test_a_worker_that_cannot_be_ended_is_left(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    ended, waits = threading.Event(), threading.Event()

    def wait(_: object) -> str:
        waits.set()
        assert ended.wait(PATIENCE)
        return "killed"

    monkeypatch.setattr(Process, "wait", wait)
    with Kept() as kept:
        assert waits.wait(PATIENCE)
        kept.workers.close()
        kept.workers.stop(0.01)
        assert plan.made[0].ended.is_set()
        assert kept.keepers[0]._thread.is_alive()
        ended.set()


class Clock:
    """In place of `time` in the keeper."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        fake = SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr(keeper_module, "time", fake)


@pytest.mark.parametrize(("seconds", "limit"), [(1.0, 60.0), (7.0, 70.0)])
def test_later_starts_have_a_limit(
    seconds: float, limit: float, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)

    def check(*_: object) -> None:
        clock.now += seconds

    with Kept(check=check) as kept:
        plan.next = [WorkerStuck("the worker was not ready")]
        plan.made[0].kill()
        wait_until(lambda: len(plan.made) == 3 and kept.keepers[0].is_ready)
    assert plan.made[1].ended.is_set()
    assert [process.limit for process in plan.made] == [None, limit, limit]


def test_the_time_without_an_answer(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is kept over the deaths of workers; an answer, or an error as one, ends it."""
    clock = Clock(monkeypatch)

    def failed(_: object) -> None:
        raise RemoteError("planted")

    def hangs(_: object) -> None:
        clock.now += 30
        inside.append(kept.workers.unanswered_seconds())
        raise WorkerStuck("planted")

    inside: list[float] = []
    with Kept(2) as kept:
        keeper = kept.keepers[1]
        for answer in (Process.work, failed):
            for _ in range(3):
                with pytest.raises(WorkerStuck):
                    keeper.ask(hangs)
                clock.now += 100  # nobody asks
                keeper.ask(Process.work, is_test=True)  # type: ignore[arg-type]
            assert kept.workers.unanswered_seconds() == 90
            assert kept.workers.dead_seconds() == 0
            with contextlib.suppress(RemoteError):
                keeper.ask(answer)  # type: ignore[arg-type]
            assert kept.workers.unanswered_seconds() == 0
        with pytest.raises(WorkerStuck):
            keeper.ask(hangs)
        wait_until(lambda: keeper.is_ready)
        keeper.unanswered.begin()  # another thread asks
        clock.now += 5
        assert kept.workers.unanswered_seconds() == 35
        kept.workers.close()
        plan.made[-1].kill()
        wait_until(lambda: not keeper.is_ready)
        with pytest.raises(Problem):
            ask(keeper)
        assert kept.workers.unanswered_seconds() == 0
    assert inside == [30, 60, 90] * 2 + [30]


def test_a_server_that_answers_nothing_is_busy(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a part of that time, as one text may take several times what a batch may."""
    clock = Clock(monkeypatch)
    metrics: Any = None
    with Kept() as kept:
        (keeper,) = kept.keepers
        engine = Engine([], [], VectorCache(0), metrics, workers=kept.workers)
        assert engine.busy_seconds() == 0

        def hangs(_: object) -> None:
            clock.now += 100
            raise WorkerStuck("planted")

        for busy in (20, 40, 60):
            with pytest.raises(WorkerStuck):
                keeper.ask(hangs)
            wait_until(lambda: keeper.is_ready)
            assert engine.busy_seconds() == busy
        ask(keeper)
        assert engine.busy_seconds() == 0
        plan.hold.clear()
        plan.made[-1].kill()
        wait_until(lambda: not keeper.is_ready)
        clock.now += 7
        assert engine.busy_seconds() == 7
        plan.hold.set()
