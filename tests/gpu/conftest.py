"""Set-up of every test here: exact fp32, poisoned memory, and a report.

A test stores its error and its bound through `record`, which fails beyond the bound. The records
are part of pytest's reports, so that a failing test is in the file as well.
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


# Order of the files, in case time runs out: values first, slow ones last.
ORDER = (
    "values", "graphs", "models", "gradients", "fp8", "rows", "determinism", "precision", "tuning",
    "report", "compiled", "sanitizer",
)  # fmt: skip
LAST = ("longest", "queries", "memcheck", "racecheck")


def rank(item: pytest.Item) -> tuple[bool, int]:
    """Sort key of a test: heavy cases come after all others."""
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
            # GPU time is expensive: a library's new warning must not fail a test
            item.add_marker(pytest.mark.filterwarnings("default"))
            item.user_properties.append((REPORTED, True))


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Iterator[Record]:
    """record(error, bound, op=, dtype=, check=): store the figures; fail beyond the bound."""
    notes: list[dict[str, Any]] = []
    request.node.user_properties.append((NOTES, notes))

    def note(error: float, bound: float, **what: Any) -> None:
        words = {key: str(value).removeprefix("torch.") for key, value in what.items()}
        notes.append({**words, "error": float(error), "bound": float(bound)})
        assert error <= bound, f"off by {error:.3g}, allowed {bound:.3g}: {words}"

    return note


@pytest.fixture(autouse=True)
def exact_matmuls() -> Iterator[None]:
    """Disable TF32 and reduced-precision sums in torch's matmuls."""
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
    """Wait for the device, so that a kernel's error fails the test that launched it."""
    yield
    if torch.cuda.is_available():
        request.config.stash[BROKEN] = True
        torch.cuda.synchronize()
        request.config.stash[BROKEN] = False
        torch.cuda.empty_cache()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """After a CUDA error every call fails: end this xdist worker, so that another continues."""
    if item.config.stash.get(BROKEN, False) and hasattr(item.config, "workerinput"):
        os._exit(1)


@pytest.fixture(scope="session", autouse=True)
def exact_interpreter() -> None:
    """Patch bf16 and the order of sums in the interpreter."""
    if INTERPRETED:
        from tests.interpreter import bf16, dot

        bf16.install()
        dot.install()


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fill uninitialised memory with NaN, so that values a kernel does not write show."""
    with problem.poisoned():
        assert torch.zeros(1, device=DEVICE).new_empty(3).isnan().all()
        yield


def pytest_configure(config: pytest.Config) -> None:
    # under xdist one process gets the reports of all workers, and writes the file
    if HAS_DEVICE and not hasattr(config, "workerinput"):
        config.stash[REPORT] = Report(ARCHITECTURE, results_folder())
        config.pluginmanager.register(Collector(config.stash[REPORT]))


class Collector:
    """Passes pytest's reports to ours; under xdist they come from the workers."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # a test that crashed its process has no properties
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
