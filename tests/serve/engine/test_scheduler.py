"""The order of batches: against a slow form of it in plain lists, and under threads."""

from __future__ import annotations

import gc
import threading
import weakref

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nomicbert.serve.engine import scheduler as scheduler_module
from nomicbert.serve.engine.jobs import Group, Job, Piece
from nomicbert.serve.engine.scheduler import TRIES, Scheduler

PATIENCE = 10.0
BUDGETS = (100, 60)
GROUPS = [Group(0), Group(1), Group(0, skipped=3), Group(0, hidden=True)]


class Clock:
    """A clock that a test sets, in the place of `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(scheduler_module, "time", found)
    return found


def job(*lengths: int, group: Group = GROUPS[0]) -> Job:
    return Job(group, [[7] * length for length in lengths], None)


class Watched(list[list[int]]):
    """Pieces that can be referred to weakly."""


def waiting(scheduler: Scheduler, *jobs: Job) -> None:
    for one in jobs:
        scheduler.add(one)


def lengths(batch: list[Piece] | None) -> list[int]:
    assert batch is not None
    return [len(piece.ids) for piece in batch]


def owners(batch: list[Piece] | None) -> list[Job]:
    assert batch is not None
    return [piece.job for piece in batch]


def test_a_query_is_in_the_batch_after_it_arrives() -> None:
    scheduler = Scheduler()
    bulk, other = job(*[50] * 64), job(*[50] * 64)
    waiting(scheduler, bulk, other)
    for _ in range(5):
        scheduler.take(BUDGETS)
    query = job(9)
    scheduler.add(query)
    batch = scheduler.take(BUDGETS)
    assert query in owners(batch)
    assert sum(lengths(batch)) > 9  # the rest of the batch is not wasted
    # both jobs of many texts advance at the same pace
    for _ in range(20):
        scheduler.take(BUDGETS)
    assert abs(bulk.served - other.served) <= 50


def test_the_budget_and_a_longer_text() -> None:
    scheduler = Scheduler()
    waiting(scheduler, job(30, 150, 40, 30), job(90))
    # the longest of the first one, alone; then what fits, longest first
    assert lengths(scheduler.take(BUDGETS)) == [150]
    assert lengths(scheduler.take(BUDGETS)) == [90]
    assert lengths(scheduler.take(BUDGETS)) == [40, 30, 30]
    # what does not fit does not keep others out
    waiting(scheduler, job(60), job(50), job(40))
    assert lengths(scheduler.take(BUDGETS)) == [60, 40]
    assert lengths(scheduler.take(BUDGETS)) == [50]
    # the budget is the model's
    waiting(scheduler, job(40, 40, group=Group(1)))
    assert lengths(scheduler.take(BUDGETS)) == [40]


def test_groups_do_not_share_a_batch() -> None:
    scheduler = Scheduler()
    jobs = [job(10, 10, group=group) for group in GROUPS]
    waiting(scheduler, *jobs)
    batches = []
    while scheduler.waiting_texts:
        batches.append(scheduler.take(BUDGETS))
    assert [[one.group for one in owners(batch)] for batch in batches] == [
        [group, group] for group in GROUPS
    ]


def test_a_starved_job_goes_first_exactly_when_its_patience_ends(clock: Clock) -> None:
    scheduler = Scheduler(PATIENCE)
    bulk = job(*[50] * 9)
    scheduler.add(bulk)
    assert owners(scheduler.take(BUDGETS)) == [bulk, bulk]  # at 1000

    def queries() -> list[Job]:
        found = [job(60), job(60)]
        waiting(scheduler, *found)
        return found

    first = queries()
    clock.now += PATIENCE
    assert (bulk.arrived, bulk.started, first[0].started) == (1000.0, 1000.0, None)
    assert owners(scheduler.take(BUDGETS)) == [first[0]]  # not longer than its patience
    clock.now += 0.001
    assert first[0].started == 1000.0 + PATIENCE
    assert owners(scheduler.take(BUDGETS)) == [bulk, bulk]  # the query of 60 has no room
    assert next(iter(scheduler._turns)) is first[1]  # that query
    assert owners(scheduler.take(BUDGETS)) == [first[1]]
    # it has been served: the next ones pass it again
    assert bulk.started == 1000.0  # the first time counts
    second = queries()
    assert owners(scheduler.take(BUDGETS)) == [second[0]]
    assert owners(scheduler.take(BUDGETS)) == [second[1]]
    assert owners(scheduler.take(BUDGETS)) == [bulk, bulk]


def test_service_out_of_turn_counts_in_the_choice_of_a_group(clock: Clock) -> None:
    scheduler = Scheduler(PATIENCE)
    starved, other = job(100, 100, group=GROUPS[2]), job(10, 10)
    waiting(scheduler, starved)
    clock.now += PATIENCE + 1
    waiting(scheduler, other)
    assert owners(scheduler.take(BUDGETS)) == [starved]
    assert owners(scheduler.take(BUDGETS)) == [other, other]  # 0 tokens so far, the other 100


def test_a_dropped_job_leaves_no_trace() -> None:
    scheduler = Scheduler()
    kept = job(20, 20)
    scheduler.add(kept)
    gone = [Job(GROUPS[i % 2], Watched([[7] * 30] * 3), None) for i in range(500)]
    waiting(scheduler, *gone)
    taken = scheduler.take((10, 10))
    assert owners(taken) == [kept]
    for one in gone:
        scheduler.drop(one)
        scheduler.drop(one)  # a second time changes nothing
    assert (scheduler.waiting_tokens, scheduler.waiting_texts) == (20, 1)
    watched = [weakref.ref(one.pieces) for one in gone]
    del gone, one
    gc.collect()
    alive = sum(ref() is not None for ref in watched)
    assert alive <= 2 * (2 * 1 + 16)  # per group
    assert owners(scheduler.take(BUDGETS)) == [kept]
    gc.collect()
    assert not any(ref() is not None for ref in watched)  # none at all while nothing waits
    lone = Job(GROUPS[0], Watched([[7]]), None)
    scheduler.add(lone)
    scheduler.drop(lone)
    watched = [weakref.ref(lone.pieces)]
    del lone
    gc.collect()
    assert watched[0]() is None


def test_close_wakes_every_thread() -> None:
    scheduler = Scheduler()
    found: list[object] = []
    threads = [
        threading.Thread(target=lambda: found.append(scheduler.take(BUDGETS)), daemon=True)
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    scheduler.add(job(100))
    while not found:
        threading.Event().wait(0.001)
    assert scheduler.waiting_texts == 0
    scheduler.close()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert [batch for batch in found if batch is None] == [None] * 3
    scheduler.add(job(5))
    assert scheduler.take(BUDGETS) is None


def test_several_threads_take_each_piece_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scheduler = Scheduler()
    batches: list[list[Piece]] = []

    def work() -> None:
        while (batch := scheduler.take(BUDGETS)) is not None:
            batches.append(batch)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    jobs = [
        job(*rng.integers(1, 130, rng.integers(1, 40)), group=GROUPS[rng.integers(len(GROUPS))])
        for _ in range(400)
    ]
    dropped = {id(one) for one in jobs if rng.random() < 0.2}
    for one in jobs:
        scheduler.add(one)
        if id(one) in dropped:
            scheduler.drop(one)
    while scheduler.waiting_texts:
        threading.Event().wait(0.001)
    scheduler.close()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    seen = [(id(piece.job), piece.number) for batch in batches for piece in batch]
    assert len(set(seen)) == len(seen)
    wanted = {
        (id(one), i) for one in jobs if id(one) not in dropped for i in range(len(one.pieces))
    }
    assert wanted <= set(seen)
    assert scheduler.waiting_tokens == 0
    for batch in batches:
        check_batch(batch)


def check_batch(batch: list[Piece]) -> None:
    groups = {piece.job.group for piece in batch}
    assert len(groups) == 1
    found = lengths(batch)
    assert found == sorted(found, reverse=True)
    assert len(found) == 1 or sum(found) <= BUDGETS[groups.pop().model]


class Slow:
    """The same order in plain lists."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.waiting: dict[Job, list[int]] = {}
        self.served: dict[Job, int] = {}
        self.since: dict[Job, tuple[float, int]] = {}  # last service, and its number
        self.turn = 0

    def add(self, one: Job, now: float) -> None:
        self.jobs.append(one)
        self.waiting[one] = sorted(range(len(one.pieces)), key=lambda i: len(one.pieces[i]))
        self.served[one] = 0
        self.see(one, now)

    def see(self, one: Job, now: float) -> None:
        self.turn += 1
        self.since[one] = now, self.turn

    def take(self, now: float) -> list[tuple[Job, int]]:
        found: list[tuple[Job, int]] = []
        live = [one for one in self.jobs if self.waiting[one]]
        oldest = min(live, key=lambda one: self.since[one])
        least = min(live, key=lambda one: self.served[one])  # the earliest among equals
        starved = now - self.since[oldest][0] > PATIENCE
        group = (oldest if starved else least).group
        total = self.move(oldest, found, now) if starved else 0
        passed: set[Job] = set()
        while total < BUDGETS[group.model] and len(passed) < TRIES:
            live = [
                one
                for one in self.jobs
                if self.waiting[one] and one.group == group and one not in passed
            ]
            if not live:
                break
            one = min(live, key=lambda one: self.served[one])
            longest = len(one.pieces[self.waiting[one][-1]])
            if found and total + longest > BUDGETS[group.model]:
                passed.add(one)
            else:
                total += self.move(one, found, now)
        return found

    def move(self, one: Job, found: list[tuple[Job, int]], now: float) -> int:
        number = self.waiting[one].pop()
        found.append((one, number))
        size = len(one.pieces[number])
        self.served[one] += max(size, 1)
        self.see(one, now)
        return size


class Orders(RuleBasedStateMachine):
    """Any sequence of arrivals, batches, drops and passing time."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.before = scheduler_module.time
        scheduler_module.time = self.clock
        self.scheduler = Scheduler(PATIENCE)
        self.slow = Slow()

    def teardown(self) -> None:
        try:
            while self.scheduler.waiting_texts:
                self.take()
            assert not any(self.slow.waiting.values())  # all was computed
            assert not self.scheduler._heaps
        finally:
            scheduler_module.time = self.before

    @rule(
        sizes=st.lists(st.sampled_from([0, 1, 9, 20, 33, 60, 100, 140]), min_size=1, max_size=6),
        group=st.sampled_from(GROUPS),
    )
    def add(self, sizes: list[int], group: Group) -> None:
        one = job(*sizes, group=group)
        self.slow.add(one, self.clock.now)
        self.scheduler.add(one)

    @rule(seconds=st.sampled_from([0.5, 4.0, PATIENCE, PATIENCE + 0.5]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @precondition(lambda self: self.scheduler.waiting_texts)
    @rule()
    def take(self) -> None:
        wanted = self.slow.take(self.clock.now)
        batch = self.scheduler.take(BUDGETS)
        assert batch is not None
        check_batch(batch)
        assert {(id(one), number) for one, number in wanted} == {
            (id(piece.job), piece.number) for piece in batch
        }
        assert len(wanted) == len(batch)

    @precondition(lambda self: self.slow.jobs)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        one = self.slow.jobs[data.draw(st.integers(0, len(self.slow.jobs) - 1))]
        self.scheduler.drop(one)
        self.slow.waiting[one] = []

    @invariant()
    def counts(self) -> None:
        left = [(one, i) for one, numbers in self.slow.waiting.items() for i in numbers]
        assert self.scheduler.waiting_texts == len(left)
        assert self.scheduler.waiting_tokens == sum(len(one.pieces[i]) for one, i in left)
        live = {one for one, _ in left}
        since = [self.slow.since[one] for one in live]
        turns = list(self.scheduler._turns.values())
        assert turns[:1] == ([min(since)[0]] if since else [])
        entries = [entry[2] for heap in self.scheduler._heaps.values() for entry in heap]
        assert len(entries) == len({id(one) for one in entries})  # once per job
        assert live <= set(entries)


TestOrders = Orders.TestCase
TestOrders.settings = hypothesis.settings(max_examples=60, stateful_step_count=40, deadline=None)
