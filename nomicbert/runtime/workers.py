"""A stream of inputs on several devices of one machine: one process per device, rows in order.

Where in the flow: replaces `stream` for a list of devices; the caller's side of `worker`. It checks
inputs, cuts them into chunks, and emits the progress and the warnings of the call. `dispatch`
manages the processes.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import chain
from operator import length_hint
from typing import Any, cast

import torch

from nomicbert.runtime.batches import WINDOW_TEXTS
from nomicbert.runtime.dispatch import Chunk, Dispatcher
from nomicbert.runtime.pool import WorkerPool
from nomicbert.runtime.progress import Progress
from nomicbert.runtime.remarks import Remarks
from nomicbert.runtime.shared_file import shared
from nomicbert.runtime.stream import Options, Stream, Task, Window
from nomicbert.runtime.worker import work

# Minimum chunks per device, for balance (fewer if they would go below LEAST_CHARACTERS).
SHARES = 4
# Characters per chunk: below the minimum, messages cost too much; above the CPU's maximum, the
# other devices wait too long for a CPU at the end.
LEAST_CHARACTERS = 1 << 12
CPU_CHARACTERS = 1 << 15


def open_stream(
    task: Task,
    options: Options,
    devices: Sequence[torch.device] = (),
    pool: WorkerPool | None = None,
) -> "AnyStream":
    """Create the runner of a task.

    Args:
        task: to run.
        options: of the stream.
        devices: one process for each; none: this process.
        pool: processes that a caller has started, in place of `devices`.

    Raises: TypeError, ValueError: both are given, or something else than a pool.
    """
    if pool is None:
        return Workers(devices, task, options) if devices else Stream(task, options)
    if not isinstance(pool, cast("Any", WorkerPool)):
        raise TypeError(
            f"pool must be what start_multi_process_pool returns, not {type(pool).__name__}"
        )
    if devices:
        raise ValueError("give a list of devices as device, or pool, not both")
    return Workers(pool.devices, task, options, pool)


class Workers:
    """A Stream that is computed by several processes."""

    def __init__(
        self,
        devices: Sequence[torch.device],
        task: Task,
        options: Options,
        pool: WorkerPool | None = None,
    ) -> None:
        """Processes are started by `run`, once there are inputs.

        Args:
            devices: one for each process.
            task: run by each process on its share of the inputs.
            options: for all processes; without batch_tokens, each uses its device's default.
            pool: processes that have been started on these devices.
        """
        if os.name != "posix":
            raise ValueError("a list of devices needs Linux or macOS: give one device")
        self.devices = devices
        self.task = task
        self.options = options
        self.pool = pool

    def run(self, inputs: Iterator[Any], progress: Progress | None = None) -> Iterator[Window]:
        """Like Stream.run, but rows are on the CPU, and more inputs are read ahead.

        Raises: WorkerError: all processes have died, or a chunk of inputs kills them.
        """
        flowing = self._flowing(inputs)
        if progress is not None:
            yield from self._windows(progress.watch(inputs), flowing, progress)
            return
        with (
            Remarks(self.task) as remarks,
            Progress(self.options.show_progress_bar, self.task.doing) as bar,
        ):
            for window in self._windows(bar.watch(inputs), flowing, bar):
                remarks.add(window.rows, len(window.lengths), len(window.cut))
                yield window

    def _windows(
        self, inputs: Iterator[Any], flowing: bool, progress: Progress
    ) -> Iterator[Window]:
        """Results of the processes, in the order of the inputs."""
        task = self.task
        chunks = self._chunks(task.windows(task.read(inputs)), whole=flowing)
        first = next(chunks, None)
        if first is None:
            return
        with (
            self._dispatcher(flowing) as dispatcher,
            closing(dispatcher.run(chain([first], chunks))) as results,
        ):
            for found, content in results:
                progress.read(found.lengths)
                progress.done(sum(found.lengths))
                yield Window(found.rows(content), found.lengths, found.cut)

    @contextmanager
    def _dispatcher(self, flowing: bool) -> Iterator[Dispatcher]:
        options = replace(self.options, to_host=True)
        waiting = 4 if flowing else 2
        if self.pool is not None:
            with self.pool.call(self.task, options, flowing, waiting) as dispatcher:
                yield dispatcher
            return
        names = list(map(str, self.devices))
        threads = max(torch.get_num_threads() // len(self.devices), 1)
        with shared(self.task) as path:
            yield Dispatcher(names, work, path, threads, options, flowing, at_a_time=waiting)

    def _flowing(self, inputs: Iterator[Any]) -> bool:
        """Whether chunks are whole windows that follow each other in one run of a process.

        Then reading, tokenising and computing overlap, as on one device. A CPU gains nothing from
        this, and few inputs are cut into smaller chunks, so that every device gets a share.
        """
        if self.options.chunk_size is not None:
            return False
        left = length_hint(inputs, -1)
        few = 0 <= left < SHARES * len(self.devices) * WINDOW_TEXTS
        return not few and all(device.type != "cpu" for device in self.devices)

    def _chunks(self, windows: Iterable[list[Any]], whole: bool) -> Iterator[Chunk]:
        """Number the windows, or pieces of them, as chunks."""
        number = start = 0
        for window in windows:
            for inputs in [window] if whole else self._pieces(window):
                yield Chunk(number, start, inputs)
                number += 1
                start += len(inputs)

    def _pieces(self, window: list[Any]) -> Iterator[list[Any]]:
        """Cut a window into lists of consecutive inputs with about equal numbers of characters.

        A caller may state a number of inputs instead.
        """
        if (size := self.options.chunk_size) is not None:
            yield from (window[start : start + size] for start in range(0, len(window), size))
            return
        sizes = self.task.characters(window)
        limit = sum(sizes) // (SHARES * len(self.devices))
        if any(device.type == "cpu" for device in self.devices):
            limit = min(limit, CPU_CHARACTERS)
        limit = max(limit, LEAST_CHARACTERS)
        piece: list[Any] = []
        characters = 0
        for item, size in zip(window, sizes, strict=True):
            piece.append(item)
            characters += size
            if characters >= limit:
                yield piece
                piece, characters = [], 0
        if piece:
            yield piece


AnyStream = Stream | Workers
