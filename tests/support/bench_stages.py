"""Stages for the tests of bench.gpu.runner: cases that succeed, or fail in every possible way.

Each start is recorded in a file, so that a test can check the order and number of runs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.gpu.runner.child import Case, Facts


def cases(stage: str, options: Facts) -> Sequence[Case]:
    """The cases that options["stages"] names for a stage, "NAME" or "NAME KIND"."""
    device = Device()
    found = []
    for words in options["stages"][stage]:
        name, _, kind = words.partition(" ")
        found.append(Case(name, Work(stage, name, kind, device, options), 0.0))
    return found


class Device:
    """A fake GPU: an error persists until the process ends."""

    broken = False

    def finish(self) -> None:
        if self.broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")


class Work:
    def __init__(self, stage: str, name: str, kind: str, device: Device, options: Facts) -> None:
        self.stage, self.name, self.kind = stage, name, kind
        self.device, self.folder = device, Path(options["folder"])

    def __call__(self) -> Facts:
        with (self.folder / "starts").open("a") as file:
            file.write(f"{self.stage}/{self.name}\n")
        kind = self.kind
        if kind == "wrong":
            raise AssertionError("off by 3, allowed 1")
        if kind == "raise":
            raise KeyError("out of luck")
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGSEGV)
        if kind == "exit":
            sys.stdout.write("the last words")
            sys.stdout.flush()
            os._exit(9)
        if kind in ("hang", "hang-once"):
            first = not (self.folder / "hung").exists()
            (self.folder / "hung").touch()
            if kind == "hang" or first:
                # the runner must kill this child process as well
                child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
                (self.folder / "grandchild").write_text(str(child.pid))
                time.sleep(300)
        if kind == "sticky":
            self.device.broken = True
        self.device.finish()
        if kind == "slow":
            time.sleep(0.4)
        return {"said": "well", "figure": float("nan") if kind == "nan" else 1.0}


def broken(stage: str, options: Facts) -> Sequence[Case]:
    """A stage whose cases cannot be listed."""
    raise ImportError("no module named luck")
