"""Checks the candidates of a problem, times those that are right, and decides.

A candidate is right if it keeps the bound of one kernel: twice the error of plain torch in the same
dtype, and 4 eps of the largest value, both against the reference in fp64. All are timed briefly,
the fastest few again beside the shipped settings; only that second measurement decides, because
the best of many brief ones is partly luck. What does not beat the shipped settings by more than
the spread of the times is not taken.
"""

import contextlib
import logging
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nomicbert_kernels import launch
from nomicbert_kernels.backend import REFERENCE, TORCH, BackendError, Ops
from nomicbert_kernels.launch import Row, Settings
from nomicbert_kernels.tuning.candidates import candidates, template_of
from nomicbert_kernels.tuning.problems import Call, Draw, Prepare, Problem
from nomicbert_kernels.tuning.timing import Timer, spread

# Rounds of the brief measurement and of the one that decides, and how many come into that.
BRIEF = 7
ROUNDS = 41
FINALISTS = 4

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """What came out for one problem; times are medians in microseconds.

    Attributes:
        shipped: the settings of the shipped row.
        shipped_us: None where they do not run here, or are wrong.
        best_us: of the fastest candidate that is right; None where there is none.
        spread_us: what a difference has to exceed.
        chosen: the settings to take instead of the shipped ones, or None.
        tried: how many candidates there were.
        skipped: how many of them did not compile, or need more than the device has.
        wrong: those that gave wrong values.
    """

    problem: Problem
    shipped: Settings
    shipped_us: float | None
    best_us: float | None
    spread_us: float
    chosen: Settings | None
    tried: int
    skipped: int
    wrong: tuple[Settings, ...]


class Truth:
    """The right result of a problem, and how far from it a kernel may be."""

    def __init__(self, prepare: Prepare, dtype: torch.dtype) -> None:
        """Compute it with the reference in fp64, and plain torch's error in `dtype`."""
        self.exact = prepare(REFERENCE, torch.float64)()
        self.dtype = dtype
        plain = self._error(prepare(TORCH, dtype)())
        eps = torch.finfo(dtype).eps
        self.allowed = 2 * plain + 4 * eps * self.exact.abs().max().item()

    def _error(self, got: Tensor) -> float:
        return (got.double() - self.exact).abs().max().item()

    def poison(self) -> None:
        """Leave NaN where the allocator will put the next result: what is not written shows."""
        torch.full_like(self.exact, float("nan"), dtype=self.dtype)

    def agrees(self, got: Tensor) -> bool:
        """Whether a result keeps the bound."""
        shape = got.dtype == self.dtype and got.shape == self.exact.shape
        return shape and self._error(got) <= self.allowed


@contextlib.contextmanager
def taking(row: Row, arch: str) -> Iterator[None]:
    """Put a row before all of an architecture's launch table."""
    rows = launch.table(arch).setdefault((row.kernel, row.bytes), [])
    rows.insert(0, row)
    try:
        yield
    finally:
        rows.pop(0)


def refusals() -> tuple[type[Exception], ...]:
    """What a candidate that cannot be compiled or launched raises.

    The language's errors, a failed pass, a failed check of the compiler's own, an option that it
    does not know.
    """
    import triton

    return triton.TritonError, RuntimeError, AssertionError, ValueError, KeyError


def triton_version() -> str:
    """Of the compiler whose code is measured."""
    import triton

    return str(triton.__version__)


def check_device(device: torch.device, what: str) -> None:
    """Refuse to go on after a launch that has broken the device for the whole process."""
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        raise BackendError(f"{what} has left {device} unusable: {error}") from error


class Search:
    """The measurements of one device and dtype."""

    def __init__(
        self,
        ops: Ops,
        device: torch.device,
        dtype: torch.dtype,
        shipped: Sequence[Row],
        timer: Timer,
        tick: Callable[[], object] = lambda: None,
    ) -> None:
        """Measure nothing yet.

        Args:
            ops: those of the backend triton.
            device: where it runs.
            dtype: of the hidden states.
            shipped: rows of the shipped table for elements of this size.
            timer: takes the times.
            tick: called after each candidate.
        """
        self.ops, self.device, self.dtype = ops, device, dtype
        self.shipped, self.timer, self.tick = shipped, timer, tick
        self.arch = launch.architecture(device)

    def candidates(self, problem: Problem, quick: bool) -> list[Settings]:
        """The settings that are tried for a problem."""
        return candidates(problem, self.shipped, self.arch, self.dtype.itemsize, quick)

    def _call(self, problem: Problem, prepare: Prepare, settings: Settings) -> Call:
        """The op under these settings."""
        row = Row(problem.kernel, self.dtype.itemsize, {}, problem.exactly, settings)
        with taking(row, self.arch):
            inner = prepare(self.ops, self.dtype)

        def call() -> Tensor:
            with taking(row, self.arch):
                return inner()

        return call

    def solve(self, problem: Problem, tried: Sequence[Settings]) -> Result:
        """Measure one problem.

        Args:
            problem: what is measured.
            tried: the candidates, without the shipped settings.

        Raises: BackendError: a launch broke the device, or nothing runs.
        """
        on_device = torch.cuda.device(self.device) if self.device.type == "cuda" else None
        with torch.no_grad(), on_device or contextlib.nullcontext():
            return self._solve(problem, tried)

    def _solve(self, problem: Problem, tried: Sequence[Settings]) -> Result:
        shipped = template_of(problem, self.shipped)
        prepare = problem.make(Draw(self.dtype, self.device))
        truth = Truth(prepare, self.dtype)
        calls: list[tuple[Settings, Call]] = []
        wrong: list[Settings] = []
        skipped: dict[str, str] = {}
        for settings in (shipped, *tried):
            what = f"{problem.kernel} {problem.shape} with {describe(settings)}"
            try:
                call = self._call(problem, prepare, settings)
                truth.poison()
                right = truth.agrees(call())
            except refusals() as error:
                check_device(self.device, what)
                skipped[what] = f"{type(error).__name__}: {str(error).strip() or 'no message'}"
                right = None
            if right:
                calls.append((settings, call))
            elif right is False:
                wrong.append(settings)
            if right is not True and settings is shipped:
                why = "gives wrong values" if right is False else skipped.pop(what)
                logger.warning("the shipped row of %s is of no use here: %s", what, why)
            if settings is not shipped:
                self.tick()
        if not calls:
            reasons = "; ".join(sorted(set(skipped.values())))[:300] or "all give wrong values"
            raise BackendError(f"no settings of {problem.kernel} run on {self.arch}: {reasons}")
        for what, why in skipped.items():
            logger.debug("skipped %s: %s", what, why)
        return self._decide(problem, shipped, calls, len(tried), len(skipped), wrong)

    def _decide(
        self,
        problem: Problem,
        shipped: Settings,
        calls: list[tuple[Settings, Call]],
        tried: int,
        skipped: int,
        wrong: list[Settings],
    ) -> Result:
        brief = self.timer([call for _, call in calls], BRIEF)
        order = sorted(range(len(calls)), key=lambda i: statistics.median(brief[i]))
        last = [i for i in order if calls[i][0] is not shipped][:FINALISTS]
        last += [i for i in order if calls[i][0] is shipped]
        times = self.timer([calls[i][1] for i in last], ROUNDS)
        measured = dict(zip(last, times, strict=True))
        medians = {i: statistics.median(measured[i]) for i in last}
        own = next((i for i in last if calls[i][0] is shipped), None)
        best = min((i for i in last if i != own), key=medians.__getitem__, default=None)
        noise = max(spread(measured[i]) for i in (own, best) if i is not None)
        faster = best is not None and (own is None or medians[own] - medians[best] > noise)
        return Result(
            problem=problem,
            shipped=shipped,
            shipped_us=None if own is None else medians[own],
            best_us=None if best is None else medians[best],
            spread_us=noise,
            chosen=calls[best][0] if best is not None and faster else None,
            tried=tried,
            skipped=skipped,
            wrong=tuple(settings for settings in wrong if settings is not shipped),
        )


def describe(settings: Settings) -> str:
    """Settings in one line."""
    library = ["library"] if settings.library else []
    return ", ".join(library + [f"{name}={value}" for name, value in settings.keywords.items()])
