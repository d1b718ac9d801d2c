"""Throughput of whole models: ours alone, under two launch tables, and against other libraries."""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.gpu import attention, ops
from bench.gpu.models import Models
from bench.gpu.place import Place, compile_or_fail
from bench.gpu.proof.cases import case, interleaved, matched
from bench.gpu.rivals import Budgets, Rival, row, rows
from bench.gpu.runner.child import Case, Facts
from bench.throughput import MODELS
from nomicbert.benchmark.batching import Batching, by_count, by_tokens
from nomicbert.benchmark.peers import AbsentError, Runner, Setting
from nomicbert.benchmark.torch_peers import FromTexts, Native
from nomicbert.benchmark.workloads import Case as Texts
from nomicbert.embedder import Embedder
from nomicbert_kernels import launch
from nomicbert_kernels.launch import Row

MODEL = MODELS[0]
TUNED = "ours, tuned"
HEADLINES = ("fixed-512", "fixed-128", "fixed-32", "fixed-2048", "fixed-8192", "passages",
             "queries", "mixture")  # fmt: skip
LATENCY = "latency-32"
TUNED_CASES = ("fixed-512", "fixed-128")
COMPILED = ("fixed-512", "fixed-128")
PEERS = ("fixed-512", "fixed-128", "passages", "queries")
# Cases of attention against other kernels.
PEER_TEXTS, DRY_TEXTS = ("S=512", "S=128"), ("S=8",)
# Estimated seconds of a case on one H200; the first case of a stage also loads the models.
SECONDS, FIRST_SECONDS = 5.0, 6.0
MORE_SECONDS = {"mixture": 12.0, "queries": 8.0, LATENCY: 10.0}
# Fewer tokens for the peers: batches of 32 queries would take half a minute.
FEWER = {"queries": 16384}
# Padded tokens per batch of transformers; texts per batch of sentence-transformers, the faster of
# which counts.
PADDED, COUNTS = 65536, (128, 512)
ROUNDS = 7


class Fixed(Native):
    """transformers in batches of PADDED tokens."""

    def __init__(self, setting: Setting, dtype: str, compiled: bool = False) -> None:
        """Load it; torch.compile does its work when it is called."""
        if compiled:
            compile_or_fail()
        super().__init__(setting, dtype, None, compiled=compiled)

    def ways(self, case: Texts) -> list[Batching]:
        """See Runner."""
        return [by_tokens(case.lengths, PADDED)]


class FixedTexts(FromTexts):
    """sentence-transformers in batches larger than its default."""

    def ways(self, case: Texts) -> list[Batching]:
        """See Runner."""
        return [by_count(case.lengths, count) for count in COUNTS]


class Tuned(Budgets):
    """Ours with the launch rows that have won."""

    def __init__(self, embedder: Embedder, table: Path) -> None:
        """Read the rows."""
        super().__init__(embedder)
        self.table = launch.table(table.stem)
        self.rows: dict[tuple[str, int], list[Row]] = {}
        for one in launch.read_table(table):
            self.rows.setdefault((one.kernel, one.bytes), []).append(one)

    def vectors(self, case: Texts, way: Batching) -> np.ndarray:
        """See Runner."""
        with self._tuned():
            return super().vectors(case, way)

    def shares(self, case: Texts, way: Batching) -> dict[str, float]:
        """See Ids."""
        with self._tuned():
            return super().shares(case, way)

    @contextlib.contextmanager
    def _tuned(self) -> Iterator[None]:
        # whole lists are exchanged: row by row it would cost a tenth of a query's time
        before = {key: self.table.get(key, []) for key in self.rows}
        self.table.update({key: rows + before[key] for key, rows in self.rows.items()})
        try:
            yield
        finally:
            self.table.update(before)


def inductor_cases(stage: str, options: Facts) -> Sequence[Case]:
    """Fill inductor's cache for transformers, so that stage compiled does not wait for it."""
    place = Place.here(options["dry"])

    def work() -> Facts:
        models = models_of(place, options, of_ours(place, ()))
        runner = Fixed(models.group("models", MODEL).setting, place.dtype_name, compiled=True)
        for name in ("fixed-128", "fixed-512"):
            texts = models.checkpoint(MODEL).case(name, PADDED, place.device)
            assert texts is not None
            runner.vectors(texts, runner.ways(texts)[0])
        return {}

    # on a CPU inductor would wait for a C++ compiler
    return matched([] if place.dry else [case(place, "transformers", work, 60.0)], options)


def headline_cases(stage: str, options: Facts) -> Sequence[Case]:
    """Ours alone, in its fastest batches."""
    place = Place.here(options["dry"])
    models = models_of(place, options, of_ours(place, ("ours", "ours-texts")))
    return races(place, models, (*HEADLINES, LATENCY), options)


def tuned_cases(stage: str, options: Facts) -> Sequence[Case]:
    """Ours with the shipped launch table and with the winning rows, interleaved."""
    place = Place.here(options["dry"])
    table = Path(options["out"]) / "launch" / f"{launch.architecture(place.device)}.json"

    def tuned(setting: Setting, dtype: str) -> Runner:
        if not table.is_file():
            raise AbsentError("no variant has won")
        keywords: Any = {"device": setting.device, "dtype": dtype, "backend": place.backend}
        return Tuned(Embedder.from_pretrained(setting.folder, **keywords), table)

    rivals = (*of_ours(place, ("ours",)), row(TUNED, place.dtype_name, tuned))
    return races(place, models_of(place, options, rivals), (*TUNED_CASES, LATENCY), options)


def peer_cases(stage: str, options: Facts) -> Sequence[Case]:
    """Ours against other libraries in fixed batches; then single ops against other kernels."""
    place = Place.here(options["dry"])
    rivals = (
        *of_ours(place, ("ours", "ours-texts", "sentence-transformers-32")),
        row("transformers", place.dtype_name, Fixed),
        row("sentence-transformers", place.dtype_name, FixedTexts),
    )
    found = races(place, models_of(place, options, rivals, FEWER), PEERS, options)
    wide = (ops.DRY_TOKENS if place.dry else ops.TOKENS)[0]
    wanted = {f"swiglu, {wide}", f"layer_norm, {wide}", *(DRY_TEXTS if place.dry else PEER_TEXTS)}
    for module in (ops, attention):
        for task in module.tasks(place):
            if task.model == "nomic" and task.case in wanted:
                work = functools.partial(
                    interleaved, functools.partial(module.measure, place), task
                )
                found.append(case(place, f"op {task.case}", work, 8.0 if module is ops else 3.0))
    return matched(found, options)


def compiled_cases(stage: str, options: Facts) -> Sequence[Case]:
    """Ours against torch.compile, in cases of their own, since compilation may take too long."""
    place = Place.here(options["dry"])
    if place.dry:
        return []
    make = functools.partial(Fixed, compiled=True)
    rivals = (*of_ours(place, ("ours",)), row("transformers-compile", place.dtype_name, make))
    found = races(place, models_of(place, options, rivals), COMPILED, options)
    # Dynamo traces twelve layers even where inductor's cache is filled
    return [replace(found[0], seconds=35.0), *found[1:]] if found else []


def of_ours(place: Place, names: Sequence[str]) -> tuple[Rival, ...]:
    """Rivals of the benchmark, by name."""
    known = rows(place.backend, place.dtype_name, latency=False, compiles=False, slow=False)
    return tuple(one for one in known if one.family in names)


def models_of(
    place: Place,
    options: Facts,
    rivals: tuple[Rival, ...],
    tokens: Mapping[str, int] | None = None,
) -> Models:
    """The leading model with these rivals; `tokens` replaces the benchmark's sizes."""
    scratch = Path(options["scratch"])
    return Models(place, [MODEL], scratch, rivals=rivals, rounds=ROUNDS, tokens=tokens or {})


def races(place: Place, models: Models, names: Sequence[str], options: Facts) -> list[Case]:
    """A case per workload; a dry run takes the tiny ones."""
    known = {task.case: task for part in ("models", "latency") for task in models.tasks(part)}
    tasks = known.values() if place.dry else [known[name] for name in names]
    found = [
        case(
            place,
            task.case,
            functools.partial(interleaved, models.measure, task),
            MORE_SECONDS.get(task.case, SECONDS) + (FIRST_SECONDS if number == 0 else 0.0),
        )
        for number, task in enumerate(tasks)
    ]
    return matched(found, options)
