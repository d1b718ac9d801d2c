"""A stream of inputs on several devices of one machine: a process each, rows in order.

Where in the flow: in place of `stream`, for a list of devices; the caller's side of `worker`. Here
inputs are checked and cut into chunks, and what a call says once (progress, warnings) is said;
`dispatch` keeps the processes.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import chain
from operator import length_hint
from pathlib import Path
from typing import Any

import torch

from nomicbert.runtime.batches import WINDOW_TEXTS
from nomicbert.runtime.dispatch import Chunk, Dispatcher
from nomicbert.runtime.progress import Progress
from nomicbert.runtime.stream import Options, Rows, Stream, Task, Truncation
from nomicbert.runtime.worker import work

# Chunks for each device at least, where there is enough to do.
SHARES = 4
# Letters of a chunk: less is not worth a message; more takes a CPU so long that the others wait
# for it at the end.
LEAST_LETTERS = 1 << 12
CPU_LETTERS = 1 << 15


def open_stream(
    task: Task, options: Options, devices: Sequence[torch.device] = ()
) -> "Stream | Workers":
    """What runs a task: in this process, or in one for each of several devices."""
    return Workers(devices, task, options) if devices else Stream(task, options)


class Workers:
    """As a Stream, by several processes."""

    def __init__(self, devices: Sequence[torch.device], task: Task, options: Options) -> None:
        """Nothing is started before there are inputs.

        Args:
            devices: one for each process.
            task: what each does with its share.
            options: for all of them; without batch_tokens each takes what suits its device.
        """
        if os.name != "posix":
            raise ValueError("a list of devices needs Linux or macOS: give one device")
        self.devices = devices
        self.task = task
        self.options = options

    def run(self, inputs: Iterator[Any]) -> Iterator[Rows]:
        """As Stream.run, but on the CPU, and with more inputs read ahead.

        Raises: WorkerError: all processes have died, or a chunk of inputs kills them.
        """
        task, flowing = self.task, self._flowing(inputs)
        with (
            Truncation(task) as truncation,
            Progress(self.options.show_progress_bar, inputs, task.doing) as progress,
        ):
            chunks = self._chunks(task.windows(task.read(progress.inputs)), whole=flowing)
            first = next(chunks, None)
            if first is None:
                return
            with (
                shared(task) as path,
                closing(self._dispatcher(path, flowing).run(chain([first], chunks))) as results,
            ):
                for found, content in results:
                    progress.read(found.lengths)
                    progress.done(sum(found.lengths))
                    truncation.add(len(found.lengths), found.cut)
                    yield found.rows(content)

    def _dispatcher(self, path: str, flowing: bool) -> Dispatcher:
        names = list(map(str, self.devices))
        threads = max(torch.get_num_threads() // len(self.devices), 1)
        options = replace(self.options, to_host=True)
        waiting = 4 if flowing else 2
        return Dispatcher(names, work, path, threads, options, flowing, at_a_time=waiting)

    def _flowing(self, inputs: Iterator[Any]) -> bool:
        """Whether chunks are whole windows, and one follows the other in a process.

        So reading, tokenising and computing overlap, as on one device. A CPU has nothing to gain
        from it, and of few inputs every device shall have its share.
        """
        left = length_hint(inputs, -1)
        few = 0 <= left < SHARES * len(self.devices) * WINDOW_TEXTS
        return not few and all(device.type != "cpu" for device in self.devices)

    def _chunks(self, windows: Iterable[list[Any]], whole: bool) -> Iterator[Chunk]:
        """Windows, or pieces of them, with their numbers."""
        number = start = 0
        for window in windows:
            for inputs in [window] if whole else self._pieces(window):
                yield Chunk(number, start, inputs)
                number += 1
                start += len(inputs)

    def _pieces(self, window: list[Any]) -> Iterator[list[Any]]:
        """Neighbouring inputs of a window, in lists of about as many letters that count."""
        sizes = self.task.letters(window)
        limit = sum(sizes) // (SHARES * len(self.devices))
        if any(device.type == "cpu" for device in self.devices):
            limit = min(limit, CPU_LETTERS)
        limit = max(limit, LEAST_LETTERS)
        piece: list[Any] = []
        letters = 0
        for item, size in zip(window, sizes, strict=True):
            piece.append(item)
            letters += size
            if letters >= limit:
                yield piece
                piece, letters = [], 0
        if piece:
            yield piece


@contextmanager
def shared(task: Task) -> Iterator[str]:
    """A task in a file that other processes can map: its path.

    On Linux it is in memory and has no name that could outlive this process.
    """
    if hasattr(os, "memfd_create"):
        with open(os.memfd_create("nomicbert"), "wb") as file:
            torch.save(task, file)
            file.flush()
            yield f"/proc/{os.getpid()}/fd/{file.fileno()}"
    else:
        with tempfile.TemporaryDirectory(prefix="nomicbert-") as folder:
            path = Path(folder, "task.pt")
            torch.save(task, path)
            yield str(path)
