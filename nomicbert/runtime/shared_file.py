"""Objects for other processes of this machine, as a file that they can map.

Where in the flow: `workers` and `pool` write a model, which their processes read.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


@contextmanager
def shared(content: object) -> Iterator[str]:
    """Write an object to a file that other processes can map, and yield its path.

    On Linux the file is in memory (memfd) and disappears with this process.
    """
    if hasattr(os, "memfd_create"):
        with open(os.memfd_create("nomicbert"), "wb") as file:
            torch.save(content, file)
            file.flush()
            yield f"/proc/{os.getpid()}/fd/{file.fileno()}"
    else:
        with tempfile.TemporaryDirectory(prefix="nomicbert-") as folder:
            path = Path(folder, "task.pt")
            torch.save(content, path)
            yield str(path)
