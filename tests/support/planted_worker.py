"""A worker process with faults that a test plants: for token ids, and while it starts.

`code` is for `process.CODE`. While the folder has a file `refuse`, workers end before they load.
"""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path
from typing import Any

import torch

from nomicbert.serve.engine import worker
from nomicbert.serve.engine.compute import Replica

# Token ids of the tiny vocabulary, and what a batch with one does.
CRASH, HANG, EXIT, HUGE, RAISE = range(70, 75)
STATUS = 9
# Bytes of address space that a worker has enough of, and that HUGE asks for in addition.
MEMORY = 6 << 30


def code(folder: Path) -> str:
    """The program of such a worker."""
    return (
        f"import os, sys; os.path.exists({str(folder / 'refuse')!r}) and sys.exit({STATUS}); "
        "sys.path[:] = sys.argv[3:]; from tests.support.planted_worker import main; "
        "main(int(sys.argv[1]), sys.argv[2])"
    )


def main(descriptor: int, settings: str) -> None:
    if os.environ.get("NOMICBERT_ONEDNN") == "0":  # as tests/conftest.py
        torch.backends.mkldnn.set_flags(_enabled=False, _fp32_precision=None)
    own = Replica._vectors

    def vectors(replica: Replica, texts: list[list[int]], *rest: Any) -> list[torch.Tensor]:
        found = {token for ids in texts for token in ids}
        if CRASH in found:
            ctypes.string_at(0)
        if HANG in found:
            time.sleep(1000)
        if EXIT in found:
            os._exit(STATUS)
        if HUGE in found:
            torch.empty(MEMORY, dtype=torch.uint8)
        if RAISE in found:
            raise RuntimeError("planted")
        return own(replica, texts, *rest)

    Replica._vectors = vectors  # type: ignore[method-assign]
    worker.main(descriptor, settings)
