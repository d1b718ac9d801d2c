"""Kernels against each other on one case: each is proven, then all are timed in turns.

One whose result is not the right one has a line that says so and no time.
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

# Error of a result in fp8 over its largest value, at most: e4m3 rounds a number by up to 1/16.
FP8_ERROR = 0.1
# Fields of a case that a model's maximal length rules out.
TOO_LONG: dict[str, Any] = {
    "lines": [],
    "said": "left out: its texts are too long for this model",
}
# Proves a candidate, and gives its calls; or raises.
Enter = Callable[[], Timed]


@dataclass(frozen=True)
class Task:
    """One case of kernels.

    Attributes:
        part: of this benchmark.
        group: "gemm", "launch", "attention" or an op.
        tokens: real ones.
        flops: of the matrix products, of one call.
        bytes: that a call has to read and write.
        more: what else its lines say.
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
        place: where.
        task: what.
        problem: what all compute.
        peers: by name; the first is plain torch, whose error gives the bound.
        forms: other forms of ours, held to the bound of ours.
        narrow: those that compute in fp8.
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
        # all made alike, in inference mode: torch.compile would tell the first from the others
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
            # compiled peers of the next case begin anew: there is a limit to their number
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
    """Prove all, time those that are right, and say of the others why they are not.

    Args:
        place: where.
        task: what.
        entrants: by name, in the order of their turns.
        more: what else the lines say.
        dtypes: of those whose dtype is not the place's.
        rounds: in place of the place's own, where a call takes a second or more.
        measure: in place of the place's own.

    Raises: what the device raises once it is beyond help.
    """
    timed: dict[str, Timed] = {}
    left_out: dict[str, tuple[str, str]] = {}
    for name, enter in entrants.items():
        try:
            timed[name] = enter()
            # a copy that is met for the first time may compile or allocate
            for call in timed[name].calls:
                call()
            place.finish()
        except WrongValues as error:
            left_out[name] = WRONG, first_line(error)
        except Exception as error:  # libraries of others raise whatever they like
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
    """Something to time that has no copies, and need not return a tensor."""
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
    """What the times of a candidate mean."""
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
    """Fields of a case: its lines, and how ours fared.

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
    """What is said of a case when it is done: the fastest first."""
    measured = sorted(
        (x for x in lines if x["status"] == MEASURED),
        key=lambda x: statistics.median(x["seconds"]),
    )
    said = [f"{x['peer']} {amount(x)}" for x in measured]
    said += [f"{x['peer']}: {x['status']}" for x in lines if x["status"] != MEASURED]
    return ", ".join(said)


def amount(found: Line) -> str:
    """The figure of a line that says most."""
    if found.get("tflops"):
        return f"{found['tflops']:.3g} TFLOP/s"
    if found.get("p50"):
        return f"{1000 * found['p50']:.3g} ms"
    if found.get("gigabytes_per_second"):
        return f"{found['gigabytes_per_second']:,.4g} GB/s"
    if found.get("tokens_per_second"):
        return f"{found['tokens_per_second'] / 1e6:.3g} Mtok/s"
    return f"{1e6 * found['median']:.3g} us"
