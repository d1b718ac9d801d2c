"""Work for several processes: chunks go to whichever is free, results come back in their order.

Where in the flow: `workers` cuts a stream of inputs into chunks and says what a process does with
one (`worker`); here the processes are started, fed, watched and stopped. What a chunk or a result
holds does not matter here.

A process that dies leaves its chunks to the others. Whatever was with it may have killed it, so
such a chunk is tried again alone, and not a third time.
"""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

import numpy as np

from nomicbert.errors import WorkerError
from nomicbert.user_warnings import WorkerWarning, warn

# Chunks for each process that may be under way or done before the oldest of them is done.
AHEAD = 6
# Processes that one chunk may take with it.
DEATHS = 2
# Seconds that a process has to end once its pipe is closed.
GRACE = 10

NO_GUARD = (
    "none of them came as far as to begin. A script that gives several devices needs "
    "`if __name__ == '__main__':` around what it runs, because each process reads it again; "
    "whatever else was wrong stands above"
)

# What a process says: (one of these, and what belongs to it).
READY = "ready"  # nothing
DONE = "done"  # of the oldest chunk that it has: what `answer` was given, and the bytes' count
FAILED = "failed"  # an error, the text of its traceback


@dataclass
class Chunk:
    """A piece of a stream.

    Attributes:
        number: of the chunk in the stream, from 0.
        start: number of its first input.
        inputs: neighbouring ones.
        deaths: processes that died while they had it.
    """

    number: int
    start: int
    inputs: list[Any]
    deaths: int = 0


@dataclass
class Member:
    """One process.

    Attributes:
        name: of its device.
        process: the process.
        connection: our end of its pipe.
        ready: whether it takes chunks by now.
        given: chunks that it has, oldest first.
    """

    name: str
    process: SpawnProcess
    connection: Connection
    ready: bool = False
    given: deque[Chunk] = field(default_factory=deque)


class Dispatcher:
    """Processes that live as long as one call."""

    def __init__(
        self,
        names: Sequence[str],
        target: Callable[..., None],
        *arguments: Any,
        at_a_time: int = 2,
    ) -> None:
        """Nothing is started before there is work.

        Args:
            names: of the processes, as users see them; one process for each.
            target: what a process runs: target(connection, name, *arguments).
            arguments: for all of them.
            at_a_time: chunks that a process has: it works on one, and the next waits in it.
        """
        self.names = names
        self.target = target
        self.arguments = arguments
        self.at_a_time = at_a_time
        self.members: list[Member] = []
        self.began = False
        self.ends: list[str] = []
        self.again: list[Chunk] = []
        self.done: dict[int, tuple[Any, np.ndarray]] = {}
        self.dealt = self.returned = 0
        self.more = True

    def run(self, chunks: Iterator[Chunk]) -> Generator[tuple[Any, np.ndarray]]:
        """What was answered for each chunk, in order; all processes are gone when it ends.

        Args:
            chunks: any number; read no further than `AHEAD` for each process.

        Raises: WorkerError: no process is left, or a chunk kills them. Whatever a process raises.
        """
        first = list(islice(chunks, len(self.names)))
        if not first:
            return
        fresh = chain(first, chunks)
        try:
            self._start(self.names[: len(first)])  # no more than there is work for
            while True:
                self._deal(fresh)
                if self.returned in self.done:
                    self.returned += 1
                    yield self.done.pop(self.returned - 1)
                    self._listen(0)  # what has come while the caller was busy
                elif self.more or self.again or any(member.given for member in self.members):
                    self._listen(None)
                else:
                    return
        finally:
            self._stop()

    def _start(self, names: Sequence[str]) -> None:
        spawn = multiprocessing.get_context("spawn")  # CUDA does not live through a fork
        with ctrl_c_kept_away():
            for name in names:
                ours, theirs = spawn.Pipe()
                arguments = (theirs, name, *self.arguments)
                # a daemon ends with this process, should the caller never close the stream
                process = spawn.Process(target=self.target, args=arguments, daemon=True)
                process.start()
                theirs.close()  # so that its death closes the pipe
                self.members.append(Member(name, process, ours))

    def _stop(self) -> None:
        # nothing in them needs an orderly end, and one that is suspended hears nothing else
        for member in self.members:
            member.process.kill()
        for member in self.members:
            member.process.join()
            member.connection.close()
        self.members.clear()

    def _deal(self, fresh: Iterator[Chunk]) -> None:
        """Give chunks to those who have room, the old ones first."""
        for member in self.members:
            if self.again and member.ready and not member.given:
                self._give(member, self.again.pop(0))
        while self.more and not self.again and (free := self._with_room()) is not None:
            chunk = next(fresh, None)
            if chunk is None:
                self.more = False
            else:
                self.dealt += 1
                self._give(free, chunk)

    def _with_room(self) -> Member | None:
        """Who has least to do, if anyone may have more."""
        if self.dealt - self.returned >= AHEAD * len(self.members):
            return None  # or one slow process would let the results of the others pile up
        free = [
            member
            for member in self.members
            if member.ready
            and len(member.given) < self.at_a_time
            and not any(chunk.deaths for chunk in member.given)
        ]
        return min(free, key=lambda member: len(member.given), default=None)

    def _give(self, member: Member, chunk: Chunk) -> None:
        member.given.append(chunk)
        with suppress(OSError):  # it has died: its pipe will say so
            member.connection.send(chunk)

    def _listen(self, timeout: float | None) -> None:
        """Take one message from each that has something to say."""
        members = {member.connection: member for member in self.members}
        for connection in wait([*members], timeout):
            assert isinstance(connection, Connection)
            member = members[connection]
            try:
                kind, *content = connection.recv()
                if kind == DONE:
                    found = content[0], receive_bytes(connection, content[1])
            except (EOFError, OSError):
                self._bury(member)
                continue
            if kind == READY:
                member.ready = self.began = True
            elif kind == DONE:
                self.done[member.given.popleft().number] = found
            else:
                error, trace = content
                raise error from WorkerError(f"in the process on {member.name}:\n{trace}")

    def _bury(self, dead: Member) -> None:
        """Let the others take over what a dead process had."""
        self.members.remove(dead)
        dead.connection.close()
        dead.process.join(GRACE)
        dead.process.kill()
        dead.process.join()
        end = f"{dead.name} ({how_it_ended(dead.process.exitcode)})"
        self.ends.append(end)
        for chunk in dead.given:
            chunk.deaths += 1
            if chunk.deaths >= DEATHS:
                last = chunk.start + len(chunk.inputs) - 1
                raise WorkerError(
                    f"{chunk.deaths} processes died with inputs {chunk.start} to {last}, the last "
                    f"of them on {end}: these are not tried again"
                )
        if not self.members:
            why = "" if self.began else f"; {NO_GUARD}"
            raise WorkerError(f"all processes have died: {', '.join(self.ends)}{why}")
        self.again = sorted([*self.again, *dead.given], key=lambda chunk: chunk.number)
        warn(f"the process on {end} has died: the others take over its texts", WorkerWarning)


def answer(connection: Connection, result: Any, content: np.ndarray) -> None:
    """Send what became of the oldest chunk: a small object, and an array of any size."""
    connection.send((DONE, result, content.nbytes))
    rest: Any = memoryview(content.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
    # as it lies in memory: pickling and Connection's own way copy it several times
    while len(rest):
        rest = rest[os.write(connection.fileno(), rest) :]


def receive_bytes(connection: Connection, count: int) -> np.ndarray:
    """The array's bytes.

    Raises: EOFError: the other end is closed.
    """
    content = np.empty(count, np.uint8)
    rest: Any = memoryview(content)  # type: ignore[arg-type]
    while len(rest):
        read = os.readv(connection.fileno(), [rest])
        if not read:
            raise EOFError
        rest = rest[read:]
    return content


def how_it_ended(code: int | None) -> str:
    """An exit code of multiprocessing's in words."""
    if code is not None and -code in signal.valid_signals():
        return signal.Signals(-code).name
    return f"exit code {code}"


@contextmanager
def ctrl_c_kept_away() -> Iterator[None]:
    """What is started inside does not hear Ctrl-C, which a terminal sends to all processes at once.

    This process hears it, and ends the others.
    """
    if os.name != "posix":
        yield
        return
    resource_tracker.ensure_running()  # to start it later would let the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
