"""Keeps one worker process running: starts another one when it ends, and says so.

Where in the flow: `workers` has a keeper per device, each with a thread that starts a worker, waits
for its end, and begins again. Compute threads `ask`, which waits while there is none.

A worker that ends without an answer since its start is followed by the next after a pause, which
doubles from `PAUSE` to `LONGEST`. After `STARTS` failed starts the keeper is down: what is asked is
refused at once, and the starts go on.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from torch import Tensor

from nomicbert.errors import NomicBertError
from nomicbert.serve.engine import wire
from nomicbert.serve.engine.process import WorkerDied, WorkerProcess
from nomicbert.serve.http.problems import Problem, Reason
from nomicbert.serve.logs import log_line
from nomicbert.serve.settings import ServeSettings

# Seconds that a start may take, at least, after the first one; and as a multiple of its time.
LEAST, MULTIPLE = 60.0, 10.0
# Seconds before the second start without an answer in between, and the most.
PAUSE, LONGEST = 0.1, 10.0
STARTS = 3

Result = TypeVar("Result")
# Compares a worker that has just started with what is expected; raises a NomicBertError.
Check = Callable[[WorkerProcess, wire.Facts, list[Tensor]], None]


class Unanswered:
    """A clock of the time for which work has waited without an answer, workers died or not.

    It runs while somebody asks, and stands while nobody does.
    """

    def __init__(self) -> None:
        """Nobody asks yet."""
        self._lock = threading.Lock()
        self._asking = 0
        self._before = self._since = 0.0

    def seconds(self) -> float:
        """Since the oldest question after the latest answer."""
        with self._lock:
            return self._before + (time.monotonic() - self._since if self._asking else 0.0)

    def begin(self) -> None:
        """Somebody asks."""
        with self._lock:
            if not self._asking:
                self._since = time.monotonic()
            self._asking += 1

    def end(self, *, lost: bool) -> None:
        """One who asked has an answer, or an error that is one; or all of it was `lost`."""
        with self._lock:
            now = time.monotonic()
            self._before = self._before + now - self._since if lost else 0.0
            self._since = now
            self._asking -= 1


class Keeper:
    """The worker of one device.

    Attributes:
        restarts: how often it was started again.
        is_down: the latest starts have failed.
        error: why the first start failed, or the thread that starts workers has died; or None.
        unanswered: for how long there was no answer.
    """

    def __init__(self, settings: ServeSettings, check: Check, changed: threading.Condition) -> None:
        """Nothing is started yet.

        Args:
            settings: of the worker; `stuck_seconds` limits the time of an answer.
            check: called with each worker before it is given work.
            changed: notified of every change, which those of other keepers share.
        """
        self.restarts = 0
        self.is_down = False
        self.error: BaseException | None = None
        self.unanswered = Unanswered()
        self._settings = settings
        self._check = check
        self._changed = changed
        self._running: WorkerProcess | None = None
        self._ready: WorkerProcess | None = None
        self._dead_since: float | None = None
        self._limit: float | None = None  # the first start may measure, or read a slow disk
        self._closed = False
        (self._device,) = settings.devices
        self._thread = threading.Thread(target=self._run, name=f"keeper-{self._device}")
        self._thread.daemon = True

    def start(self) -> None:
        """Start the first worker; `wait` returns when it is ready."""
        self._thread.start()

    def wait(self) -> None:
        """Wait for the first worker.

        Raises: BaseException: why it did not start; no other start follows.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self.error or self._closed)
        if self.error is not None:
            raise self.error

    @property
    def pid(self) -> int | None:
        """Of the worker that runs now, if one does."""
        process = self._running
        return None if process is None else process.pid

    @property
    def is_ready(self) -> bool:
        """Whether a worker waits for work, or computes."""
        return self._ready is not None

    def dead_seconds(self) -> float:
        """How long there has been no worker that is ready, after there was one.

        inf if the thread has died that starts them.
        """
        since = self._dead_since
        if not (self._thread.is_alive() or self._closed):
            return math.inf
        return 0.0 if since is None else time.monotonic() - since

    def ask(self, work: Callable[[WorkerProcess], Result], *, is_test: bool = False) -> Result:
        """Call `work` with a worker that is ready, which is waited for.

        Args:
            work: asks the worker.
            is_test: it does not count for `unanswered`.

        Raises: WorkerDied: while it worked. Problem: there is none, and will not be soon. Whatever
            else `work` raises.
        """
        if is_test:
            return self._ask(work)
        lost = False
        self.unanswered.begin()
        try:
            return self._ask(work)
        except WorkerDied:
            lost = True
            raise
        finally:
            self.unanswered.end(lost=lost)

    def _ask(self, work: Callable[[WorkerProcess], Result]) -> Result:
        while True:
            process = self._await_ready()
            with process.turn:
                if process is not self._ready:
                    continue  # it has ended while another thread had its turn
                try:
                    return work(process)
                except WorkerDied:
                    self._lose(process)
                    process.kill()
                    raise

    def close(self) -> None:
        """Start no more workers; nobody waits for one from now on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def stop(self, seconds: float) -> None:
        """After `close`: end the worker; one that the system cannot end is left after `seconds`."""
        process = self._running
        if process is not None:
            process.kill()
        if self._thread.is_alive():
            self._thread.join(seconds)

    def _await_ready(self) -> WorkerProcess:
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self.is_down or self._closed)
            if self._ready is not None:
                return self._ready
        if self._closed:
            raise Problem(Reason.STOPPING, "the server is stopping", retry_after=1.0)
        raise Problem(
            Reason.LOADING,
            "the process that computes has ended, and could not be started again so far",
            retry_after=LONGEST,
        )

    def _lose(self, process: WorkerProcess) -> None:
        """Give it no more work."""
        with self._changed:
            if self._ready is process:
                self._ready = None
                self._dead_since = time.monotonic()
                self._changed.notify_all()

    def _run(self) -> None:
        try:
            self._keep()
        except BaseException as error:  # a bug: nobody starts workers now, so nobody may wait
            with self._changed:
                self.error, self.is_down, self._ready = error, True, None
                self._changed.notify_all()
            raise

    def _keep(self) -> None:
        fruitless = failed = 0
        while not self._closed:
            process, why = self._start()
            answered = False
            if process is None:
                event = "worker_not_started"
                failed += 1
            else:
                event = "worker_died"
                failed, before = 0, process.answered
                why = process.wait()
                self._lose(process)
                answered = process.answered > before
            fruitless = 1 if answered else fruitless + 1
            pause = 0.0 if fruitless == 1 else min(PAUSE * 2 ** (fruitless - 2), LONGEST)
            pid = self.pid
            with self._changed:
                self._running = None
                self.is_down = failed >= STARTS
                self._changed.notify_all()
                if self._closed or self.error is not None:
                    return
                fields = {"device": self._device, "pid": pid, "why": why, "again_in": pause}
                log_line(event, level=logging.ERROR, **fields)
                self._changed.wait_for(lambda: self._closed, pause)
                self.restarts += not self._closed

    def _start(self) -> tuple[WorkerProcess | None, str]:
        """Start a worker and check it: the worker, or None and why there is none."""
        began = time.monotonic()
        process: WorkerProcess | None = None
        try:
            with self._changed:  # `stop` ends what runs after `close`, which waits for this
                if self._closed:
                    return None, "the server is stopping"
                process = self._running = WorkerProcess(self._settings)
            self._check(process, *process.facts(self._limit))
        except (NomicBertError, OSError, ValueError, RuntimeError) as error:
            why = str(error)
            if process is not None:
                process.kill()
                why = f"{why} ({process.wait()})"
            if self._dead_since is None:
                self.error = error
            return None, why
        # the tokens per batch are measured once
        measured = self._settings.max_batch_tokens or 1
        self._settings = replace(self._settings, max_batch_tokens=measured)
        with self._changed:
            self._ready, self._dead_since, self.is_down = process, None, False
            self._changed.notify_all()
        seconds = time.monotonic() - began
        self._limit = self._limit or max(LEAST, MULTIPLE * seconds)
        seconds = round(seconds, 3)
        log_line("worker_ready", device=self._device, pid=process.pid, seconds=seconds)
        return process, ""
