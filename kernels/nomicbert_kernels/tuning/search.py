"""Checks the candidates of a problem, times the correct ones, and decides.

A candidate is correct if its error against the reference in fp64 is at most twice that of plain
torch in the same dtype plus 4 eps of the largest value. On e4m3 it is compared with the
specification, which rounds the operands in the same way. All correct candidates are timed briefly,
and the fastest few again together with the shipped settings. Only the second measurement decides,
because the best of many brief ones is partly luck. A candidate must beat the shipped settings by
more than the spread of the times.
"""

import contextlib
import logging
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nomicbert_kernels import launch
from nomicbert_kernels.backend import FP8_REFERENCE, REFERENCE, TORCH, Ops
from nomicbert_kernels.launch import BackendError, Row, Settings
from nomicbert_kernels.tensors import Activation, values
from nomicbert_kernels.tuning.candidates import candidates, template_of
from nomicbert_kernels.tuning.problems import Call, Draw, Prepare, Problem
from nomicbert_kernels.tuning.timing import Timer, spread

# Rounds of the brief and of the final measurement, and the number of candidates in the final one.
BRIEF = 7
ROUNDS = 41
FINALISTS = 4
# Norm of the error on e4m3 relative to that of the result. Where the result itself is rounded to
# e4m3, some values round to the neighbouring one, an eighth away.
NARROW_ERROR, NARROW_STEPS = 0.02, 0.04

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """The result of one problem; times are medians in microseconds.

    Attributes:
        shipped: the settings of the shipped row.
        shipped_us: time of the shipped settings; None if they do not run here or are wrong.
        best_us: time of the fastest correct candidate; None if there is none.
        spread_us: a candidate must be faster by more than this.
        chosen: the settings to use instead of the shipped ones, or None.
        tried: number of candidates.
        skipped: number of candidates that did not compile or exceed the device's resources.
        wrong: candidates that gave wrong values.
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
    """The exact result of a problem, and the largest allowed error of a kernel."""

    def __init__(self, prepare: Prepare, dtype: torch.dtype) -> None:
        """Compute the result with the reference in fp64, and plain torch's error in `dtype`."""
        self.exact = values(prepare(REFERENCE, torch.float64)())
        self.dtype = dtype
        plain = self._error(values(prepare(TORCH, dtype)()))
        eps = torch.finfo(dtype).eps
        self.allowed = 2 * plain + 4 * eps * self.exact.abs().max().item()

    def _error(self, got: Tensor) -> float:
        return (got.double() - self.exact).abs().max().item()

    def poison(self) -> None:
        """Leave NaN in memory that the allocator will reuse, so that unwritten elements show."""
        torch.full_like(self.exact, float("nan"), dtype=self.dtype)

    def agrees(self, got: Tensor | Activation) -> bool:
        """Whether a result is within the allowed error."""
        found = values(got, self.dtype)
        shape = found.dtype == self.dtype and found.shape == self.exact.shape
        return shape and self._error(found) <= self.allowed


class NarrowTruth(Truth):
    """The result that the specification of backend "fp8" gives; errors are relative norms."""

    def __init__(self, prepare: Prepare, dtype: torch.dtype) -> None:
        """Compute the result of a problem on e4m3, for hidden states in `dtype`."""
        wanted = prepare(FP8_REFERENCE, dtype)()
        self.exact, self.dtype = values(wanted).double(), dtype
        self.allowed = NARROW_ERROR if isinstance(wanted, Tensor) else NARROW_STEPS

    def _error(self, got: Tensor) -> float:
        return float((got.double() - self.exact).norm() / self.exact.norm())


@contextlib.contextmanager
def taking(row: Row, arch: str) -> Iterator[None]:
    """Temporarily put a row first in an architecture's launch table."""
    rows = launch.table(arch).setdefault((row.kernel, row.bytes), [])
    rows.insert(0, row)
    try:
        yield
    finally:
        rows.pop(0)


def refusals() -> tuple[type[Exception], ...]:
    """The exceptions of a candidate that cannot be compiled or launched.

    In order: Triton's own errors, a failed compiler pass, a failed assertion of the compiler, and
    (the last two) an unknown option.
    """
    import triton

    return triton.TritonError, RuntimeError, AssertionError, ValueError, KeyError


def triton_version() -> str:
    """The version of Triton whose code is measured."""
    import triton

    return str(triton.__version__)


def check_device(device: torch.device, what: str) -> None:
    """Raise if a launch has left the device unusable for the rest of the process."""
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
        """Store the arguments; nothing is measured yet.

        Args:
            ops: of backend "triton", or "fp8" for the rows of e4m3.
            device: where it runs.
            dtype: of the hidden states.
            shipped: rows of the shipped table for the size of the GEMMs' elements.
            timer: times the calls.
            tick: called after each candidate.
        """
        self.ops, self.device, self.dtype = ops, device, dtype
        self.shipped, self.timer, self.tick = shipped, timer, tick
        self.arch = launch.architecture(device)
        self.narrow = ops.name == "fp8"
        self.size = 1 if self.narrow else dtype.itemsize

    def candidates(self, problem: Problem, quick: bool) -> list[Settings]:
        """The settings to try for a problem."""
        return candidates(problem, self.shipped, self.arch, self.size, quick)

    def _call(self, problem: Problem, prepare: Prepare, settings: Settings) -> Call:
        """The op, launched with these settings."""
        row = Row(problem.kernel, self.size, {}, problem.exactly, settings)
        with taking(row, self.arch):
            inner = prepare(self.ops, self.dtype)

        def call() -> Tensor | Activation:
            with taking(row, self.arch):
                return inner()

        return call

    def solve(self, problem: Problem, tried: Sequence[Settings]) -> Result:
        """Measure one problem.

        Args:
            problem: the problem.
            tried: the candidates, without the shipped settings.

        Raises: BackendError: a launch broke the device, or nothing runs.
        """
        on_device = torch.cuda.device(self.device) if self.device.type == "cuda" else None
        with torch.no_grad(), on_device or contextlib.nullcontext():
            return self._solve(problem, tried)

    def _solve(self, problem: Problem, tried: Sequence[Settings]) -> Result:
        shipped = template_of(problem, self.shipped)
        prepare = problem.make(Draw(self.dtype, self.device))
        truth = (NarrowTruth if self.narrow else Truth)(prepare, self.dtype)
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
                logger.warning("the shipped settings of %s cannot be used here: %s", what, why)
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
    """Format settings in one line."""
    return ", ".join(f"{name}={value}" for name, value in settings.fields.items())
