"""The parts of the benchmark: the cases of each, their measurement and estimated time."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench.gpu import attention, gemm, launches, ops
from bench.gpu.models import Models
from bench.gpu.place import Place
from bench.gpu.race import TOO_LONG, Task, facts_of
from bench.gpu.runner.child import Case, Facts, first_line
from bench.gpu.stream import Streams
from nomicbert.benchmark.lines import Line
from nomicbert.errors import NomicBertError

Measure = Callable[[Task], list[Line]]
# Estimated seconds per case on one H200, including compilation of the first case's kernels and, for
# whole models, torch.compile's graphs.
SECONDS = {
    "gemm": 2.0,
    "attention": 10.0,
    "ops": 15.0,
    "models": 90.0,
    "latency": 60.0,
    "stream": 40.0,
}


def cases(part: str, options: Facts) -> Sequence[Case]:
    """The cases of a part, in the order in which they are measured.

    Args:
        part: a key of SECONDS.
        options: of `python -m bench.gpu`.
    """
    place = Place.here(options["dry"])
    found = [
        Case(f"{task.model} {task.case}", partial(measured, place, measure, task), SECONDS[part])
        for task, measure in tasks(part, place, options)
    ]
    return [case for case in found if options["match"] in case.name]


def tasks(part: str, place: Place, options: Facts) -> Iterator[tuple[Task, Measure]]:
    """Each task of a part, with the function that measures it."""
    kernels: dict[str, list[Any]] = {
        "gemm": [launches, gemm],
        "attention": [attention],
        "ops": [ops],
    }
    for module in kernels.get(part, []):
        for task in module.tasks(place):
            yield task, partial(module.measure, place)
    if part in kernels:
        return
    names, scratch = list(options["models"]), Path(options["scratch"])
    models = Models(place, names, scratch, options["compile"], options["slow"])
    if part == "stream":
        streams = Streams(place, models)
        for task in streams.tasks():
            yield task, streams.measure
    else:
        for task in models.tasks(part):
            yield task, models.measure


def measured(place: Place, measure: Measure, task: Task) -> Facts:
    """Measure one case and wait for the device; a missing checkpoint leaves the case out."""
    try:
        lines = measure(task)
    except NomicBertError as error:
        return {"lines": [], "said": f"left out: {first_line(error)}"}
    # a device error of this case is raised here, not in the next case
    place.finish()
    return facts_of(lines) if lines else dict(TOO_LONG)
