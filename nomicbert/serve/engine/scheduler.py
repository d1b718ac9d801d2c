"""Which texts share the next batch: those of the requests that got least so far.

Where in the flow: between `engine.submit` (event loop) and the compute threads. A batch holds texts
of several requests, up to a budget of tokens. The request with the fewest tokens computed so far
goes first, so a single query passes a request of thousands of texts at the next batch. A request
that got nothing for `patience` seconds goes before all others, so none starves.

Within a request long texts go first: texts of like length share a batch, and attention computes
those together.
"""

import heapq
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence

from nomicbert.serve.engine.jobs import Group, Job, Piece

# Requests that are tried when the next text does not fit into the rest of a batch.
TRIES = 8

# Tokens served, arrival, job.
Entry = tuple[int, int, Job]


class Scheduler:
    """The waiting jobs of all models. Thread-safe."""

    def __init__(self, patience: float = 10.0) -> None:
        """`patience`: seconds without service after which a job goes first."""
        self.patience = patience
        self._changed = threading.Condition()
        # per group a heap of its jobs; a job is in it once while pieces wait
        self._heaps: dict[Group, list[Entry]] = {}
        # the same jobs, the one that was served longest ago first, with that time
        self._turns: OrderedDict[Job, float] = OrderedDict()
        self._arrivals = 0
        self._closed = False
        self.waiting_tokens = 0
        self.waiting_texts = 0

    def add(self, job: Job) -> None:
        """Queue a job that has waiting pieces."""
        with self._changed:
            self._arrivals += 1
            job.arrival, job.arrived = self._arrivals, time.monotonic()
            self._turns[job] = job.arrived
            heap = self._heaps.setdefault(job.group, [])
            heapq.heappush(heap, (job.served, job.arrival, job))
            self._count(job, 1)
            self._changed.notify()

    def drop(self, job: Job) -> None:
        """Forget what waits of a job; a batch that already has pieces of it is computed."""
        with self._changed:
            job.dropped = True
            if self._turns.pop(job, None) is not None:
                self._count(job, -1)
                job.waiting.clear()
                # an entry without waiting pieces is skipped when it comes up; under load that
                # may never happen, so they are swept before they are the majority
                heap = self._heaps[job.group]
                if len(heap) > 2 * len(self._turns) + 16:
                    heap[:] = [entry for entry in heap if entry[2].waiting]
                    heapq.heapify(heap)
            self._clear_if_idle()

    def close(self) -> None:
        """Make `take` return None from now on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def take(self, budgets: Sequence[int]) -> list[Piece] | None:
        """Wait for work; return the pieces of the next batch, the longest first.

        Args:
            budgets: tokens per batch of each model. A longer piece is a batch of its own.

        Returns: pieces of one group; None after `close`.
        """
        with self._changed:
            while not self._turns and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            batch = self._fill(budgets)
            if self._turns:
                self._changed.notify()  # another compute thread may take what is left
        batch.sort(key=lambda piece: -len(piece.ids))
        return batch

    def _fill(self, budgets: Sequence[int]) -> list[Piece]:
        now = time.monotonic()
        oldest, since = next(iter(self._turns.items()))
        batch: list[Piece] = []
        tokens = 0
        if now - since > self.patience:
            heap = self._heaps[oldest.group]
            budget = budgets[oldest.group.model]
            tokens += self._move(oldest, batch, now)
        else:
            heap = self._heaps[self._next_group()]
            budget = budgets[heap[0][2].group.model]
        passed: list[Entry] = []
        while tokens < budget and len(passed) < TRIES and (entry := _first(heap)) is not None:
            heapq.heappop(heap)
            job = entry[2]
            if batch and tokens + len(job.pieces[job.waiting[-1]]) > budget:
                passed.append(entry)
                continue
            tokens += self._move(job, batch, now)
            if job.waiting:
                heapq.heappush(heap, (job.served, job.arrival, job))
        for entry in passed:
            heapq.heappush(heap, entry)
        self._clear_if_idle()
        return batch

    def _clear_if_idle(self) -> None:
        """Release the jobs that entries without waiting pieces refer to."""
        if not self._turns:
            self._heaps.clear()

    def _next_group(self) -> Group:
        """The group of the least served job."""
        best: tuple[tuple[int, int], Group] | None = None
        for group in [*self._heaps]:
            entry = _first(self._heaps[group])
            if entry is None:
                del self._heaps[group]
            elif best is None or entry[:2] < best[0]:
                best = entry[:2], group
        assert best is not None, "a job waits, but is in no heap"
        return best[1]

    def _move(self, job: Job, batch: list[Piece], now: float) -> int:
        """Move the longest waiting piece of a job to the batch; return its tokens."""
        index = job.waiting.pop()
        tokens = len(job.pieces[index])
        batch.append(Piece(job, index))
        job.served += max(tokens, 1)
        if job.started is None:
            job.started = now
        self.waiting_tokens -= tokens
        self.waiting_texts -= 1
        if job.waiting:
            self._turns[job] = now
            self._turns.move_to_end(job)
        else:
            del self._turns[job]
        return tokens

    def _count(self, job: Job, sign: int) -> None:
        self.waiting_tokens += sign * sum(len(job.pieces[i]) for i in job.waiting)
        self.waiting_texts += sign * len(job.waiting)


def _first(heap: list[Entry]) -> Entry | None:
    """The entry of the least served job, which stays in the heap; None if nothing waits.

    Entries of jobs that wait no more are removed, those of jobs served out of turn renewed.
    """
    while heap:
        served, arrival, job = heap[0]
        if not job.waiting:
            heapq.heappop(heap)
        elif job.served != served:
            heapq.heapreplace(heap, (job.served, arrival, job))
        else:
            return heap[0]
    return None
