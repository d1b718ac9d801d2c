"""The search for launch settings, in Triton's interpreter and with simulated times."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from nomicbert_kernels import Activation, BackendError, Ops, launch, select_ops, values
from nomicbert_kernels.launch import Row, Settings
from nomicbert_kernels.tuning import tables, timing
from nomicbert_kernels.tuning.candidates import template_of
from nomicbert_kernels.tuning.problems import Draw, problems
from nomicbert_kernels.tuning.search import Search, Truth
from tests.ops.tuning_cases import ARCH, CPU, GATED, MIXED, PLAIN, only, small, varied  # noqa: F401

pytest.importorskip("triton", minversion="3.6")


@pytest.fixture
def ops() -> Ops:
    return select_ops("cpu", torch.float32, "triton")


class Clock:
    """A timer that runs each call and computes its time from the settings it looks up."""

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


def search_of(ops: Ops, timer: timing.Timer, tick: Callable[[], object] = lambda: None) -> Search:
    return Search(ops, CPU, torch.float32, tables.shipped_rows(ARCH, 4), timer, tick)


def snapshot() -> dict[tuple[str, int], list[Row]]:
    return {key: [*rows] for key, rows in launch.table(ARCH).items() if rows}


@pytest.mark.parametrize("kernel", ["swiglu", "gelu", "linear", "qkv_rotary"])
def test_the_fastest_is_taken(kernel: str, ops: Ops, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fastest by the clock, in any order of the candidates."""
    problem = only(kernel, PLAIN if kernel == "gelu" else GATED)
    tried = varied(problem, BLOCK_K=(16, 32), GROUP=(1, 2, 3))
    wanted = next(s for s in tried if (s["BLOCK_K"], s["GROUP"]) == (16, 3))
    clock = Clock(monkeypatch, kernel, lambda s: 3.0 if s == wanted else 10.0 + s["GROUP"])
    ticks: list[None] = []
    before = snapshot()
    result = search_of(ops, clock, lambda: ticks.append(None)).solve(problem, tried)
    assert (result.chosen, result.best_us, result.shipped_us) == (wanted, 3.0, 12.0)
    assert (result.tried, result.skipped, result.wrong) == (5, 0, ())
    assert clock.calls == [
        6,
        5,
    ]  # first all of them, then the four fastest and the shipped settings
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
def test_a_gain_within_the_spread_is_ignored(
    gain: float, taken: bool, ops: Ops, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interquartile range of five times in steps of 1 is 2."""
    problem = only("swiglu")
    tried = varied(problem, GROUP=(1,))
    clock = Clock(monkeypatch, "swiglu", lambda s: 20.0 - gain * (s["GROUP"] == 1), noise=1.0)
    result = search_of(ops, clock).solve(problem, tried)
    assert result.spread_us == pytest.approx(2.0)
    assert (result.chosen is not None) is taken


def test_the_second_measurement_decides(ops: Ops, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lucky brief measurement is not enough."""
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


@pytest.mark.parametrize("kernel", ["linear", "swiglu", "gelu", "qkv_rotary"])
def test_rows_of_e4m3(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On backend "fp8": input rounded beforehand, rows of 1 byte, errors by the specification."""
    from tests.interpreter import fp8 as rounded

    rounded.install()
    ops = select_ops("cpu", torch.float16, "fp8")
    shipped = tables.shipped_rows(ARCH, 1)
    model = PLAIN if kernel == "gelu" else GATED
    found = problems([model], [kernel], shipped)
    # of linear the last one: the second half of the MLP
    problem = [p for p in found if p.rows == 20][-1]
    tried = [
        replace(s, constants={**s.constants, "GROUP": group})
        for s in [template_of(problem, shipped)]
        for group in (1, 3, 4)
    ]
    clock = Clock(monkeypatch, kernel, lambda s: float(s["GROUP"]))
    right = getattr(ops, kernel)
    seen: list[torch.dtype] = []

    def wrong_at_one(x: Activation, *args: Any) -> Tensor | Activation:
        seen.append(x.data.dtype)
        y = right(x, *args)
        spoilt = launch.table(ARCH)[kernel, 1][0].settings["GROUP"] == 1
        return (values(y, torch.float16) * 1.1).half() if spoilt else y

    search = Search(replace(ops, **{kernel: wrong_at_one}), CPU, torch.float16, shipped, clock)
    result = search.solve(problem, tried)
    assert [s["GROUP"] for s in result.wrong] == [1]
    assert (result.shipped_us, result.chosen) == (2.0, None)
    assert set(seen) == {torch.float8_e4m3fn}
    (row,) = tables.merge([replace(result, chosen=tried[1])], [], 1, "3.9")
    assert row["bytes"] == 1


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
    assert clock.calls == [2, 2]  # wrong candidates are never timed


def test_rounding_errors_are_accepted(ops: Ops) -> None:
    """Errors from another order of sums are within the bound."""
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


def test_candidates_that_do_not_run_are_skipped(ops: Ops, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that is not a power of two, and errors of the compiler and the device."""
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


def test_an_unusable_shipped_row(
    ops: Ops, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The best candidate is chosen, and no speedup is reported."""
    problem = only("swiglu")
    tried = varied(problem, GROUP=(1, 3))
    flip = {1: 2, 2: 1, 3: 3}  # so that the shipped settings are the wrong ones

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
    assert "the shipped settings of swiglu 48 x 32" in message
    assert "wrong values" in message


def test_no_settings_run(ops: Ops) -> None:
    def swiglu(x: Tensor, weight: Any) -> Tensor:
        raise RuntimeError("no such device")

    problem = only("swiglu")
    before = snapshot()
    with pytest.raises(BackendError, match=r"no settings of swiglu run on inter.*no such dev"):
        search_of(replace(ops, swiglu=swiglu), lambda calls, rounds: []).solve(
            problem, varied(problem, GROUP=(1,))
        )
    assert snapshot() == before


def test_a_programming_error_is_not_skipped(ops: Ops) -> None:
    def swiglu(x: Tensor, weight: Any) -> Tensor:
        raise TypeError("called wrongly")

    problem = only("swiglu")
    before = snapshot()
    with pytest.raises(TypeError):
        search_of(replace(ops, swiglu=swiglu), lambda calls, rounds: []).solve(problem, [])
    assert snapshot() == before


def test_calls_are_interleaved(monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert "".join(order) == "-a-b-c-b-c-a-c-a-b"  # the GPU sleeps before each call


def test_spread_is_the_middle_half() -> None:
    assert timing.spread([1.0, 2.0, 3.0, 4.0, 100.0]) == 2.0
    assert timing.spread([5.0] * 9) == 0.0


def test_a_skipped_candidate_is_logged_at_debug_level(
    ops: Ops, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "nomicbert_kernels.tuning.search")
    problem = only("swiglu")
    search_of(ops, lambda calls, rounds: [[1.0, 1.0] for _ in calls]).solve(
        problem, varied(problem, BLOCK_M=(24,))
    )
    assert any("BLOCK_M=24" in message for message in caplog.messages)
