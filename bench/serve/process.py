"""CPU time, memory and descriptors of a server's process and its children, from /proc."""

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

TICK = 1 / os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
MB = 2**20


def family(pid: int) -> list[int]:
    """A process and its living descendants; empty if it has ended."""
    found, pending = [], [pid]
    while pending:
        one = pending.pop()
        try:
            tasks = list(Path(f"/proc/{one}/task").iterdir())
        except OSError:
            continue
        found.append(one)
        for task in tasks:
            try:
                pending += [int(child) for child in (task / "children").read_text().split()]
            except OSError:  # the thread has ended, or the kernel has no such file
                continue
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its descendants, ended ones included, in seconds."""
    ticks = 0
    for stat in _read(pid, "stat"):
        # the name of the program is in brackets and may contain spaces
        fields = stat.rpartition(")")[2].split()
        ticks += sum(int(value) for value in fields[11:15])
    return ticks * TICK


def rss(pid: int) -> float:
    """Resident memory of a process and its descendants in MB; shared pages count in each."""
    return sum(int(statm.split()[1]) for statm in _read(pid, "statm")) * PAGE / MB


def descriptors(pid: int) -> int:
    """Number of open descriptors of a process and its descendants."""
    count = 0
    for one in family(pid):
        try:
            count += len(os.listdir(f"/proc/{one}/fd"))
        except OSError:
            continue
    return count


def threads(pid: int) -> dict[str, str | int | None]:
    """The number of threads of a process, and its OMP_NUM_THREADS, if they can be read."""
    found: dict[str, str | int | None] = {"threads": None, "OMP_NUM_THREADS": None}
    try:
        found["threads"] = len(os.listdir(f"/proc/{pid}/task"))
        for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            name, _, value = entry.partition(b"=")
            if name == b"OMP_NUM_THREADS":
                found["OMP_NUM_THREADS"] = value.decode()
    except OSError:
        pass
    return found


class Watch:
    """Samples of a process's memory while a run lasts.

    Attributes:
        times: seconds since the start of the watch.
        sizes: MB at these times.
    """

    def __init__(self, pid: int | None, every: float = 0.1) -> None:
        self.pid, self.every = pid, every
        self.times: list[float] = []
        self.sizes: list[float] = []
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Watch":
        if self.pid is not None:
            self._task = asyncio.create_task(self._run(self.pid))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()

    @property
    def peak(self) -> float | None:
        """The largest sample in MB."""
        return max(self.sizes, default=None)

    async def _run(self, pid: int) -> None:
        began = time.perf_counter()
        while True:
            self.times.append(time.perf_counter() - began)
            self.sizes.append(rss(pid))
            await asyncio.sleep(self.every)


def _read(pid: int, name: str) -> Iterator[str]:
    for one in family(pid):
        try:
            yield Path(f"/proc/{one}/{name}").read_text()
        except OSError:  # it has ended in the meantime
            continue
