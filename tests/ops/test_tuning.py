"""The measuring of launch settings, in triton's interpreter and with times that are made up."""

from __future__ import annotations

import itertools
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nomicbert_kernels import BackendError, Ops, launch, select_ops, tiling
from nomicbert_kernels.launch import Row, Settings
from nomicbert_kernels.tuning import candidates as grid
from nomicbert_kernels.tuning import problems as measured
from nomicbert_kernels.tuning import tables, timing
from nomicbert_kernels.tuning.candidates import candidates, template_of
from nomicbert_kernels.tuning.problems import KERNELS, LEADING, Draw, Model, Problem, problems
from nomicbert_kernels.tuning.search import Result, Search, Truth

pytest.importorskip("triton", minversion="3.6")

ARCH = launch.INTERPRETER
CPU = torch.device("cpu")
GATED = Model("gated", 32, 2, 48, "swiglu", True, True, False)
PLAIN = Model("plain", 32, 2, 48, "gelu", False, False, True)
MIXED = Model("mixed", 16, 1, 24, "gelu", True, True, True, 3, 2)
ARCHITECTURES = (*launch.SHARED_MEMORY, "sm_103")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Problems of a few rows, and a folder of tables for each test."""
    monkeypatch.setattr(measured, "LIMITS", (8,))
    monkeypatch.setattr(measured, "LARGE", 20)
    monkeypatch.setattr(measured, "LONG_TEXTS", (40,))
    monkeypatch.setattr(measured, "SHORT_TEXTS", (6, 8))
    monkeypatch.setattr(tiling, "SHORT", 8)
    monkeypatch.setenv("NOMICBERT_LAUNCH", str(tmp_path / "launch"))
    launch.table.cache_clear()
    yield
    launch.table.cache_clear()


@pytest.fixture
def ops() -> Ops:
    return select_ops("cpu", torch.float32, "triton")


class Clock:
    """A timer that runs each call, sees which settings it looks up, and gives them a price."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        kernel: str,
        price: Callable[[Settings], float],
        noise: float = 0.0,
    ) -> None:
        self.price, self.noise = price, noise
        self.calls: list[int] = []
        self.seen: list[Settings] = []
        look_up = launch.settings

        def settings(name: str, *args: Any, **sizes: int) -> Settings:
            found = look_up(name, *args, **sizes)
            if name == kernel:
                self.seen.append(found)
            return found

        monkeypatch.setattr(launch, "settings", settings)

    def __call__(self, calls: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
        self.calls.append(len(calls))
        times = []
        for call in calls:
            self.seen.clear()
            call()
            price = self.price(self.seen[-1])
            times.append([price + self.noise * (each % 5) for each in range(rounds)])
        return times


def only(kernel: str, *models: Model, rows: int | None = 20) -> Problem:
    """The problem of a kernel, the last one of a number of rows."""
    shipped = tables.shipped_rows(ARCH, 4)
    name = kernel.partition("_")[0] if kernel.startswith("attention") else kernel
    found = problems(models or (GATED,), [name], shipped)
    return next(p for p in reversed(found) if p.kernel == kernel and p.rows == rows)


def varied(problem: Problem, **choices: Sequence[Any]) -> list[Settings]:
    """The shipped settings with every combination of some constants."""
    shipped = template_of(problem, tables.shipped_rows(ARCH, 4))
    found = [
        replace(shipped, constants={**shipped.constants, **dict(zip(choices, values, strict=True))})
        for values in itertools.product(*choices.values())
    ]
    return [settings for settings in found if settings != shipped]


def search_of(ops: Ops, timer: timing.Timer, tick: Callable[[], object] = lambda: None) -> Search:
    return Search(ops, CPU, torch.float32, tables.shipped_rows(ARCH, 4), timer, tick)


def snapshot() -> dict[tuple[str, int], list[Row]]:
    return {key: [*rows] for key, rows in launch.table(ARCH).items() if rows}


@pytest.mark.parametrize("kernel", ["swiglu", "gelu", "linear", "qkv_rotary"])
def test_the_fastest_is_taken(kernel: str, ops: Ops, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that the clock favours, in whatever order it comes."""
    problem = only(kernel, PLAIN if kernel == "gelu" else GATED)
    tried = varied(problem, BLOCK_K=(16, 32), GROUP=(1, 2, 3))
    wanted = next(s for s in tried if (s["BLOCK_K"], s["GROUP"]) == (16, 3))
    clock = Clock(monkeypatch, kernel, lambda s: 3.0 if s == wanted else 10.0 + s["GROUP"])
    ticks: list[None] = []
    before = snapshot()
    result = search_of(ops, clock, lambda: ticks.append(None)).solve(problem, tried)
    assert (result.chosen, result.best_us, result.shipped_us) == (wanted, 3.0, 12.0)
    assert (result.tried, result.skipped, result.wrong) == (5, 0, ())
    assert clock.calls == [6, 5]  # all of them, then the four fastest and the shipped one
    assert len(ticks) == len(tried)
    assert snapshot() == before


@pytest.mark.parametrize("kernel", ["attention_short", "attention_long", "attention_rows"])
def test_attention_takes_the_settings(
    kernel: str, ops: Ops, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = only(kernel, rows=None)
    tried = varied(problem, BLOCK_N=(16, 64))
    clock = Clock(monkeypatch, kernel, lambda s: s["BLOCK_N"])
    result = search_of(ops, clock).solve(problem, tried)
    assert result.chosen is not None
    assert (result.chosen["BLOCK_N"], result.shipped_us) == (16, 32.0)


def test_attention_is_planned_with_the_settings(ops: Ops) -> None:
    problem = only("attention_short", rows=None)
    planned: list[int] = []

    def attention(qkv: Tensor, offsets: Tensor, plan: Any, *args: Any, **more: Any) -> Tensor:
        planned.append(plan.tiles.rows)
        return ops.attention(qkv, offsets, plan, *args, **more)

    search_of(
        replace(ops, attention=attention), lambda calls, rounds: [[1.0, 1.0] for _ in calls]
    ).solve(problem, varied(problem, BLOCK_M=(16,)))
    assert planned == [32, 16]


@pytest.mark.parametrize("up", [True, False])
def test_experts_take_the_settings_of_their_own_product(
    up: bool, ops: Ops, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = problems([MIXED], ["experts"], tables.shipped_rows(ARCH, 4))
    wanted = {"n": 24, "k": 16} if up else {"n": 16, "k": 24}
    problem = next(p for p in found if p.exactly == wanted and p.rows == 20)
    seen: list[tuple[dict[str, int], int]] = []
    look_up = launch.settings

    def settings(name: str, *args: Any, **sizes: int) -> Settings:
        found = look_up(name, *args, **sizes)
        if name == "experts":
            seen.append((sizes, found["BLOCK_N"]))
        return found

    monkeypatch.setattr(launch, "settings", settings)
    search_of(ops, lambda calls, rounds: [[1.0, 1.0] for _ in calls]).solve(
        problem, varied(problem, BLOCK_N=(16,))
    )
    at = {(sizes["n"], sizes["k"], block) for sizes, block in seen}
    other = problem.exactly["k"], problem.exactly["n"], 64
    assert at == {(problem.exactly["n"], problem.exactly["k"], n) for n in (16, 64)} | {other}
    assert {sizes["rows"] for sizes, _ in seen} == {20}


@pytest.mark.parametrize(("gain", "taken"), [(1.0, False), (1.9, False), (2.1, True)])
def test_a_gain_within_the_spread_is_none(
    gain: float, taken: bool, ops: Ops, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The middle half of times that rise in five steps of 1 is 2 wide."""
    problem = only("swiglu")
    tried = varied(problem, GROUP=(1,))
    clock = Clock(monkeypatch, "swiglu", lambda s: 20.0 - gain * (s["GROUP"] == 1), noise=1.0)
    result = search_of(ops, clock).solve(problem, tried)
    assert result.spread_us == pytest.approx(2.0)
    assert (result.chosen is not None) is taken


def test_the_second_measurement_decides(ops: Ops, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was lucky in the brief one is not taken for that."""
    problem = only("swiglu")
    tried = varied(problem, GROUP=(1, 3))
    price = {1: 1.0, 2: 10.0, 3: 5.0}
    clock = Clock(monkeypatch, "swiglu", lambda s: price[s["GROUP"]])

    def timer(calls: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
        times = clock(calls, rounds)
        price[1] = 50.0
        return times

    result = search_of(ops, timer).solve(problem, tried)
    assert result.chosen is not None
    assert result.chosen["GROUP"] == 3


def spoil(ops: Ops, wrong: Callable[[Tensor], Tensor]) -> Ops:
    """Ops whose swiglu is wrong under GROUP = 1 only."""

    def swiglu(x: Tensor, weight: Any) -> Tensor:
        y = ops.swiglu(x, weight)
        s = launch.settings("swiglu", x.device, x.dtype, rows=len(x), n=y.shape[1], k=x.shape[1])
        return wrong(y) if s["GROUP"] == 1 else y

    return replace(ops, swiglu=swiglu)


def nan_in_one(y: Tensor) -> Tensor:
    y[-1, -1] = float("nan")
    return y


WRONG = {
    "slightly": lambda y: y * (1 + 2e-5),
    "nan": nan_in_one,
    "dtype": lambda y: y.double(),
    "shape": lambda y: y[:-1],
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_values_are_dropped(wrong: str, ops: Ops, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = only("swiglu")
    tried = varied(problem, GROUP=(1, 3))
    clock = Clock(monkeypatch, "swiglu", lambda s: {1: 1.0, 2: 10.0, 3: 5.0}[s["GROUP"]])
    result = search_of(spoil(ops, WRONG[wrong]), clock).solve(problem, tried)
    assert [s["GROUP"] for s in result.wrong] == [1]
    assert result.chosen is not None
    assert result.chosen["GROUP"] == 3
    assert clock.calls == [2, 2]  # never timed


def test_rounding_is_no_fault(ops: Ops) -> None:
    """Errors such as another order of the sums makes are within the bound."""
    problem = only("swiglu")
    truth = Truth(problem.make(Draw(torch.float32, CPU)), torch.float32)
    eps = torch.finfo(torch.float32).eps
    assert truth.agrees((truth.exact * (1 + 2 * eps)).float())
    assert not truth.agrees((truth.exact * (1 + 100 * eps)).float())
    plain = problem.make(Draw(torch.float32, CPU))(
        select_ops("cpu", torch.float32, "torch"), torch.float32
    )()
    off = (plain.double() - truth.exact).abs().max().item()
    largest = truth.exact.abs().max().item()
    assert truth.allowed == pytest.approx(2 * off + 4 * eps * largest)


def test_what_does_not_run_is_skipped(ops: Ops, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that is no power of two, and what a compiler and a device refuse."""
    import triton
    from triton.runtime.errors import OutOfResources

    problem = only("swiglu")
    tried = varied(problem, BLOCK_M=(24, 16), GROUP=(1, 3, 4, 5))
    errors = {
        3: OutOfResources(300_000, 232_448, "shared memory"),
        4: RuntimeError("PassManager::run failed"),
        5: AssertionError("a check of the compiler"),
    }
    assert isinstance(errors[3], triton.TritonError)

    def swiglu(x: Tensor, weight: Any) -> Tensor:
        s = launch.settings("swiglu", x.device, x.dtype, rows=len(x), n=48, k=32)
        if s["GROUP"] in errors:
            raise errors[s["GROUP"]]
        return ops.swiglu(x, weight)

    clock = Clock(monkeypatch, "swiglu", lambda s: float(s["BLOCK_M"]))
    result = search_of(replace(ops, swiglu=swiglu), clock).solve(problem, tried)
    assert (result.tried, result.skipped) == (8, 7)
    assert result.chosen is not None
    assert (result.chosen["BLOCK_M"], result.chosen["GROUP"]) == (16, 1)
    assert clock.calls == [2, 2]


def test_a_shipped_row_of_no_use(
    ops: Ops, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The best of the others is taken, and nobody claims to know by how much it is faster."""
    problem = only("swiglu")
    tried = varied(problem, GROUP=(1, 3))
    flip = {1: 2, 2: 1, 3: 3}  # so that it is the shipped one which is spoilt

    def swiglu(x: Tensor, weight: Any) -> Tensor:
        s = launch.settings("swiglu", x.device, x.dtype, rows=len(x), n=48, k=32)
        return ops.swiglu(x, weight) * (2 if flip[s["GROUP"]] == 1 else 1)

    clock = Clock(monkeypatch, "swiglu", lambda s: float(s["GROUP"]))
    result = search_of(replace(ops, swiglu=swiglu), clock).solve(problem, tried)
    assert result.shipped_us is None
    assert result.chosen is not None
    assert result.chosen["GROUP"] == 1
    assert result.wrong == ()
    (message,) = caplog.messages
    assert "the shipped row of swiglu 48 x 32" in message
    assert "wrong values" in message


def test_nothing_runs(ops: Ops) -> None:
    def swiglu(x: Tensor, weight: Any) -> Tensor:
        raise RuntimeError("no such device")

    problem = only("swiglu")
    before = snapshot()
    with pytest.raises(BackendError, match=r"no settings of swiglu run on inter.*no such dev"):
        search_of(replace(ops, swiglu=swiglu), lambda calls, rounds: []).solve(
            problem, varied(problem, GROUP=(1,))
        )
    assert snapshot() == before


def test_a_mistake_of_ours_is_not_skipped(ops: Ops) -> None:
    def swiglu(x: Tensor, weight: Any) -> Tensor:
        raise TypeError("called wrongly")

    problem = only("swiglu")
    before = snapshot()
    with pytest.raises(TypeError):
        search_of(replace(ops, swiglu=swiglu), lambda calls, rounds: []).solve(problem, [])
    assert snapshot() == before


def test_calls_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time lies between the two events around its own call, and no call is always first."""
    now, order = itertools.count(), []
    length = {"a": 3, "b": 5, "c": 7}

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = next(now)

        def elapsed_time(self, end: Event) -> float:
            return (end.at - self.at) / 1000

    def call(name: str) -> Callable[[], None]:
        def run() -> None:
            order.append(name)
            for _ in range(length[name] - 1):
                next(now)

        return run

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: order.append("-"))
    monkeypatch.setattr(timing, "FLUSHED", 16)
    times = timing.gpu_timer(CPU)([call(name) for name in "abc"], 3)
    assert times == [[pytest.approx(length[name])] * 3 for name in "abc"]
    assert "".join(order) == "-a-b-c-b-c-a-c-a-b"  # the GPU waits before each


def test_spread_is_the_middle_half() -> None:
    assert timing.spread([1.0, 2.0, 3.0, 4.0, 100.0]) == 2.0
    assert timing.spread([5.0] * 9) == 0.0


def sizes_of(*models: Model, kernels: Sequence[str] = KERNELS) -> set[tuple[Any, ...]]:
    found = problems(models, kernels, [])
    return {(p.kernel, *p.exactly.values()) for p in found}


ATTENTION_16 = {(f"attention_{name}", 16) for name in ("short", "long", "rows")}


def test_the_sizes_of_a_model() -> None:
    products = {("linear", 32, 32), ("linear", 32, 48)}
    assert sizes_of(GATED) == {
        ("qkv_rotary", 96, 32),
        ("swiglu", 48, 32),
        *products,
        *ATTENTION_16,
    }
    assert sizes_of(PLAIN) == {("linear", 96, 32), ("gelu", 48, 32), *products, *ATTENTION_16}
    # angles that follow the library's product leave nothing to set
    apart = replace(GATED, fused_rotary=False)
    assert sizes_of(apart) == sizes_of(GATED) - {("qkv_rotary", 96, 32)}
    assert sizes_of(MIXED, kernels=["experts"]) == {("experts", 24, 16), ("experts", 16, 24)}


def test_each_size_is_measured_once() -> None:
    once = problems([GATED], KERNELS, [])
    assert problems([GATED, GATED], KERNELS, []) == once
    keys = [(p.kernel, *p.exactly.items(), p.up_to) for p in problems(LEADING, KERNELS, [])]
    assert len(keys) == len(set(keys))


def test_limits_of_the_shipped_rows_count() -> None:
    """Within one problem the shipped table has one answer."""
    rows = [
        Row("swiglu", 4, {"rows": 5}, {}, Settings()),
        Row("gelu", 4, {"rows": 6}, {}, Settings()),
        Row("swiglu", 4, {}, {}, Settings()),
    ]
    found = [(p.up_to, p.rows) for p in problems([GATED], ["swiglu"], rows)]
    assert found == [(5, 5), (8, 8), (None, 20)]


def test_draws_repeat() -> None:
    first, again = Draw(torch.float16, CPU), Draw(torch.float16, CPU)
    assert torch.equal(first(3, 4), again(3, 4))
    assert first(2).dtype == torch.float16


def test_tokens_of_a_mixture_are_sent_clearly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their experts are the same in the dtype and in fp64."""
    monkeypatch.setattr(measured, "CLEAR", 0.05)
    call = measured.experts(MIXED, 40, Draw(torch.float16, CPU))(
        select_ops("cpu", torch.float16, "reference"), torch.float64
    )
    x, router = call.args[0], call.args[1].source  # type: ignore[attr-defined]
    shares = torch.softmax(x @ router.T, dim=1).sort(descending=True).values
    assert x.shape == (20, 16)
    assert (shares[:, 1] - shares[:, 2]).min() > measured.CLEAR / 2


@pytest.fixture(params=ARCHITECTURES)
def arch(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("quick", [False, True])
def test_candidates_fit(arch: str, size: int, quick: bool) -> None:
    shipped = tables.shipped_rows(arch, size)
    limit = launch.SHARED_MEMORY.get(arch, grid.LEAST_SHARED)
    for problem in problems(LEADING, KERNELS, shipped):
        template = template_of(problem, shipped)
        found = candidates(problem, shipped, arch, size, quick)
        assert template not in found
        assert len({json.dumps([dict(s.keywords), s.library]) for s in found}) == len(found)
        assert found, problem
        assert len(found) <= (10 if quick else 80)
        library = [s for s in found if s.library]
        assert len(library) == (problem.kernel in grid.WITH_LIBRARY and not template.library)
        for s in found:
            if s.library:
                continue
            assert set(s.constants) == set(template.constants)
            same = set(s.constants) - {"BLOCK_M", "BLOCK_N", "BLOCK_K", "DESCRIPTORS", "FLATTEN"}
            assert all(s[name] == template[name] for name in same)
            assert not (s.constants.get("DESCRIPTORS") and arch in ("sm_80", "sm_86", "gfx942"))
            stages = s.options["num_stages"]
            if problem.kernel.startswith("attention"):
                head = problem.exactly["head_dim"]
                used = (s["BLOCK_M"] + 2 * stages * s["BLOCK_N"]) * head * size
            else:
                weights = 2 if problem.kernel == "swiglu" else 1
                used = stages * (s["BLOCK_M"] + weights * s["BLOCK_N"]) * s["BLOCK_K"] * size
            assert used <= limit
            if problem.kernel == "qkv_rotary":
                assert s["BLOCK_N"] % problem.whole == 0


def tile_of(s: Settings) -> tuple[int, ...]:
    return s["BLOCK_M"], s["BLOCK_N"], s.constants.get("BLOCK_K", 0)


def test_quick_tries_a_part(arch: str) -> None:
    shipped = tables.shipped_rows(arch, 2)
    for problem in problems(LEADING, KERNELS, shipped):
        some = candidates(problem, shipped, arch, 2, quick=True)
        whole = candidates(problem, shipped, arch, 2)
        assert len(some) <= len(whole)
        assert {tile_of(s) for s in some} == {tile_of(s) for s in whole}


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("head_dim", [16, 32, 64, 128, 256])
def test_tiles_of_short_and_long_texts_stay_apart(arch: str, head_dim: int, size: int) -> None:
    """Whichever of the two is taken, a tile of long texts is launched with its own settings."""
    shipped = tables.shipped_rows(arch, size)
    one = Model("one", head_dim, 1, 64, "gelu", False, False, False)
    found = {p.kernel: p for p in problems([one], ["attention"], shipped)}
    tiles = {}
    for kind in ("short", "long"):
        problem = found[f"attention_{kind}"]
        tried = candidates(problem, shipped, arch, size)
        tiles[kind] = {s["BLOCK_M"] for s in tried}, template_of(problem, shipped)["BLOCK_M"]
    (short, shipped_short), (long, shipped_long) = tiles["short"], tiles["long"]
    assert all(m > n for m in long for n in {*short, shipped_short})
    if shipped_short < shipped_long:
        assert all(n < shipped_long for n in short)


def test_a_kernel_without_a_shipped_row() -> None:
    with pytest.raises(LookupError, match="swiglu"):
        candidates(only("swiglu"), [], ARCH, 4)


def result_of(problem: Problem, chosen: Settings | None, us: float = 5.0) -> Result:
    shipped = template_of(problem, tables.shipped_rows(ARCH, 4))
    return Result(problem, shipped, 10.0, us, 0.1, chosen, 3, 0, ())


def both(kernel: str, *models: Model) -> tuple[Problem, Problem]:
    """Few rows and many."""
    return only(kernel, *models, rows=8), only(kernel, *models, rows=20)


ABOUT = {"device": "a device", "triton": "3.9.0"}


def look_up(rows: int, n: int = 48, k: int = 32, kernel: str = "swiglu") -> Settings:
    return launch.settings(kernel, CPU, torch.float32, rows=rows, n=n, k=k)


def write(results: Sequence[Result], triton: str = "3.9.0") -> Path:
    earlier = tables.read_tuned(ARCH, triton)
    return tables.write(ARCH, tables.merge(results, earlier, 4, triton), ABOUT)


def test_what_is_written_is_read_first() -> None:
    few, many = both("swiglu")
    shipped = look_up(20)
    first, second = varied(many, GROUP=(5, 6))
    path = write([result_of(few, first), result_of(many, second)])
    assert path == launch.tuned_folder() / "interpreter.json"
    assert [look_up(rows) for rows in (1, 8, 9, 5000)] == [first, first, second, second]
    assert look_up(20, n=49) == shipped
    assert launch.settings("swiglu", CPU, torch.float16, rows=8, n=48, k=32) != first
    stored = json.loads(path.read_text())
    assert {key: stored[key] for key in ABOUT} == ABOUT
    assert (stored["rows"][0]["us"], stored["rows"][0]["shipped_us"]) == (5.0, 10.0)


def test_the_library_is_written_too() -> None:
    (few, many), shipped = both("swiglu"), look_up(20)
    library = replace(shipped, library=True)
    write([result_of(few, None), result_of(many, library)])
    assert look_up(9) == library
    assert look_up(8) == shipped  # which the wider row would have replaced


def test_what_is_kept_is_not_written() -> None:
    """A later shipped table is then followed."""
    few, many = both("swiglu")
    (faster,) = varied(many, GROUP=(5,))
    path = write([result_of(few, faster), result_of(many, None)])
    assert [row.get("up_to") for row in json.loads(path.read_text())["rows"]] == [{"rows": 8}]
    assert look_up(9) == template_of(many, tables.shipped_rows(ARCH, 4))
    write([result_of(few, None), result_of(many, None)])
    assert json.loads(path.read_text())["rows"] == []


def test_sizes_that_were_not_measured_stay() -> None:
    few, many = both("swiglu")
    other = only("gelu", PLAIN)
    (five,), (six,), (seven,) = (
        varied(p, GROUP=(g,)) for p, g in ((many, 5), (many, 6), (other, 7))
    )
    write([result_of(few, five), result_of(many, five)])
    write([result_of(other, seven)])
    assert look_up(9) == five
    write([result_of(few, None), result_of(many, six)])
    assert (look_up(9), look_up(9, kernel="gelu")) == (six, seven)


def test_a_row_of_the_users_own_stays_behind() -> None:
    """One for all sizes would hide what has been measured for one."""
    problem = only("swiglu")
    (five,) = varied(problem, GROUP=(5,))
    own = {"kernel": "swiglu", "bytes": 4, **five.keywords, "GROUP": 9}
    tables.write(ARCH, [own], ABOUT)
    write([result_of(problem, five)])
    assert look_up(20) == five
    assert look_up(20, n=49)["GROUP"] == 9


def test_attention_has_one_row_for_all() -> None:
    problem = only("attention_short", rows=None)
    (chosen,) = varied(problem, BLOCK_N=(16,))
    write([result_of(problem, chosen)])
    assert launch.settings("attention_short", CPU, torch.float32, head_dim=16) == chosen
    assert launch.settings("attention_short", CPU, torch.float32, head_dim=64) != chosen


def test_rows_of_another_triton_are_named(caplog: pytest.LogCaptureFixture) -> None:
    problem = only("swiglu")
    (chosen,) = varied(problem, GROUP=(5,))
    path = write([result_of(problem, chosen)], triton="3.6.0")
    caplog.clear()
    assert tables.read_tuned(ARCH, "3.6.0")
    assert not caplog.messages
    assert tables.read_tuned(ARCH, "3.9.0")
    (message,) = caplog.messages
    assert str(path) in message
    assert "3.6.0" in message
    assert "this is 3.9.0" in message
    assert look_up(20) == chosen


@pytest.mark.parametrize("at", ["write", "fsync", "replace"])
def test_killed_half_way_the_old_table_is_there(at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = only("swiglu")
    five, six = varied(problem, GROUP=(5, 6))
    path = write([result_of(problem, five)])
    old = path.read_bytes()

    def killed(*args: Any) -> None:
        raise SystemExit(143)

    with monkeypatch.context() as patch:
        if at == "write":
            patch.setattr(json, "dumps", killed)
        else:
            patch.setattr(os, at, killed)
        with pytest.raises(SystemExit):
            write([result_of(problem, six)])
    assert path.read_bytes() == old
    assert [*path.parent.iterdir()] == [path]
    assert look_up(20) == five


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NOMICBERT_LAUNCH", str(tmp_path / "file/launch"))
    with pytest.raises(OSError, match="NOMICBERT_LAUNCH") as raised:
        tables.check_writable(ARCH)
    assert raised.value.filename == str(tmp_path / "file/launch/interpreter.json")


def test_looking_leaves_nothing_behind() -> None:
    tables.check_writable(ARCH)
    assert [*launch.tuned_folder().iterdir()] == []


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"rows": 3}', '{"rows": [3]}', '{"rows": [{"bytes": 2}]}']
)
def test_a_broken_table_is_named(text: str) -> None:
    path = launch.tuned_folder() / "interpreter.json"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(ValueError, match="is no launch table") as raised:
        tables.read_tuned(ARCH, "3.9.0")
    assert str(path) in str(raised.value)


def test_a_skipped_candidate_is_told_to_who_asks(
    ops: Ops, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "nomicbert_kernels.tuning.search")
    problem = only("swiglu")
    search_of(ops, lambda calls, rounds: [[1.0, 1.0] for _ in calls]).solve(
        problem, varied(problem, BLOCK_M=(24,))
    )
    assert any("BLOCK_M=24" in message for message in caplog.messages)
