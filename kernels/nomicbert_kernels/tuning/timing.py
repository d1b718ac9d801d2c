"""How long calls take on a GPU, side by side.

The calls take turns, so that a clock that sinks or a neighbour that wakes meets all of them alike.
Before each one L2 is overwritten: a layer's weight is not there when its turn comes in a model.
The GPU's own clock is read; it waits a little before each call, so that the host has launched by
then and its time is not counted.
"""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

# Bytes that are written before each call: more than any L2 holds.
FLUSHED = 256 * 2**20
# Cycles that the GPU then waits: some 200 microseconds, longer than any call takes to launch.
AHEAD = 400_000

# (calls, rounds) -> for each call the microseconds of each round.
Timer = Callable[[Sequence[Callable[[], object]], int], list[list[float]]]


def gpu_timer(device: torch.device) -> Timer:
    """A timer that reads the events of a CUDA device."""
    event: Any = torch.cuda.Event

    def measure(calls: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
        flushed = torch.empty(FLUSHED, dtype=torch.int8, device=device)
        events = []
        for each in range(rounds):
            for place in range(len(calls)):
                # each round begins with another call, so that none always follows the same one
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
    """The range of the middle half."""
    low, _, high = statistics.quantiles(times, n=4, method="inclusive")
    return high - low
