"""Interleaved timing: every candidate in turn, round after round, in one process.

Clocks drift and neighbours come and go; a round of all candidates (ABAB ...) spreads that over them
alike, and medians over rounds drop what is left. Each call of a candidate takes the next of several
copies of its input, together larger than the last cache, since a layer never finds its weights
there. On a GPU events mark the time on the device; on a CPU it is the clock's.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

Work = Callable[[], object]
# What a copy on a CPU has to leave behind: more than most have as cache for one core.
CPU_CACHE = 32 * 2**20
MOST_COPIES = 16
WARM_UPS = 3
# Cycles of a GPU in a second, rather too many; and the seconds that it sleeps at most.
CYCLES = 2e9
MOST_AHEAD = 0.05
# The driver queues about a thousand launches; a call may be several.
MOST_CALLS = 300


@dataclass(frozen=True)
class Timing:
    """Seconds a call, of each round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of the rounds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Between the quartiles; 0 for a single round."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return high - low


def copies_needed(size: float, device: torch.device) -> int:
    """How many copies of an input are more than the last cache, twice over."""
    cache = CPU_CACHE
    if device.type == "cuda":
        cache = torch.cuda.get_device_properties(device).L2_cache_size
    return min(MOST_COPIES, max(2, int(2 * cache / max(size, 1.0)) + 1))


def clock() -> float:
    """Seconds, when all that was sent to a GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def on_device(work: Work) -> float:
    """Seconds that a GPU takes, from its own events.

    The work is launched once to see how long that takes the host. The GPU then sleeps as long, so
    that it never waits for the host between the events.
    """
    begun = time.perf_counter()
    work()
    launching = min(MOST_AHEAD, time.perf_counter() - begun)
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(int(1.5 * launching * CYCLES))
    start.record()
    work()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1000


def on_host(work: Work) -> float:
    """Seconds that a CPU takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def rotating(calls: Sequence[Work]) -> Work:
    """One call of the next of these, in turn, for ever."""
    turn = itertools.cycle(calls)
    return lambda: next(turn)()


def repeated(work: Work, count: int) -> Work:
    """So many calls, one after the other."""

    def block() -> None:
        for _ in range(count):
            work()

    return block


def calls_for(work: Work, measure: Callable[[Work], float], seconds: float) -> int:
    """How many calls last so many seconds."""
    once = measure(work)
    return min(MOST_CALLS, max(1, round(seconds / max(once, 1e-9))))


def interleave(
    candidates: Mapping[str, Sequence[Work]],
    measure: Callable[[Work], float],
    rounds: int,
    seconds: float,
) -> dict[str, Timing]:
    """Time candidates against each other.

    Args:
        candidates: name -> the same call on several copies of its input.
        measure: seconds that some work takes: `on_device` or `on_host`.
        rounds: of all candidates, in their order.
        seconds: that a candidate gets in a round, about.

    Returns: name -> seconds a call, of each round.
    """
    works = {name: rotating(calls) for name, calls in candidates.items()}
    for work in works.values():  # compile, allocate
        repeated(work, WARM_UPS)()
    counts = {name: calls_for(work, measure, seconds) for name, work in works.items()}
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            found[name].append(measure(repeated(work, counts[name])) / counts[name])
    return {name: Timing(tuple(times)) for name, times in found.items()}
