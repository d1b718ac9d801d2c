"""What one of several processes does: it takes chunks of inputs and answers with their rows.

Where in the flow: `workers` starts it through `dispatch`, whose messages it speaks. It runs the
same Stream as a call on one device.
"""

import os
import pickle
import queue
import traceback
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import Connection
from threading import RLock, Thread
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nomicbert.errors import TextError, WorkerError
from nomicbert.runtime.dispatch import FAILED, READY, Chunk, answer
from nomicbert.runtime.progress import Progress
from nomicbert.runtime.stream import Options, Rows, Stream, Window

# Seconds to wait for another chunk before those at hand are ended, where one flows into the next.
PATIENCE = 0.05


class Answer(NamedTuple):
    """What became of a chunk, beside the numbers themselves.

    Attributes:
        lengths: tokens of each input.
        cut: how many inputs were cut.
        shape: of the numbers: (n, width); or (tokens of all inputs, hidden_size).
        dtype: of the numbers.
        hidden: whether they are hidden states.
    """

    lengths: list[int]
    cut: int
    shape: torch.Size
    dtype: torch.dtype
    hidden: bool

    def rows(self, content: np.ndarray) -> Rows:
        """As the Stream has yielded them, but on the CPU; `content` are the bytes."""
        found = torch.from_numpy(content).view(self.dtype).view(self.shape)
        if not self.hidden:
            return found
        # a view would keep the whole chunk in memory
        return [rows.clone() for rows in torch.split(found, self.lengths)]


class Worker:
    """The chunks of one process on their way through a Stream."""

    def __init__(self, connection: Connection, stream: Stream, flowing: bool) -> None:
        """`flowing`: one chunk follows the other in one run, so that its stages overlap."""
        self.connection = connection
        self.stream = stream
        self.flowing = flowing
        self.inbox: queue.SimpleQueue[Chunk] = queue.SimpleQueue()
        self.begun: deque[Chunk] = deque()
        self.finished = 0  # inputs

    def run(self) -> None:
        """Do the task for what comes until the process is ended."""
        while True:
            at_hand: Window | None = None
            for window in self.stream.windows(self._inputs(), Progress(False, iter(()))):
                at_hand = window if at_hand is None else joined(at_hand, window)
                while at_hand and self.begun and holds(at_hand, count := self._wanted()):
                    found, at_hand = parted(at_hand, count)
                    self._answer(found)

    def place(self, error: TextError) -> TextError:
        """The same with the input's number in the caller's stream."""
        index = error.index - self.finished
        for chunk in self.begun:
            if index < len(chunk.inputs):
                return TextError(chunk.start + index, error.problem)
            index -= len(chunk.inputs)
        raise AssertionError("an error of an input that was not read")

    def _wanted(self) -> int:
        """Inputs of the oldest chunk that is not answered yet."""
        return len(self.begun[0].inputs)

    def _inputs(self) -> Iterator[Any]:
        chunk: Chunk | None = self.inbox.get()
        while chunk is not None:
            self.begun.append(chunk)
            yield from chunk.inputs
            chunk = self._next() if self.flowing else None

    def _next(self) -> Chunk | None:
        try:
            return self.inbox.get(timeout=PATIENCE)
        except queue.Empty:
            return None

    def _answer(self, window: Window) -> None:
        rows = window.rows
        hidden = isinstance(rows, list)
        numbers = (torch.cat(rows) if isinstance(rows, list) else rows).cpu()
        self.begun.popleft()
        self.finished += len(window.lengths)
        told = Answer(window.lengths, len(window.cut), numbers.shape, numbers.dtype, hidden)
        answer(self.connection, told, numbers.view(torch.uint8).numpy())


def holds(window: Window, count: int) -> bool:
    """Whether a window has the rows of so many inputs."""
    return len(window.lengths) >= count


def parted(window: Window, count: int) -> tuple[Window, Window | None]:
    """The first inputs of a window, and what is left of it."""
    first = Window(
        window.rows[:count], window.lengths[:count], [i for i in window.cut if i < count]
    )
    if not holds(window, count + 1):
        return first, None
    cut = [i - count for i in window.cut if i >= count]
    return first, Window(window.rows[count:], window.lengths[count:], cut)


def joined(a: Window, b: Window) -> Window:
    """Two neighbouring windows as one."""
    ours, theirs = a.rows, b.rows
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
        rows: Rows = torch.cat([ours, theirs])
    else:
        rows = [*ours, *theirs]
    cut = [*a.cut, *(len(a.lengths) + i for i in b.cut)]
    return Window(rows, a.lengths + b.lengths, cut)


def work(
    connection: Connection, name: str, path: str, threads: int, options: Options, flowing: bool
) -> None:
    """The life of a process.

    Args:
        connection: to the caller's process.
        name: of the device.
        path: of the task, as torch.save wrote it.
        threads: that it may take.
        options: of the stream; without batch_tokens it takes what suits the device.
        flowing: whether chunks are whole windows, which may follow each other in one run.
    """
    torch.set_num_threads(threads)
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))  # the tokenizer's
    tqdm.set_lock(RLock())  # its own is a semaphore, which a process that is killed leaves behind
    worker = None
    try:
        device = torch.device(name)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        # the file is the caller's own; mapped, its pages are one copy for all processes
        task = torch.load(path, map_location=device, mmap=True, weights_only=False)
        worker = Worker(connection, Stream(task, options), flowing)
        Thread(target=receive, args=(connection, worker.inbox), daemon=True).start()
        connection.send((READY,))
        worker.run()
    except torch.AcceleratorError:
        raise  # a device that is lost takes the process with it, and the others go on
    except Exception as error:  # whatever it is, the caller raises it
        if isinstance(error, TextError) and worker is not None:
            error = worker.place(error)
        connection.send((FAILED, portable(error), traceback.format_exc()))


def receive(connection: Connection, inbox: "queue.SimpleQueue[Chunk]") -> None:
    """Take chunks as soon as they come, so that the caller never waits to hand one over."""
    try:
        while True:
            inbox.put(connection.recv())
    except (EOFError, OSError):
        os._exit(1)  # the caller has died


def portable(error: Exception) -> Exception:
    """The error itself, or one that says the same where it cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an error's own pickling may raise anything
        return WorkerError(f"{type(error).__name__}: {error}")
    return error
