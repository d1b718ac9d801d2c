"""Which parts there are, and the cases of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.gpu import attention, gemm, launches, ops
from bench.gpu.models import Models
from bench.gpu.place import Place
from bench.gpu.race import Task
from bench.gpu.stream import Streams
from nomicbert.throughput.lines import Line

PARTS = ("gemm", "attention", "ops", "models", "latency", "stream")
# Seconds of a case on one H200 by arithmetic, until cases of a part have been measured.
GUESSES = {
    "gemm": 1.5,
    "attention": 7.0,
    "ops": 11.0,
    "models": 20.0,
    "latency": 20.0,
    "stream": 20.0,
}


@dataclass(frozen=True)
class Job:
    """A case, and how it is measured."""

    task: Task
    measure: Callable[[], list[Line]]


def jobs(
    part: str, place: Place, models: Sequence[str], scratch: Path, compiles: bool, slow: bool
) -> list[Job]:
    """The cases of a part, in the order in which they are measured.

    Args:
        part: one of PARTS.
        place: where.
        models: checkpoints of the parts on whole models.
        scratch: where these are built.
        compiles: torch.compile takes part.
        slow: and its search for the fastest kernels.
    """
    if part == "gemm":
        return [
            *(Job(task, partial(launches.measure, place, task)) for task in launches.tasks(place)),
            *(Job(task, partial(gemm.measure, place, task)) for task in gemm.tasks(place)),
        ]
    if part == "attention":
        tasks = attention.tasks(place)
        return [Job(task, partial(attention.measure, place, task)) for task in tasks]
    if part == "ops":
        return [Job(task, partial(ops.measure, place, task)) for task in ops.tasks(place)]
    whole = Models(place, list(models), scratch, compiles, slow)
    if part == "stream":
        streams = Streams(place, whole)
        return [Job(task, partial(streams.measure, task)) for task in streams.tasks()]
    return [Job(task, partial(whole.measure, task)) for task in whole.tasks(part)]
