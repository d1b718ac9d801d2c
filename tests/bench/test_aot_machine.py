"""What `bench.aot_machine` reads from machine code, on small kernels (see `aot_kernels`)."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
LINUX = sys.platform == "linux" and importlib.util.find_spec("triton") is not None

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not LINUX, reason="needs triton, whose compilers exist on Linux only"),
]


@pytest.fixture(scope="module")
def reports() -> dict[str, dict[str, Any]]:
    """The reports of all kernels."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    command = [sys.executable, "-W", "ignore", "-m", "tests.bench.aot_kernels"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_serial_wgmma_is_remarked(reports: dict[str, dict[str, Any]]) -> None:
    remarks = {name: report["remarks"] for name, report in reports.items()}
    assert [code[:3] for code in remarks.pop("serial")].count("C75") > 0
    assert not any(remarks.values()), remarks
    assert reports["serial"]["wgmma"]
    assert reports["healthy"]["wgmma"]
    assert not reports["older"]["wgmma"]


def test_instructions_are_those_of_the_disassembler(reports: dict[str, dict[str, Any]]) -> None:
    for name, report in reports.items():
        assert report["listed"] > 5, name
        assert report["instructions"] == report["listed"], name
        assert report["barriers"] == report["listed_barriers"], name
        assert (report["words"], report["nop"]) == (0, 0), name


def test_warps_that_share_a_sum_wait(reports: dict[str, dict[str, Any]]) -> None:
    assert reports["four warps"]["barriers"] > 0
    assert reports["one warp"]["barriers"] == 0
    assert (reports["four warps"]["warps"], reports["one warp"]["warps"]) == (4, 1)


def test_a_kernel_waits_for_the_previous_one(reports: dict[str, dict[str, Any]]) -> None:
    """One keyword sets the option of the launch and the constant of the kernel."""
    found = {name: (report["waits"], report["launch_pdl"]) for name, report in reports.items()}
    assert found.pop("first") == ("first", True)
    assert found.pop("late") == ("late", True)
    assert {*found.values()} == {("never", False)}


def test_a_report_is_kept(reports: dict[str, dict[str, Any]]) -> None:
    for report in reports.values():
        assert report["again"] == {name: report[name] for name in report["again"]}
