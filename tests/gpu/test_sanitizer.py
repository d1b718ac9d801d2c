"""All kernels under NVIDIA's compute-sanitizer: no out-of-bounds access, no race."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.conftest import Record
from tests.gpu.support import DEVICE

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]
SCRIPT = [sys.executable, "-m", "tests.gpu.all_kernels"]
PLACES = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin"])
FAULT = 99
# Launches are about a hundred times slower under a sanitizer.
SECONDS = 580


def run(*before: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([".", "kernels"]),
        # no caching: each tensor is a separate allocation, so an access behind it is out of bounds
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
    }
    if DEVICE.type == "cpu":
        environment["TRITON_INTERPRET"] = "1"
    return subprocess.run(
        [*before, *SCRIPT],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=environment,
        timeout=SECONDS,
    )


def test_the_script_runs(record: Record) -> None:
    done = run()
    assert done.returncode == 0, done.stderr[-2000:]
    assert "calls in 3 dtypes" in done.stdout
    record(0, 0, check="all kernels launch", op="all")


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_sanitizer(tool: str, record: Record) -> None:
    sanitizer = shutil.which("compute-sanitizer", path=PLACES)
    if DEVICE.type == "cpu" or sanitizer is None:
        pytest.skip("compute-sanitizer is neither on PATH nor in /usr/local/cuda/bin")
    done = run(sanitizer, "--tool", tool, "--error-exitcode", str(FAULT))
    found = [line for line in done.stdout.splitlines() if line.startswith("=========")]
    assert done.returncode in (0, FAULT), (done.stdout + done.stderr)[-2000:]
    record(int(done.returncode == FAULT), 0, check=tool, op="all", summary=" ".join(found[-1:]))
