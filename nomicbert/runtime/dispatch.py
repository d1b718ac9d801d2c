"""Distribute chunks of work over processes and return the results in order.

Where in the flow: `workers` cuts a stream of inputs into chunks and supplies the function that a
process runs (`worker`). This module starts, feeds, watches and stops the processes; it does not
look into chunks or results.

If a process dies, the other processes take over its chunks. Any of these may have caused the death,
so each is retried alone, and never a third time.
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

# Limit per process of chunks that are running, or done but not yielded yet.
AHEAD = 6
# Deaths of processes after which a chunk is not retried.
DEATHS = 2
# Seconds that a process has to end once its pipe is closed.
GRACE = 10

NO_GUARD = (
    "none of them started. A script that uses several devices needs "
    "`if __name__ == '__main__':` around its code, because each process imports the script; "
    "other causes are printed above"
)

# Messages of a process: (one of these, *content).
READY = "ready"  # no content
DONE = "done"  # the result of its oldest chunk, size in bytes of the array that follows
FAILED = "failed"  # an error, the text of its traceback


@dataclass
class Chunk:
    """A piece of a stream.

    Attributes:
        number: index of the chunk in the stream.
        start: index of its first input.
        inputs: consecutive inputs.
        deaths: number of processes that died while this chunk was assigned to them.
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
        ready: whether it has started and accepts chunks.
        given: chunks assigned to it, oldest first.
        mark: of the model that a pool has sent to it.
    """

    name: str
    process: SpawnProcess
    connection: Connection
    ready: bool = False
    given: deque[Chunk] = field(default_factory=deque)
    mark: bytes = b""

    def send(self, message: Any) -> None:
        """Send a message; nothing happens if the process has died: its pipe is found closed."""
        with suppress(OSError):
            self.connection.send(message)


class Dispatcher:
    """The processes of one call."""

    def __init__(
        self,
        names: Sequence[str],
        target: Callable[..., None],
        *arguments: Any,
        at_a_time: int = 2,
    ) -> None:
        """Processes are started by `run`, once there is work.

        Args:
            names: of the processes, as shown to users; one process for each.
            target: a process runs target(connection, name, *arguments).
            arguments: the same for all processes.
            at_a_time: limit of chunks assigned to a process: one is running, the others queued.
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
        """Yield the result of each chunk in order; all processes are stopped when it ends.

        Args:
            chunks: any number; read at most `AHEAD` per process ahead of the results.

        Raises: WorkerError: no process is left, or a chunk kills them. Whatever a process raises.
        """
        first = list(islice(chunks, len(self.names)))
        if not first:
            return
        fresh = chain(first, chunks)
        try:
            self._start(self.names[: len(first)])  # no more processes than chunks
            while True:
                self._deal(fresh)
                if self.returned in self.done:
                    self.returned += 1
                    yield self.done.pop(self.returned - 1)
                    self._listen(0)  # messages that arrived while the caller was busy
                elif self.more or self.again or any(member.given for member in self.members):
                    self._listen(None)
                else:
                    return
        finally:
            self._stop()

    def _start(self, names: Sequence[str]) -> None:
        self.members += started(names, self.target, *self.arguments)

    def _stop(self) -> None:
        stop(self.members)
        self.members.clear()

    def _deal(self, fresh: Iterator[Chunk]) -> None:
        """Assign chunks to processes with room, chunks to retry first."""
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
        """The process with the fewest chunks, if any may get another one."""
        if self.dealt - self.returned >= AHEAD * len(self.members):
            return None  # otherwise results would pile up behind one slow process
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
        member.send(chunk)

    def _listen(self, timeout: float | None) -> None:
        """Receive one message from each process that has sent any."""
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
        """Remove a dead process and queue its chunks for retries."""
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
                    f"{chunk.deaths} processes died while they had inputs {chunk.start} to {last}, "
                    f"the last one on {end}: these inputs are not retried"
                )
        if not self.members:
            why = "" if self.began else f"; {NO_GUARD}"
            raise WorkerError(f"all processes have died: {', '.join(self.ends)}{why}")
        self.again = sorted([*self.again, *dead.given], key=lambda chunk: chunk.number)
        warn(f"the process on {end} has died: the others take over its texts", WorkerWarning)


def started(names: Sequence[str], target: Callable[..., None], *arguments: Any) -> list[Member]:
    """Start a process for each name, which runs target(connection, name, *arguments)."""
    spawn = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    members = []
    with ctrl_c_kept_away():
        for name in names:
            ours, theirs = spawn.Pipe()
            # a daemon ends with this process, even if the caller never closes the stream
            process = spawn.Process(target=target, args=(theirs, name, *arguments), daemon=True)
            process.start()
            theirs.close()  # then the pipe closes when the process dies
            members.append(Member(name, process, ours))
    return members


def stop(members: Sequence[Member]) -> None:
    """End processes: none needs an orderly shutdown, and a suspended one reacts to SIGKILL only."""
    for member in members:
        member.process.kill()
    for member in members:
        member.process.join()
        member.connection.close()


def answer(connection: Connection, result: Any, content: np.ndarray) -> None:
    """Send the result of the oldest chunk: a small object, and an array of any size."""
    connection.send((DONE, result, content.nbytes))
    rest: Any = memoryview(content.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
    # written from its own memory, because pickling and Connection.send_bytes copy it several times
    while len(rest):
        rest = rest[os.write(connection.fileno(), rest) :]


def receive_bytes(connection: Connection, count: int) -> np.ndarray:
    """Receive the bytes of an array.

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
    """Describe an exit code of multiprocessing: the name of a signal, or the code."""
    if code is not None and -code in signal.valid_signals():
        return signal.Signals(-code).name
    return f"exit code {code}"


@contextmanager
def ctrl_c_kept_away() -> Iterator[None]:
    """Start processes inside this block with SIGINT blocked.

    A terminal sends Ctrl-C to all processes at once. Only this process handles it, and then stops
    the others.
    """
    if os.name != "posix":
        yield
        return
    resource_tracker.ensure_running()  # started later, it would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
