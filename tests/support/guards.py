"""A guard for tests of code that may never end or fill memory: they fail in time."""

from __future__ import annotations

import contextlib
import resource
import signal
from collections.abc import Iterator
from typing import Any

PATIENCE = 15  # seconds
ROOM = 2**30  # bytes


class NeverEnds(BaseException):
    """Not an Exception, so that no code that is tested catches it."""


@contextlib.contextmanager
def guarded(seconds: int = PATIENCE, room: int = ROOM) -> Iterator[None]:
    """Fail a block that takes too long, or address space beyond what the process has."""

    def stop(*_: Any) -> None:
        raise NeverEnds(f"took more than {seconds} s")

    taken = _address_space()
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    resource.setrlimit(resource.RLIMIT_AS, (taken + room, before[1]))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def _address_space() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
