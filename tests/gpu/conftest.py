"""What holds for every test here: exact fp32 around it, poisoned results, and a report.

A test notes its error and its bound through `record`, which fails beyond the bound. Notes travel
with pytest's own reports, so that a failing test is in the file as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import problem
from tests.gpu.report import Report, results_folder
from tests.gpu.support import ARCHITECTURE, DEVICE, HAS_DEVICE, INTERPRETED

Record = Callable[..., None]
NOTES = "gpu records"
REPORTED = "gpu"
HERE = "tests/gpu/"
REPORT = pytest.StashKey[Report]()
BROKEN = pytest.StashKey[bool]()


# Files by what they are worth, where time may run out: values first, what takes minutes last.
ORDER = (
    "values", "graphs", "models", "gradients", "fp8", "rows", "determinism", "precision", "tuning",
    "report", "compiled", "sanitizer",
)  # fmt: skip
LAST = ("longest", "queries", "memcheck", "racecheck")


def rank(item: pytest.Item) -> tuple[bool, int]:
    """Where a test stands: a heavy case after all others."""
    name = item.path.stem.removeprefix("test_")
    heavy = any(word in item.name for word in LAST)
    return heavy, ORDER.index(name) if name in ORDER else len(ORDER)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    mine = sorted((item for item in items if item.path.parent == here), key=rank)
    rest = [item for item in items if item.path.parent != here]
    items[:] = [*mine, *rest]
    for item in items:
        if item.get_closest_marker("gpu"):
            # time on a GPU is dear: a library's new warning is no reason to lose a result
            item.add_marker(pytest.mark.filterwarnings("default"))
            item.user_properties.append((REPORTED, True))


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Iterator[Record]:
    """note(error, bound, op=, dtype=, check=): keep the figures; fail beyond the bound."""
    notes: list[dict[str, Any]] = []
    request.node.user_properties.append((NOTES, notes))

    def note(error: float, bound: float, **what: Any) -> None:
        words = {key: str(value).removeprefix("torch.") for key, value in what.items()}
        notes.append({**words, "error": float(error), "bound": float(bound)})
        assert error <= bound, f"off by {error:.3g}, allowed {bound:.3g}: {words}"

    return note


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """fp32 around the kernels is fp32, and 16-bit products are summed in fp32."""
    matmul = torch.backends.cuda.matmul
    before = torch.get_float32_matmul_precision()
    half = matmul.allow_fp16_reduced_precision_reduction
    brain = matmul.allow_bf16_reduced_precision_reduction
    torch.set_float32_matmul_precision("highest")
    matmul.allow_fp16_reduced_precision_reduction = False
    matmul.allow_bf16_reduced_precision_reduction = False
    yield
    torch.set_float32_matmul_precision(before)
    matmul.allow_fp16_reduced_precision_reduction = half
    matmul.allow_bf16_reduced_precision_reduction = brain


@pytest.fixture(autouse=True)
def free_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Wait for the device, so that an error of a kernel is of the test that launched it."""
    yield
    if torch.cuda.is_available():
        request.config.stash[BROKEN] = True
        torch.cuda.synchronize()
        request.config.stash[BROKEN] = False
        torch.cuda.empty_cache()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """After a CUDA error every call fails: under xdist another process does the other tests."""
    if item.config.stash.get(BROKEN, False) and hasattr(item.config, "workerinput"):
        os._exit(1)


@pytest.fixture(scope="session", autouse=True)
def exact_interpreter() -> None:
    """In the interpreter bf16 and the order of sums need help."""
    if INTERPRETED:
        from tests.interpreter import bf16, dot

        bf16.install()
        dot.install()


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that is handed out unfilled holds NaN: what a kernel leaves out shows."""
    with problem.poisoned():
        assert torch.zeros(1, device=DEVICE).new_empty(3).isnan().all()
        yield


def pytest_configure(config: pytest.Config) -> None:
    # under xdist the reports of all workers come to one process, which writes the file
    if HAS_DEVICE and not hasattr(config, "workerinput"):
        config.stash[REPORT] = Report(ARCHITECTURE, results_folder())
        config.pluginmanager.register(Collector(config.stash[REPORT]))


class Collector:
    """Hands pytest's reports on to ours; under xdist they come from the workers."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # a test that ended its process has no properties
        crashed = report.failed and report.nodeid.startswith(HERE)
        if (REPORTED, True) not in map(tuple, report.user_properties) and not crashed:
            return
        if report.when != "call" and report.passed:
            return
        notes = [note for name, found in report.user_properties if name == NOTES for note in found]
        self.report.add(
            report.nodeid,
            report.outcome,
            notes if report.when == "call" else [],
            "" if report.passed else reason(report),
        )

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.report.here:
            terminalreporter.section("on the GPU" if not INTERPRETED else "in the interpreter")
            for line in self.report.lines():
                terminalreporter.write_line(line)


def reason(report: pytest.TestReport) -> str:
    """Why a test did not pass, in one line."""
    if report.skipped and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    lines = [line for line in report.longreprtext.splitlines() if line.startswith("E ")]
    return (lines or report.longreprtext.splitlines() or [""])[0].removeprefix("E").strip()[:300]
