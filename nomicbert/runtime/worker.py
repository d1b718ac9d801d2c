"""What one of several processes does: it takes chunks of texts and answers with their vectors.

Where in the flow: `workers` starts it through `dispatch`, whose messages it speaks. It runs the
same Stream as a call on one device.
"""

import os
import pickle
import queue
import traceback
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from threading import RLock, Thread
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nomicbert.errors import TextError, WorkerError
from nomicbert.runtime.batch_budget import batch_tokens
from nomicbert.runtime.dispatch import FAILED, READY, Chunk, answer
from nomicbert.runtime.graphs import Graphs
from nomicbert.runtime.stream import Job, Stream
from nomicbert.text.tokenizer import Tokenizer
from nomicbert.user_warnings import TruncationWarning

Window = Tensor | list[Tensor]

# Seconds to wait for another chunk before those at hand are ended, where one flows into the next.
PATIENCE = 0.05


class Rows(NamedTuple):
    """What became of a chunk, beside the numbers themselves.

    Attributes:
        lengths: tokens of each text.
        cut: how many texts were cut.
        shape: of the numbers: (n, width); or (tokens of all texts, hidden_size).
        dtype: of the numbers.
        hidden: whether they are hidden states.
    """

    lengths: list[int]
    cut: int
    shape: torch.Size
    dtype: torch.dtype
    hidden: bool

    def window(self, content: np.ndarray) -> Window:
        """As the Stream has yielded it, but on the CPU; `content` are the bytes."""
        found = torch.from_numpy(content).view(self.dtype).view(self.shape)
        if not self.hidden:
            return found
        # a view would keep the whole chunk in memory
        return [rows.clone() for rows in torch.split(found, self.lengths)]


class CountingTokenizer(Tokenizer):
    """The tokenizer, which remembers the length of each text and whether it was cut."""

    def __init__(self, plain: Tokenizer) -> None:
        """One that works as the plain one does."""
        vars(self).update(vars(plain))
        self.seen: deque[tuple[int, bool]] = deque()

    def take(self, count: int) -> tuple[list[int], int]:
        """Lengths of the oldest texts that were not asked for yet, and how many were cut."""
        taken = [self.seen.popleft() for _ in range(count)]
        return [length for length, _ in taken], sum(cut for _, cut in taken)

    def encode(self, texts: Sequence[str], max_length: int) -> tuple[list[list[int]], list[int]]:
        """As the plain one."""
        ids, cut = super().encode(texts, max_length)
        shortened = set(cut)
        self.seen += [(len(text), index in shortened) for index, text in enumerate(ids)]
        return ids, cut

    def encode_windows(
        self, texts: Sequence[str], prompt: str, max_length: int
    ) -> list[list[list[int]]]:
        """As the plain one."""
        parts = super().encode_windows(texts, prompt, max_length)
        self.seen += [(sum(map(len, part)), False) for part in parts]
        return parts


class Worker:
    """The chunks of one process on their way through a Stream."""

    def __init__(
        self, connection: Connection, stream: Stream, tokenizer: CountingTokenizer, flowing: bool
    ) -> None:
        """`flowing`: one chunk follows the other in one run, so that its stages overlap."""
        self.connection = connection
        self.stream = stream
        self.tokenizer = tokenizer
        self.flowing = flowing
        self.inbox: queue.SimpleQueue[Chunk] = queue.SimpleQueue()
        self.begun: deque[Chunk] = deque()
        self.finished = 0  # texts

    def run(self) -> None:
        """Embed what comes until the process is ended."""
        while True:
            rows: Any = None
            for window in self.stream.run(self._texts()):
                rows = window if rows is None else joined(rows, window)
                while self.begun and len(rows) >= (count := len(self.begun[0].texts)):
                    self._answer(rows[:count])
                    rows = rows[count:]
                rows = rows if len(rows) else None

    def place(self, error: TextError) -> TextError:
        """The same with the text's number in the caller's stream."""
        index = error.index - self.finished
        for chunk in self.begun:
            if index < len(chunk.texts):
                return TextError(chunk.start + index, error.problem)
            index -= len(chunk.texts)
        raise AssertionError("an error of a text that was not read")

    def _texts(self) -> Iterator[str]:
        chunk: Chunk | None = self.inbox.get()
        while chunk is not None:
            self.begun.append(chunk)
            yield from chunk.texts
            chunk = self._next() if self.flowing else None

    def _next(self) -> Chunk | None:
        try:
            return self.inbox.get(timeout=PATIENCE)
        except queue.Empty:
            return None

    def _answer(self, window: Window) -> None:
        hidden = isinstance(window, list)
        numbers = (torch.cat(window) if isinstance(window, list) else window).cpu()
        lengths, cut = self.tokenizer.take(len(window))
        self.begun.popleft()
        self.finished += len(window)
        rows = Rows(lengths, cut, numbers.shape, numbers.dtype, hidden)
        answer(self.connection, rows, numbers.view(torch.uint8).numpy())


def joined(a: Any, b: Any) -> Any:
    """Two neighbouring windows as one."""
    return torch.cat([a, b]) if isinstance(a, Tensor) else a + b


def work(
    connection: Connection, name: str, path: str, threads: int, job: Job, flowing: bool
) -> None:
    """The life of a process.

    Args:
        connection: to the caller's process.
        name: of the device.
        path: of the parts of an Embedder, as torch.save wrote them.
        threads: that it may take.
        job: what the call wants; batch_tokens 0 stands for what the device can.
        flowing: whether chunks are whole windows, which may follow each other in one run.
    """
    torch.set_num_threads(threads)
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))  # the tokenizer's
    warnings.simplefilter("ignore", TruncationWarning)  # one for the whole call is the caller's
    tqdm.set_lock(RLock())  # its own is a semaphore, which a process that is killed leaves behind
    worker = None
    try:
        device = torch.device(name)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        # the file is the caller's own; mapped, its pages are one copy for all processes
        parts = torch.load(path, map_location=device, mmap=True, weights_only=False)
        model, tokenizer, pooling, prompts = parts
        counting = CountingTokenizer(tokenizer)
        job = replace(job, batch_tokens=job.batch_tokens or batch_tokens(model))
        stream = Stream(model, counting, pooling, prompts, job, Graphs())
        worker = Worker(connection, stream, counting, flowing)
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
