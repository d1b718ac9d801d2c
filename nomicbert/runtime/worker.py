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
from contextlib import contextmanager
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

    stream: Stream
    flowing: bool

    def __init__(self, connection: Connection) -> None:
        """`begin` gives it a Stream."""
        self.connection = connection
        self.inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.begun: deque[Chunk] = deque()
        self.finished = 0  # inputs
        self._other: Any = None

    def listen(self) -> None:
        """Receive messages as soon as they arrive, so that sending never blocks the caller."""
        Thread(target=receive, args=(self.connection, self.inbox), daemon=True).start()

    def wait(self) -> Any:
        """The next message: a chunk, or a pool's call."""
        return self.inbox.get()

    def begin(self, stream: Stream, flowing: bool) -> None:
        """Run the next chunks through a Stream.

        Args:
            stream: of this process.
            flowing: chunks follow each other in one run of the Stream, so its stages overlap.
        """
        self.stream, self.flowing, self.finished = stream, flowing, 0
        self.connection.send((READY,))

    def run(self) -> Any:
        """Process chunks until it is killed, or another message comes, which is returned."""
        self._other = None
        while self._other is None:
            at_hand: Window | None = None
            for window in self.stream.windows(self._inputs(), Progress(False)):
                at_hand = window if at_hand is None else joined(at_hand, window)
                while at_hand and self.begun and holds(at_hand, count := self._wanted()):
                    found, at_hand = parted(at_hand, count)
                    self._answer(found)
        return self._other

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
        chunk = self._next(None)
        while chunk is not None:
            self.begun.append(chunk)
            yield from chunk.inputs
            chunk = self._next(PATIENCE) if self.flowing else None

    def _next(self, patience: float | None) -> Chunk | None:
        """The next chunk, if one comes within so many seconds, and before another message."""
        try:
            found = self.inbox.get(timeout=patience)
        except queue.Empty:
            return None
        if isinstance(found, Chunk):
            return found
        self._other = found
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
    worker = Worker(connection)
    with reporting(worker):
        device = prepared(name, threads)
        task = loaded(path, device)
        worker.listen()
        worker.begin(Stream(task, options), flowing)
        worker.run()


def prepared(name: str, threads: int) -> torch.device:
    """Limit a new process to so many CPU threads; return its device."""
    torch.set_num_threads(threads)
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))  # threads of the tokenizer
    tqdm.set_lock(RLock())  # its default is a semaphore, which a killed process would leak
    device = torch.device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def loaded(path: str, device: torch.device) -> Any:
    """What the caller's process has written by torch.save: trusted, and mapped by all processes."""
    return torch.load(path, map_location=device, mmap=True, weights_only=False)


@contextmanager
def reporting(worker: Worker) -> Iterator[None]:
    """Send an error to the caller, which raises it; the process then ends."""
    try:
        yield
    except (BrokenPipeError, ConnectionResetError):
        os._exit(1)  # the caller has died: nobody is left to tell
    except torch.AcceleratorError:
        raise  # the device is lost: this process ends, the other ones take over
    except Exception as error:  # any error is sent to the caller, which raises it
        if isinstance(error, TextError):
            error = worker.place(error)
        worker.connection.send((FAILED, portable(error), traceback.format_exc()))


def receive(connection: Connection, inbox: "queue.SimpleQueue[Any]") -> None:
    """Put messages into a queue until the caller dies."""
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
