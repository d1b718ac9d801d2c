"""Compares the times of several calls on a GPU.

Calls are interleaved, so that clock changes and other load affect all of them alike. L2 is
overwritten before each call, because in a model a layer's weight is not in L2 either. Times come
from CUDA events. The GPU sleeps briefly before each call, so that the host has launched it by then
and launch time is not counted.
"""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

# Bytes written before each call: more than the size of any L2.
FLUSHED = 256 * 2**20
# GPU cycles to sleep before each call: about 200 us, longer than any launch takes.
AHEAD = 400_000

# (calls, rounds) -> per call, the microseconds of each round.
Timer = Callable[[Sequence[Callable[[], object]], int], list[list[float]]]


def gpu_timer(device: torch.device) -> Timer:
    """Make a timer that uses the events of a CUDA device."""
    event: Any = torch.cuda.Event

    def measure(calls: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
        flushed = torch.empty(FLUSHED, dtype=torch.int8, device=device)
        events = []
        for each in range(rounds):
            for place in range(len(calls)):
                # each round starts with a different call, so none always follows the same one
                index = (place + each) % len(calls)
                start, end = event(enable_timing=True), event(enable_timing=True)
                flushed.zero_()
                torch.cuda._sleep(AHEAD)  # type: ignore[no-untyped-call]
                start.record()
                calls[index]()
                end.record()
                events.append((index, start, end))
        torch.cuda.synchronize(device)
        times: list[list[float]] = [[] for _ in calls]
        for index, start, end in events:
            times[index].append(1000 * start.elapsed_time(end))
        return times

    return measure


def spread(times: Sequence[float]) -> float:
    """Interquartile range."""
    low, _, high = statistics.quantiles(times, n=4, method="inclusive")
    return high - low
