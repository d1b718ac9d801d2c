"""Settings of glibc's allocator: keep freed memory between batches, return it in long runs.

A batch allocates large pieces of memory and frees them soon after. By default glibc returns such
pieces to the system and allocates them again, which faults in and zeroes every page. Measured with
nomic-embed-text-v1.5 in float32 on 2 AVX-512 cores: 280,000 page faults for 4,096 tokens, a sixth
of the time. So the first batch on a CPU configures glibc to keep freed memory: up to 256 MiB at the
end of the heap, and all free memory below a piece still in use.

`nomicbert embed`, which writes files of any size, returns freed memory after each block of rows.
"""

import ctypes
import functools
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

# Constants of malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# Bytes: free memory kept at the end of the heap, and the largest piece allocated on the heap.
# Older versions of glibc reject the first of the two sizes and accept the second.
KEPT = 1 << 28
PIECES = (1 << 27, 1 << 25)
SWITCH = "NOMICBERT_KEEP_MEMORY"
OWN = ("GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


def keep_freed_memory(device: "torch.device") -> None:
    """Make glibc keep freed memory if `device` is a CPU; do nothing for other devices.

    The setting applies to the whole process. It is skipped with NOMICBERT_KEEP_MEMORY=0, or if the
    environment sets glibc's own variables (see OWN).
    """
    if device.type == "cpu" and os.environ.get(SWITCH) != "0" and not any(map(os.getenv, OWN)):
        tell_glibc()


@functools.cache
def tell_glibc() -> bool:
    """Set both thresholds, once per process; False without glibc or if it rejects them."""
    mallopt = of_glibc("mallopt")
    if mallopt is None:
        return False
    kept = bool(mallopt(M_TRIM_THRESHOLD, KEPT))
    kept = any(mallopt(M_MMAP_THRESHOLD, size) for size in PIECES) and kept
    if kept:
        logger.info("glibc keeps freed memory for the next batch (%s=0 disables this)", SWITCH)
    return kept


def give_back_freed_memory() -> None:
    """Return freed memory to the system, if the C library is glibc.

    Otherwise freed pieces that no later tensor fits into stay resident, and the memory of a process
    that runs for hours seems to grow.
    """
    if (trim := of_glibc("malloc_trim")) is not None:
        trim(0)


def of_glibc(name: str) -> Callable[..., int] | None:
    """Look up a function that only glibc has; None with another C library."""
    return getattr(ctypes.CDLL(None), name, None) if os.name == "posix" else None
