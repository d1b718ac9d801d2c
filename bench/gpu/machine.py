"""Checks before a run: a GPU, triton, and a result file that fits the run."""

import argparse
import importlib.metadata
import importlib.util
import os
from pathlib import Path
from typing import NoReturn

from bench.gpu.runner.ledger import FAULTS, Ledger, Line

# Packages whose version changes results.
COMPARED = ("torch", "triton", "transformers", "sentence-transformers")


class Parser(argparse.ArgumentParser):
    """The options that all runs share. An error is reported in one line."""

    def __init__(self, name: str, description: str | None) -> None:
        """`name` is that of the module."""
        super().__init__(
            prog=f"python -m {name}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add = self.add_argument
        add("--out", type=Path, required=True, metavar="FILE", help="lines of JSON")
        add("--match", default="", metavar="TEXT", help="only cases whose name contains TEXT")
        add("--scratch", type=Path, default=Path("build/gpu"), metavar="FOLDER",
            help="folder for checkpoints and compiled kernels")  # fmt: skip
        add("--retry", action="store_true", help="repeat failed cases")
        add("--dry", action="store_true",
            help="tiny sizes on a CPU, to check that everything runs")  # fmt: skip

    def error(self, message: str) -> NoReturn:
        """See ArgumentParser."""
        self.exit(2, f"{self.prog}: {message}\n")


def open_ledger(path: Path, dry: bool, retry: bool) -> Ledger:
    """Check and open the ledger of a run; print if kept results come from other versions.

    Args:
        path: of the file, made with its folder if missing.
        dry: the run needs no GPU.
        retry: remove earlier failures from the file.

    Raises:
        ValueError: something is missing, or the file is not one for this run.
        OSError: the file cannot be written.
    """
    check_machine(dry)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.open("ab").close()
    ledger = Ledger(path)
    ledger.check()
    check_dry(ledger, dry)
    if note := elsewhere(ledger):
        print(note, flush=True)
    if retry:
        ledger.forget(FAULTS)
    return ledger


def check_machine(dry: bool) -> None:
    """Check what every case needs, without creating a CUDA context.

    Raises: ValueError: something is missing.
    """
    if importlib.util.find_spec("triton") is None:
        raise ValueError("triton is not installed: no kernel of ours would run")
    # torch then asks NVML, which needs no context
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    import torch

    if not dry and not torch.cuda.is_available():
        raise ValueError(
            "this machine has no GPU that torch can use: nothing to measure "
            "(--dry shows on a CPU that everything runs)"
        )


def check_dry(ledger: Ledger, dry: bool) -> None:
    """Keep results of a GPU and of a dry run in separate files.

    Raises: ValueError: the file has figures of the other kind.
    """
    machines = [line["machine"] for line in measured(ledger)]
    if dry and any(machine.get("gpu") for machine in machines):
        raise ValueError(f"{ledger.path} holds figures of a GPU: give a dry run its own file")
    if not dry and any(not machine.get("gpu") for machine in machines):
        raise ValueError(f"{ledger.path} holds figures of a dry run: give it another file")


def elsewhere(ledger: Ledger) -> str:
    """A note on other versions that kept results come from; empty if none."""
    found = set()
    for line in measured(ledger):
        for name in COMPARED:
            then = line["versions"].get(name)
            if then is not None and then != importlib.metadata.version(name):
                found.add(f"{name} {then}")
    return f"kept results come from {', '.join(sorted(found))}" if found else ""


def measured(ledger: Ledger) -> list[Line]:
    """All benchmark lines of a ledger."""
    return [line for entry in ledger.lines() for line in entry.get("lines", [])]
