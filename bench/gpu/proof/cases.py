"""Helpers that all cases of the proof run share."""

import functools
from collections.abc import Callable, Sequence

from bench.gpu.digests import sources
from bench.gpu.place import Place
from bench.gpu.race import TOO_LONG, Task, facts_of
from bench.gpu.runner.child import Case, Facts
from bench.harness import WrongValues
from nomicbert.benchmark.lines import Line

Work = Callable[[], Facts]


def case(place: Place, name: str, work: Work, seconds: float) -> Case:
    """A case that synchronizes with the device at its end, and counts compiled kernels."""
    return Case(name, functools.partial(_run, place, work), seconds)


def interleaved(measure: Callable[[Task], list[Line]], task: Task) -> Facts:
    """Fields of a case that times interleaved candidates."""
    lines = measure(task)
    return facts_of(lines) if lines else dict(TOO_LONG)


def matched(found: Sequence[Case], options: Facts) -> list[Case]:
    """The cases that --match selects."""
    return [one for one in found if options["match"] in one.name]


def within(error: float, bound: float) -> Facts:
    """An error and its bound.

    Raises: WrongValues: the error is larger than the bound, or NaN.
    """
    if not error <= bound:
        raise WrongValues(f"off by {error:.3g}, allowed {bound:.3g}")
    return {"error": error, "bound": bound, "said": f"off by {error:.2g}, allowed {bound:.2g}"}


def _run(place: Place, work: Work) -> Facts:
    with Compiled() as compiled:
        facts = work()
        # a device error of this case is raised here, not in the next case
        place.finish()
    found = {"compiled": compiled.new, "from_cache": compiled.cached, "sources": sources()}
    return {**facts, **found}


class Compiled:
    """Counts kernels that Triton compiles, and those that it finds in its cache on disk.

    Attributes:
        new: kernels compiled in this process.
        cached: kernels found in the cache.
    """

    def __init__(self) -> None:
        """Nothing is counted yet."""
        self.new = self.cached = 0

    def __enter__(self) -> "Compiled":
        import triton

        self._knobs = triton.knobs.compilation
        self._before = self._knobs.listener
        self._knobs.listener = self._count
        return self

    def __exit__(self, *_: object) -> None:
        self._knobs.listener = self._before

    def _count(self, *, cache_hit: bool, **_: object) -> None:
        if cache_hit:
            self.cached += 1
        else:
            self.new += 1
