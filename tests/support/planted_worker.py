"""A worker process with faults that a test plants: for token ids, and while it starts.

`code` is for `process.CODE`. With a file `refuse` in the folder the worker ends while it loads.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from nomicbert.serve.engine import worker
from nomicbert.serve.engine.compute import Replica

# Token ids of the tiny vocabulary, and what a batch with one does.
CRASH, HANG, EXIT, GARBAGE, HUGE, RAISE = range(70, 76)
STATUS = 9
# Bytes of address space that a worker has enough of, and that HUGE asks for in addition.
MEMORY = 6 << 30


def code(folder: Path) -> str:
    """The program of such a worker."""
    return (
        "import sys; sys.path[:] = sys.argv[3:]; from tests.support.planted_worker import main; "
        f"main(int(sys.argv[1]), sys.argv[2], {str(folder)!r})"
    )


def main(descriptor: int, settings: str, folder: str) -> None:
    if os.environ.get("NOMICBERT_ONEDNN") == "0":  # as tests/conftest.py
        torch.backends.mkldnn.set_flags(_enabled=False, _fp32_precision=None)
    if Path(folder, "refuse").exists():
        sys.exit(STATUS)
    own = Replica._vectors

    def vectors(replica: Replica, texts: list[list[int]], *rest: Any) -> list[torch.Tensor]:
        found = {token for ids in texts for token in ids}
        if CRASH in found:
            ctypes.string_at(0)
        if HANG in found:
            time.sleep(1000)
        if EXIT in found:
            os._exit(STATUS)
        if GARBAGE in found:
            os.write(descriptor, b"garbage" * 100)
        if HUGE in found:
            torch.empty(MEMORY, dtype=torch.uint8)
        if RAISE in found:
            raise RuntimeError("planted")
        return own(replica, texts, *rest)

    Replica._vectors = vectors  # type: ignore[method-assign]
    worker.main(descriptor, settings)
