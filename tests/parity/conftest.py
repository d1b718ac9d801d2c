"""Fixtures of all parity tests: NaN in uninitialised memory, and the report of measured errors.

In torch's deterministic mode uninitialised tensors are filled with NaN, so none of it can pass as
an output. The measured errors are collected, printed at the end of the run and, if a folder is
given, written to files.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.parity import report
from tests.parity.support import Case

KEY = "parity"
STARTED = time.monotonic()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--parity-report", metavar="FOLDER", help="write the report to this folder")


@pytest.fixture(autouse=True)
def noted(request: pytest.FixtureRequest) -> Iterator[None]:
    """Collect the measurements of a test and attach them to its report."""
    report.ROWS = {}
    yield
    rows = [dataclasses.asdict(row) for row in report.ROWS.values()]
    request.node.user_properties.append((KEY, rows))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    outcomes = terminalreporter.stats
    done = [r for kind in ("passed", "failed") for r in outcomes.get(kind, [])]
    # stored at teardown, so the test's last report has them
    last = {r.nodeid: r for r in [*done, *outcomes.get("", [])] if hasattr(r, "user_properties")}
    rows = [
        (test, row)
        for test, found in last.items()
        for key, values in found.user_properties
        for row in (values if key == KEY else [])
    ]
    failed = sorted({r.nodeid for kind in ("failed", "error") for r in outcomes.get(kind, [])})
    if not rows and not failed:
        return
    terminalreporter.section("parity")
    terminalreporter.write_line(report.as_text(report.table(rows, failed)))
    folder = config.getoption("parity_report", None)
    if folder:
        about = {
            "seed": os.environ.get("NOMICBERT_SEED", "fixed"),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "seconds": round(time.monotonic() - STARTED),
        }
        report.write(Path(folder), about, rows, failed)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def case(tmp_path: Path, seed: int) -> Case:
    torch.manual_seed(seed)
    return Case(tmp_path, seed)
