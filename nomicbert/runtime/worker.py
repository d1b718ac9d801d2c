"""A worker process: receives chunks of inputs and answers with their rows.

Where in the flow: `workers` starts it through `dispatch`, which defines the messages. It runs the
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

# Seconds to wait for another chunk before a run ends (only with `flowing`).
PATIENCE = 0.05


class Answer(NamedTuple):
    """The result of a chunk, except for the values themselves.

    Attributes:
        lengths: tokens of each input.
        cut: indices of the inputs that were cut.
        shape: of the values: (n, width); or (tokens of all inputs, hidden_size).
        dtype: of the values.
        hidden: whether they are hidden states.
    """

    lengths: list[int]
    cut: list[int]
    shape: torch.Size
    dtype: torch.dtype
    hidden: bool

    def rows(self, content: np.ndarray) -> Rows:
        """Restore the rows of the Stream, on the CPU, from the bytes in `content`."""
        found = torch.from_numpy(content).view(self.dtype).view(self.shape)
        if not self.hidden:
            return found
        # a view would keep the whole chunk in memory
        return [rows.clone() for rows in torch.split(found, self.lengths)]


class Worker:
    """Sends the chunks of one process through a Stream."""

    def __init__(self, connection: Connection, stream: Stream, flowing: bool) -> None:
        """`flowing`: chunks follow each other in one run of the Stream, so its stages overlap."""
        self.connection = connection
        self.stream = stream
        self.flowing = flowing
        self.inbox: queue.SimpleQueue[Chunk] = queue.SimpleQueue()
        self.begun: deque[Chunk] = deque()
        self.finished = 0  # inputs

    def run(self) -> None:
        """Process chunks until the process is killed."""
        while True:
            at_hand: Window | None = None
            for window in self.stream.windows(self._inputs(), Progress(False)):
                at_hand = window if at_hand is None else joined(at_hand, window)
                while at_hand and self.begun and holds(at_hand, count := self._wanted()):
                    found, at_hand = parted(at_hand, count)
                    self._answer(found)

    def place(self, error: TextError) -> TextError:
        """The same error with the input's index in the caller's stream."""
        index = error.index - self.finished
        for chunk in self.begun:
            if index < len(chunk.inputs):
                return TextError(chunk.start + index, error.problem)
            index -= len(chunk.inputs)
        raise AssertionError("the error names an input that was not read")

    def _wanted(self) -> int:
        """Number of inputs of the oldest unanswered chunk."""
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
        values = (torch.cat(rows) if isinstance(rows, list) else rows).cpu()
        self.begun.popleft()
        self.finished += len(window.lengths)
        result = Answer(window.lengths, window.cut, values.shape, values.dtype, hidden)
        answer(self.connection, result, values.view(torch.uint8).numpy())


def holds(window: Window, count: int) -> bool:
    """Whether a window has rows of at least `count` inputs."""
    return len(window.lengths) >= count


def parted(window: Window, count: int) -> tuple[Window, Window | None]:
    """Split a window after its first `count` inputs; None if nothing is left."""
    first = Window(
        window.rows[:count], window.lengths[:count], [i for i in window.cut if i < count]
    )
    if not holds(window, count + 1):
        return first, None
    cut = [i - count for i in window.cut if i >= count]
    return first, Window(window.rows[count:], window.lengths[count:], cut)


def joined(a: Window, b: Window) -> Window:
    """Concatenate two consecutive windows."""
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
    """Main function of a worker process.

    Args:
        connection: to the caller's process.
        name: of the device.
        path: of the task, written by torch.save.
        threads: number of CPU threads.
        options: of the stream; without batch_tokens the default for the device applies.
        flowing: whether chunks are whole windows, which may follow each other in one run.
    """
    torch.set_num_threads(threads)
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))  # threads of the tokenizer
    tqdm.set_lock(RLock())  # its default is a semaphore, which a killed process would leak
    worker = None
    try:
        device = torch.device(name)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        # trusted: written by the caller's process; mapped, so all processes share one copy
        task = torch.load(path, map_location=device, mmap=True, weights_only=False)
        worker = Worker(connection, Stream(task, options), flowing)
        Thread(target=receive, args=(connection, worker.inbox), daemon=True).start()
        connection.send((READY,))
        worker.run()
    except (BrokenPipeError, ConnectionResetError):
        os._exit(1)  # the caller has died: nobody is left to tell
    except torch.AcceleratorError:
        raise  # the device is lost: this process ends, the other ones take over
    except Exception as error:  # any error is sent to the caller, which raises it
        if isinstance(error, TextError) and worker is not None:
            error = worker.place(error)
        connection.send((FAILED, portable(error), traceback.format_exc()))


def receive(connection: Connection, inbox: "queue.SimpleQueue[Chunk]") -> None:
    """Receive chunks as soon as they arrive, so that sending never blocks the caller."""
    try:
        while True:
            inbox.put(connection.recv())
    except (EOFError, OSError):
        os._exit(1)  # the caller has died


def portable(error: Exception) -> Exception:
    """The error itself, or a WorkerError with the same message if it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an error's own pickling may raise anything
        return WorkerError(f"{type(error).__name__}: {error}")
    return error
