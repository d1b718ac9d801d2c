"""Compare kernels on one case: check each result, then time all correct ones interleaved.

A candidate with a wrong result gets a line with the reason and no time.
"""

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from bench.gpu.place import Place, compile_or_fail
from bench.gpu.runner import ledger
from bench.gpu.runner.ledger import FAILED
from bench.harness import OURS, PEER_FACTOR, Peer, Timed, WrongValues
from bench.problem import Problem, error_and_bound
from bench.rooflines import ceilings
from bench.timing import Timing, Work, interleave
from nomicbert.benchmark.group import first_line
from nomicbert.benchmark.lines import ABSENT, MEASURED, WRONG, Line

# Bound of an fp8 result's error over its largest value: e4m3 rounds by up to 1/16.
FP8_ERROR = 0.1
# Fields of a case whose texts exceed the model's maximal length.
TOO_LONG: dict[str, Any] = {
    "lines": [],
    "said": "left out: its texts are too long for this model",
}
# Checks a candidate and returns its calls, or raises.
Enter = Callable[[], Timed]


@dataclass(frozen=True)
class Task:
    """One case of kernels.

    Attributes:
        part: of this benchmark.
        group: "gemm", "launch", "attention" or an op.
        tokens: without padding.
        flops: of the matmuls of one call.
        bytes: that a call has to read and write.
        more: further fields of its lines.
    """

    part: str
    model: str
    case: str
    group: str
    tokens: int = 0
    flops: float = 0.0
    bytes: float = 0.0
    more: Mapping[str, Any] | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """See nomicbert.benchmark.lines.block_of."""
        return self.model, self.case, self.group


def contest(
    place: Place,
    task: Task,
    problem: Problem,
    peers: Mapping[str, Peer],
    forms: Mapping[str, Peer] | None = None,
    narrow: Mapping[str, Peer] | None = None,
) -> list[Line]:
    """Time ours and its peers on a problem of one op.

    Args:
        place: the device, and how to measure on it.
        task: the case.
        problem: the problem that all candidates compute.
        peers: by name; the first is plain torch, whose error gives the bound.
        forms: other forms of ours, with the same bound as ours.
        narrow: candidates that compute in fp8.
    """
    bench = place.bench
    if bench.compiled:
        compile_or_fail()
    with torch.inference_mode():
        truth = problem.truth()
        first = next(iter(peers.values()))
        plain = first.read(first.call(problem.tensors)())
        _, bound = error_and_bound(plain, truth, plain)
        del plain
        coarse = FP8_ERROR * truth.abs().max().item()
        count = place.copies(problem.bytes)
        # all made in inference mode: otherwise torch.compile would recompile for the first
        copies = [problem.copy() for _ in range(count)]
        bind = functools.partial(problem.bind, place.ops)
        field = {OURS: (Peer(bind), bound)}
        field |= {name: (peer, bound) for name, peer in (forms or {}).items()}
        field |= {name: (peer, coarse) for name, peer in (narrow or {}).items()}
        for name, peer in bench.all_peers(problem, peers).items():
            field[name] = peer, PEER_FACTOR * bound
        entrants = {
            name: functools.partial(bench.proven, peer, copies, truth, allowed, name)
            for name, (peer, allowed) in field.items()
        }
        try:
            dtypes = dict.fromkeys(narrow or {}, "float8_e4m3fn")
            return run(place, task, entrants, {"bound": bound, "copies": count}, dtypes=dtypes)
        finally:
            # drop compiled peers: torch.compile limits the number of kept graphs
            place.tidy()


def run(
    place: Place,
    task: Task,
    entrants: Mapping[str, Enter],
    more: Mapping[str, Any] | None = None,
    *,
    dtypes: Mapping[str, str] | None = None,
    rounds: int | None = None,
    measure: Callable[[Work], float] | None = None,
) -> list[Line]:
    """Check all candidates, time the correct ones, and give the reason for each other one.

    Args:
        place: the device, and how to measure on it.
        task: the case.
        entrants: by name, in the order in which a round times them.
        more: further fields of the lines.
        dtypes: of candidates whose dtype is not the place's.
        rounds: overrides the place's, for calls that take a second or more.
        measure: overrides the place's.

    Raises: a device error after which no later call can succeed.
    """
    timed: dict[str, Timed] = {}
    left_out: dict[str, tuple[str, str]] = {}
    for name, enter in entrants.items():
        try:
            timed[name] = enter()
            # the first call on a copy may compile or allocate
            for call in timed[name].calls:
                call()
            place.finish()
        except WrongValues as error:
            left_out[name] = WRONG, first_line(error)
        except Exception as error:  # other libraries may raise anything
            place.finish()
            timed.pop(name, None)
            left_out[name] = ABSENT, f"{type(error).__name__}: {first_line(error)}"
    calls = {name: one.calls for name, one in timed.items()}
    turns = place.rounds if rounds is None else rounds
    times = interleave(calls, measure or place.measure, turns, place.seconds)
    around = place.around()
    lines = []
    for name in entrants:
        facts: Line = {"dtype": (dtypes or {}).get(name, place.dtype_name)}
        if name in times:
            # the roofline is of the place's dtype, and so are the bytes
            known = replace(task, bytes=0.0) if name in (dtypes or {}) else task
            facts |= figures(place, known, times[name], timed[name].error)
        else:
            facts["status"], facts["reason"] = left_out[name]
        lines.append(line(task, name, {**facts, **(more or {}), "repeats": turns}, around))
    return lines


def timed_work(work: Callable[[], Any], error: float = 0.0) -> Timed:
    """A candidate without copies, which need not return a tensor."""
    return Timed([work], error)


def line(task: Task, peer: str, facts: Mapping[str, Any], around: Line) -> Line:
    """One line of JSON."""
    return {
        "part": task.part,
        "model": task.model,
        "case": task.case,
        "group": task.group,
        "peer": peer,
        "status": MEASURED,
        "reason": None,
        "tokens": task.tokens,
        **(task.more or {}),
        **facts,
        **around,
    }


def figures(place: Place, task: Task, times: Timing, error: float) -> Line:
    """Median, spread, rates and roofline of a candidate's times."""
    median = times.median
    found: Line = {
        "error": error,
        "seconds": list(times.seconds),
        "median": median,
        "iqr": times.spread,
        "spread": times.spread / median,
    }
    if task.tokens:
        found["tokens_per_second"] = task.tokens / median
    if task.flops:
        found["flops"] = task.flops
        found["tflops"] = task.flops / median / 1e12
    if task.bytes:
        found["bytes"] = task.bytes
        found["gigabytes_per_second"] = task.bytes / median / 1e9
        best = ceilings(place.device, place.dtype, place.dry)
        found["roofline_percent"] = 100 * best.seconds(task.flops, task.bytes) / median
        found["limit"] = best.limit(task.flops, task.bytes)
    return found


def facts_of(lines: Sequence[Line]) -> dict[str, Any]:
    """Fields of a case: its lines, and the status of ours.

    The case is wrong if any form of ours is, and failed if the shipped form is absent.
    """
    found: dict[str, Any] = {"lines": [*lines], "said": in_words(lines)}
    for line in lines:
        mine = line["peer"] == OURS or line["peer"].startswith((f"{OURS},", f"{OURS}-"))
        if mine and line["status"] == WRONG:
            return found | {"status": ledger.WRONG, "reason": f"{line['peer']}: {line['reason']}"}
        if line["peer"] == OURS and line["status"] == ABSENT:
            return found | {"status": FAILED, "reason": line["reason"]}
    return found


def in_words(lines: Sequence[Line]) -> str:
    """The result of a case in one line, fastest candidate first."""
    measured = sorted(
        (x for x in lines if x["status"] == MEASURED),
        key=lambda x: statistics.median(x["seconds"]),
    )
    said = [f"{x['peer']} {amount(x)}" for x in measured]
    said += [f"{x['peer']}: {x['status']}" for x in lines if x["status"] != MEASURED]
    return ", ".join(said)


def amount(found: Line) -> str:
    """The most informative figure of a line."""
    if found.get("tflops"):
        return f"{found['tflops']:.3g} TFLOP/s"
    if found.get("p50"):
        return f"{1000 * found['p50']:.3g} ms"
    if found.get("gigabytes_per_second"):
        return f"{found['gigabytes_per_second']:,.4g} GB/s"
    if found.get("tokens_per_second"):
        return f"{found['tokens_per_second'] / 1e6:.3g} Mtok/s"
    return f"{1e6 * found['median']:.3g} us"
