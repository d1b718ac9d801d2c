"""Jobs -> rows: one compute thread per device over all models.

Where in the flow: `service` submits a job on the event loop and awaits its future. A compute thread
takes whatever waits as soon as it is free, so batches grow with the load and nothing waits for a
batch to fill. A batch's finished jobs return to the event loop in one call.
"""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from nomicbert.serve.engine.cache import VectorCache, key_of
from nomicbert.serve.engine.compute import isolate
from nomicbert.serve.engine.jobs import Computes, Job, Piece, Rows
from nomicbert.serve.engine.scheduler import Scheduler
from nomicbert.serve.engine.workers import Workers
from nomicbert.serve.http.problems import Problem
from nomicbert.serve.metrics import Metrics

logger = logging.getLogger(__name__)

# Failed batches in a row after which the server is not ready.
FAILURES = 3
# Weight of the latest batch in the average rate.
LATEST = 0.1
# Seconds that `stop` waits for a batch, and for the ends of workers. What is stuck must not keep
# the process alive.
STOP = 10.0
# Share of the time without any answer of a worker that counts as the time of a stuck batch: one in
# so many. A single text that hangs takes three times --stuck-seconds, with others and alone twice,
# and the starts of workers in between; that is no reason to restart the server.
PATIENCE = 5


class Engine:
    """Computes jobs.

    Attributes:
        scheduler: the waiting jobs.
        budgets: tokens per batch of each model.
        rate: tokens per second of one compute thread, averaged over the latest batches.
        computed_seconds: time of all batches so far, of all threads together.
    """

    def __init__(
        self,
        replicas: Sequence[Sequence[Computes]],
        budgets: Sequence[int],
        cache: VectorCache,
        metrics: Metrics,
        threads: int | None = None,
        workers: Workers | None = None,
    ) -> None:
        """Nothing is computed before `start`.

        Args:
            replicas: per device a list of all models.
            budgets: tokens per batch of each model.
            cache: vectors of earlier requests.
            metrics: receives counts and times.
            threads: CPU threads of one compute thread, or None for torch's default.
            workers: processes that compute for the replicas, or None.
        """
        self.scheduler = Scheduler()
        self.budgets = budgets
        self.rate = 0.0
        self.computed_seconds = 0.0
        self._failures = [0] * len(replicas)
        self._replicas = replicas
        self._cache = cache
        self._metrics = metrics
        self._cpu_threads = threads
        self._workers = workers
        self._began: dict[int, float] = {}
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._futures: dict[Job, asyncio.Future[Rows]] = {}

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start one thread per device; results go to `loop`."""
        self._loop = loop
        for number, models in enumerate(self._replicas):
            thread = threading.Thread(
                target=self._run, args=(number, models), name=f"compute-{number}", daemon=True
            )
            thread.start()
            self._threads.append(thread)

    def stop(self, seconds: float = STOP) -> None:
        """End the threads after their current batch, or leave one that takes longer."""
        self.scheduler.close()
        if self._workers is not None:
            self._workers.close()
        end = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(end - time.monotonic(), 0.0))
        if self._workers is not None:
            self._workers.stop(STOP)

    @property
    def is_failing(self) -> bool:
        """Whether nothing but failures came lately from one of the devices."""
        return max(self._failures) >= FAILURES

    @property
    def problem(self) -> str:
        """Why not all devices compute now; "" if they do."""
        if self._workers is not None and (problem := self._workers.problem):
            return problem
        return "the last batches have failed" if self.is_failing else ""

    def seconds_ahead(self) -> float:
        """How long the waiting tokens will take, by the rate of the latest batches."""
        rate = self.rate * len(self._replicas)
        return self.scheduler.waiting_tokens / rate if rate else 0.0

    def submit(self, job: Job, *, use_cache: bool = True) -> "asyncio.Future[Rows]":
        """Queue a job, on the event loop; the future gets its rows or its error.

        Cancelling the future drops what has not been computed.
        """
        assert self._loop is not None, "the engine has not started"
        future: asyncio.Future[Rows] = self._loop.create_future()
        if use_cache and self._cache.limit and not job.group.hidden:
            self._look_up(job)
        if not job.missing and job.join is None:
            future.set_result(job.results)
            return future
        self._futures[job] = future
        future.add_done_callback(lambda _: self._forget(job))
        if job.missing:
            self.scheduler.add(job)
        else:
            self._loop.run_in_executor(None, self._finish_cached, job)
        return future

    def running_seconds(self) -> float:
        """How long the batch that takes longest has been running; inf if a thread has died."""
        if not all(thread.is_alive() for thread in self._threads):
            return math.inf
        now = time.monotonic()
        return max((now - began for began in self._began.copy().values()), default=0.0)

    def busy_seconds(self) -> float:
        """`running_seconds`, which the server compares with --stuck-seconds.

        A batch of a worker process does not take longer than it may. Here, how long one has been
        dead, or a part of the time for which it, and those before it, have answered nothing.
        """
        running = self.running_seconds()
        if self._workers is None or running == math.inf:
            return running
        unanswered = self._workers.unanswered_seconds() / PATIENCE
        return max(self._workers.dead_seconds(), unanswered)

    def _look_up(self, job: Job) -> None:
        waiting = []
        for index in job.waiting:
            piece = Piece(job, index)
            row = self._cache.get(key_of(job.group, job.finish, piece.ids, piece.split))
            if row is None:
                waiting.append(index)
            else:
                job.rows[index] = row
        job.missing = len(waiting)
        job.waiting = waiting

    def _finish_cached(self, job: Job) -> None:
        """Join rows that all came from the cache."""
        self._join(job, self._replicas[0])
        self._hand_over([job])

    def _forget(self, job: Job) -> None:
        """The future is done: nobody waits for the job any more."""
        if self._futures.pop(job, None) is not None and (job.missing or job.error):
            self.scheduler.drop(job)

    def _run(self, number: int, models: Sequence[Computes]) -> None:
        if self._cpu_threads is not None:
            torch.set_num_threads(self._cpu_threads)
        while (batch := self._take(number)) is not None:
            batch = [piece for piece in batch if not piece.job.dropped]
            if not batch:
                continue
            self._began[number] = time.monotonic()
            try:
                ended = self._compute(batch, models, number)
            except Exception as error:  # a bug: its requests fail, the thread goes on
                logger.exception("a batch met a bug of the engine")
                ended = list({piece.job: None for piece in batch})
                for job in ended:
                    job.error = job.error or error
            del self._began[number]
            self._hand_over(ended)

    def _take(self, number: int) -> list[Piece] | None:
        """The next batch, for a device that can compute it."""
        if self._workers is not None:
            self._workers.await_ready(number)
        return self.scheduler.take(self.budgets)

    def _compute(self, batch: list[Piece], models: Sequence[Computes], number: int) -> list[Job]:
        """Compute a batch; return the jobs that have ended."""
        began = time.monotonic()
        found = isolate(models[batch[0].job.group.model].rows, batch)
        seconds = time.monotonic() - began
        ended = self._record(batch, found, number)
        for job in ended:
            if job.error is not None:
                self.scheduler.drop(job)
            self._join(job, models)
        self._measure(batch, seconds)
        return ended

    def _record(
        self, batch: list[Piece], found: list[Tensor | Exception], number: int
    ) -> list[Job]:
        """Store the rows of a batch; return the jobs that have ended."""
        ended: dict[Job, None] = {}
        errors = [row for row in found if isinstance(row, Exception)]
        all_failed = len(errors) == len(found)
        self._failures[number] = self._failures[number] + 1 if all_failed else 0
        if failed := [error for error in errors if not isinstance(error, Problem)]:
            self._metrics.failed_batches.inc()
            logger.error("a batch failed", exc_info=failed[0])
        with self._lock:
            for piece, row in zip(batch, found, strict=True):
                job = piece.job
                if isinstance(row, Exception):
                    job.error = row
                    ended[job] = None
                    continue
                job.rows[piece.number] = row
                job.missing -= 1
                if not job.missing and job.error is None:
                    ended[job] = None
                if self._cache.limit and not job.group.hidden:
                    key = key_of(job.group, job.finish, piece.ids, piece.split)
                    self._cache.put(key, row)
        return list(ended)

    def _join(self, job: Job, models: Sequence[Computes]) -> None:
        if job.join is None or job.error is not None:
            return
        try:
            with torch.inference_mode():
                replica = models[job.group.model]
                job.rows = list(job.join(replica.embedding_model, job.results))
            if not all(bool(row.isfinite().all()) for row in job.results):
                raise ArithmeticError("the vector has NaN or infinite values")
        except Exception as error:  # any error of torch, reported to the request
            logger.error("joining the windows of a text failed", exc_info=error)
            job.error = error

    def _measure(self, batch: list[Piece], seconds: float) -> None:
        tokens = sum(len(piece.ids) for piece in batch)
        rate = tokens / max(seconds, 1e-9)
        self.rate = rate if not self.rate else (1 - LATEST) * self.rate + LATEST * rate
        with self._lock:
            self.computed_seconds += seconds
        metrics = self._metrics
        metrics.batch_tokens.observe(tokens)
        metrics.batch_texts.observe(len(batch))
        metrics.batch_seconds.observe(seconds)

    def _hand_over(self, ended: list[Job]) -> None:
        if ended and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._resolve, ended)

    def _resolve(self, ended: list[Job]) -> None:
        for job in ended:
            future = self._futures.get(job)
            if future is None or future.done():
                continue
            if job.error is not None:
                future.set_exception(job.error)
            else:
                future.set_result(job.results)
