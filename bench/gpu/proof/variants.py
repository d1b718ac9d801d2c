"""Launch settings raced against the shipped ones, from a table that is data: variants.json.

A contest is an op of a model in several sizes with named variants. A variant changes the shipped
launch row ("BLOCK_N": 256, "library": true) or a constant of a kernel module ("module":
{"layer_norm_triton.WARP_COLUMNS": 512}). Each variant is compared with fp64, then timed round-robin
with the shipped form. `winners` decides which rows are taken.
"""

import contextlib
import functools
import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from bench import problems
from bench.gpu import ops
from bench.gpu.forms import FP8, ROUNDED, Asked, widths
from bench.gpu.layer import layer
from bench.gpu.place import Place
from bench.gpu.proof.cases import case, matched
from bench.gpu.proof.parity import of_specification
from bench.gpu.proof.winners import FEW, plain, write_table
from bench.gpu.race import Task, contest, facts_of
from bench.gpu.runner.child import Case, Facts
from bench.gpu.runner.ledger import OK, Ledger, ends
from bench.harness import OURS, Peer, WrongValues
from bench.problem import Call, Draw, Problem, Tensors
from nomicbert_kernels import launch, select_ops, values
from nomicbert_kernels.backend import FP8_REFERENCE
from nomicbert_kernels.launch import OPTIONS, Row, Settings
from nomicbert_kernels.tuning.search import taking

TABLE = Path(__file__).with_name("variants.json")
STAGE = "variants"
DRY_SIZES = {"few": 20, "many": 70}
# Ops whose sizes are texts.
OF_TEXTS = {"attention": problems.attention, "layer": layer}
# 260 tokens are enough for the kernel of long texts.
DRY_TEXTS = {"attention_short": [40, 7], "attention_long": [260, 7], "": [20]}


@dataclass(frozen=True)
class Contest:
    """An op in several sizes, and its variants.

    Attributes:
        op: as `bench.gpu.ops` names it, or one of OF_TEXTS.
        kernel: whose launch row the variants change; empty if they change modules only.
        bytes: per element of the kernel's input; 1 selects backend "fp8".
        sizes: tokens, or "N x LENGTH" texts.
        variants: name -> changes.
    """

    name: str
    op: str
    model: str
    sizes: Sequence[int | str]
    variants: Mapping[str, Mapping[str, Any]]
    kernel: str = ""
    bytes: int = 2

    def is_few(self, size: int | str) -> bool:
        """Whether launch tables have separate rows for this size."""
        return isinstance(size, int) and size <= FEW


def contests() -> list[Contest]:
    """The contests of variants.json."""
    known = json.loads(TABLE.read_text("utf-8"))["contests"]
    return [Contest(**one) for one in known]


def cases(stage: str, options: Facts) -> Sequence[Case]:
    """A case per contest and size."""
    place = Place.here(options["dry"])
    out, ledger = Path(options["out"]), Ledger(Path(options["ledger"]))
    found = [
        case(
            place,
            f"{one.name}, {size}",
            functools.partial(run_contest, place, one, size, ledger, out),
            3.0,
        )
        for one in contests()
        for size in one.sizes
    ]
    return matched(found, options)


def run_contest(place: Place, one: Contest, size: int | str, ledger: Ledger, out: Path) -> Facts:
    """Run one contest at one size, then rewrite the table of winners."""
    (model,) = place.models(one.model)
    problem, peers = problem_of(place, one, size, place.bench.draw())
    rows = dict(rows_of(place, one, problem, size))
    calls = {
        name: functools.partial(bound, place, one, problem, rows.get(name), changes)
        for name, changes in one.variants.items()
    }
    entrants = {name: Peer(call, values) for name, call in calls.items()}
    if one.op == "linear, layer_norm":
        entrants |= {"ours, residual in linear": Peer(residual_in_linear(place))}
    task = Task(
        "variants", model.name, f"{one.name}, {size}", "variants", problem.tokens, problem.flops,
        problem.bytes,
    )  # fmt: skip
    if one.bytes == 1:
        calls = {FP8: functools.partial(bound, place, one, problem, None, {}), **calls}
        narrow = {name: by_specification(one, problem, call) for name, call in calls.items()}
        lines = contest(place, task, problem, peers, narrow=narrow)
    else:
        lines = contest(place, task, problem, peers, entrants)
    facts = facts_of(lines) | {
        "contest": one.name,
        "size": size,
        "sizes": len(one.sizes),
        "ours": OURS if one.bytes == 2 else FP8,
        "variants": [*entrants],
        "rows": {name: plain(row) for name, row in rows.items()},
    }
    before = [line for key, line in ends(ledger.lines()).items() if key[0] == STAGE]
    write_table(place, [*before, {"status": OK, **facts}], out)
    return facts


def problem_of(
    place: Place, one: Contest, size: int | str, draw: Draw
) -> tuple[Problem, Mapping[str, Peer]]:
    """The problem and its peers, plain torch first."""
    (model,) = place.models(one.model)
    if isinstance(size, str):
        count, length = map(int, size.split(" x "))
        lengths = DRY_TEXTS[one.kernel] if place.dry else [length] * count
        problem = OF_TEXTS[one.op](model, draw, lengths)
        return problem, {"torch": Peer(functools.partial(problem.bind, torch_ops(place)))}
    if place.dry:
        size = DRY_SIZES["few"] if one.is_few(size) else DRY_SIZES["many"]
    problem, peers = ops.makers(model)[one.op](model, draw, size)
    # torch.compile takes too long here; stages peers and compiled have it
    return problem, {name: replace(peer, compiled=False) for name, peer in peers.items()}


def torch_ops(place: Place) -> Any:
    """The ops of backend torch."""
    return select_ops(place.device, place.dtype, "torch")


def rows_of(
    place: Place, one: Contest, problem: Problem, size: int | str
) -> Iterator[tuple[str, Row]]:
    """Launch row of each variant, for the widths of the problem."""
    if not one.kernel:
        return
    sizes = widths(one.kernel, problem)
    shipped = shipped_settings(place, one, problem, sizes)
    up_to = {"rows": FEW} if one.is_few(size) else {}
    for name, changes in one.variants.items():
        yield name, Row(one.kernel, one.bytes, up_to, sizes, changed(shipped, changes))


def shipped_settings(
    place: Place, one: Contest, problem: Problem, sizes: Mapping[str, int]
) -> Settings:
    """Settings that the kernel of a contest is launched with now."""
    dtype = torch.float8_e4m3fn if one.bytes == 1 else place.dtype
    many = {} if one.kernel.startswith("attention") else {"rows": problem.tokens}
    return launch.settings(one.kernel, place.device, dtype, **many, **sizes)


def changed(shipped: Settings, changes: Mapping[str, Any]) -> Settings:
    """Settings with some of them replaced."""
    constants = {name: value for name, value in changes.items() if name.isupper()}
    options = {name: changes[name] for name in OPTIONS if name in changes}
    unknown = set(constants) - set(shipped.constants)
    if unknown:
        raise ValueError(f"the shipped row has no {', '.join(sorted(unknown))}")
    constants = {**shipped.constants, **constants}
    programs = shipped.programs if constants.get("FLATTEN") else 1
    return Settings(
        constants,
        {**shipped.options, **options},
        changes.get("library", shipped.library),
        changes.get("programs", programs),
    )


def bound(
    place: Place,
    one: Contest,
    problem: Problem,
    row: Row | None,
    changes: Mapping[str, Any],
    t: Tensors,
) -> Call:
    """The call of a variant; it raises RuntimeError if its row was not looked up."""
    asked = None if row is None else Asked(row.kernel, row.bytes, {}, {}, row.settings)
    arch = launch.architecture(place.device)

    @contextlib.contextmanager
    def applied() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if asked is not None:
                stack.enter_context(taking(asked, arch))
            for name, value in changes.get("module", {}).items():
                module, _, attribute = name.rpartition(".")
                owner = importlib.import_module(f"nomicbert_kernels.{module}")
                stack.enter_context(mock.patch.object(owner, attribute, value))
            yield

    with applied():
        call = problem.bind(ops_of(place, one), inputs(one, t))

    def launched() -> Tensor:
        with applied():
            found = call()
        if asked is not None and not asked.met:
            raise RuntimeError(f"no launch of {asked.kernel} has asked for settings")
        return found

    return launched


def inputs(one: Contest, t: Tensors) -> Any:
    """The inputs of a contest's op, with x rounded to e4m3 for backend "fp8"."""
    return t | {"x": ROUNDED.get(one.op, lambda x: x)(t["x"])} if one.bytes == 1 else t


def by_specification(one: Contest, problem: Problem, call: Callable[[Tensors], Call]) -> Peer:
    """A peer in fp8 whose results are compared with the specification before it is timed."""
    wanted = problem.bind(FP8_REFERENCE, inputs(one, problem.tensors))()

    def checked(t: Tensors) -> Call:
        found = call(t)
        error, most = of_specification(found(), wanted)
        if not error <= most:
            raise WrongValues(f"off by {error:.3g} of its size, allowed {most}")
        return found

    return Peer(checked, values)


def ops_of(place: Place, one: Contest) -> Any:
    """The ops of a contest."""
    return place.ops if one.bytes == 2 else select_ops(place.device, place.dtype, "fp8")


def residual_in_linear(place: Place) -> Any:
    """A linear layer with residual, followed by LayerNorm without it."""

    def call(t: Tensors) -> Call:
        weight = place.ops.prepare(t["weight"], t.get("bias"), "linear")

        def run() -> Tensor:
            y = place.ops.linear(t["x"], weight, t["residual"])
            return values(place.ops.layer_norm(y, t["norm"], t["shift"], problems.EPS))

        return run

    return call
