"""Checks before a run: is there a GPU, is triton installed, does the file fit the run."""

import importlib.util
import os

from bench.gpu.runner.ledger import Ledger


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
    machines = [
        line["machine"]
        for entry in ledger.lines()
        for line in entry.get("lines", [])
        if "machine" in line
    ]
    if dry and any(machine.get("gpu") for machine in machines):
        raise ValueError(f"{ledger.path} holds figures of a GPU: give a dry run its own file")
    if not dry and any(not machine.get("gpu") for machine in machines):
        raise ValueError(f"{ledger.path} holds figures of a dry run: give it another file")
