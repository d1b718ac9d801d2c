"""Interleaved timing: rounds over all candidates in one process.

Interleaving (ABAB ...) spreads clock drift and other load evenly over the candidates, and medians
over rounds drop outliers. Each call uses the next of several copies of its input, together larger
than the last-level cache, because in a model a layer's weights are not cached either. On a GPU
times are those of CUDA events, on a CPU those of the clock.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

Work = Callable[[], object]
# Assumed cache of a CPU: larger than the share of one core on most machines.
CPU_CACHE = 32 * 2**20
MOST_COPIES = 16
WARM_UPS = 3
# Upper estimate of a GPU's cycles per second; longest sleep in seconds.
CYCLES = 2e9
MOST_AHEAD = 0.05
# The driver queues about a thousand launches, and a call may make several.
MOST_CALLS = 300


@dataclass(frozen=True)
class Timing:
    """Seconds per call, one value per round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Interquartile range; 0 for a single round."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return high - low


def copies_needed(size: float, device: torch.device) -> int:
    """Number of copies of an input that together exceed twice the last-level cache."""
    cache = CPU_CACHE
    if device.type == "cuda":
        cache = torch.cuda.get_device_properties(device).L2_cache_size
    return min(MOST_COPIES, max(2, int(2 * cache / max(size, 1.0)) + 1))


def clock() -> float:
    """Seconds, read after a GPU has finished all its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def on_device(work: Work) -> float:
    """Seconds of work on a GPU, from CUDA events.

    The work is launched once to measure the host's launch time. The GPU then sleeps 1.5 times as
    long before the timed launch, so that it never waits for the host between the events.
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
    """Seconds of work on a CPU."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def rotating(calls: Sequence[Work]) -> Work:
    """A function that calls these round-robin, one per call."""
    turn = itertools.cycle(calls)
    return lambda: next(turn)()


def repeated(work: Work, count: int) -> Work:
    """A function that calls `work` `count` times."""

    def block() -> None:
        for _ in range(count):
            work()

    return block


def calls_for(work: Work, measure: Callable[[Work], float], seconds: float) -> int:
    """Number of calls that take about `seconds`."""
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
        measure: returns the seconds of some work: `on_device` or `on_host`.
        rounds: each round times all candidates, in their order.
        seconds: approximate time per candidate and round.

    Returns: name -> seconds per call, one value per round.
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
