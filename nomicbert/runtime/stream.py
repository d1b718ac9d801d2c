"""A stream of inputs -> a stream of rows, window by window, in the order of the inputs.

Where in the flow: `Embedder` and `CrossEncoder` define the work as a Task (see `texts` and
`pairs`). A Stream reads, tokenises and encodes one window of inputs after the other and yields its
rows in order. Memory depends on the size of a window, not of the stream. On a GPU the next window
is tokenised meanwhile, and its kernels are queued before the rows of this one have been copied.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from nomicbert.arguments import as_whole
from nomicbert.runtime.allocator import keep_freed_memory
from nomicbert.runtime.batch_loop import BatchLoop, Budget
from nomicbert.runtime.pipeline import Aside, in_turn, landing, one_ahead, staying
from nomicbert.runtime.progress import Progress
from nomicbert.runtime.remarks import Remarks

Rows = Tensor | list[Tensor]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a stream that do not depend on its task.

    Attributes:
        batch_tokens: limit of tokens per batch; None takes the default for the device.
        batch_size: limit of inputs per batch, or None.
        to_host: copy rows to the host's memory.
        show_progress_bar: None shows one on a terminal when the work takes long.
        chunk_size: inputs that a process gets at a time; None decides by their characters.
    """

    batch_tokens: int | None = None
    batch_size: int | None = None
    to_host: bool = True
    show_progress_bar: bool | None = None
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises: TypeError, ValueError: the message names the argument.
        """
        for name in ("batch_tokens", "batch_size", "chunk_size"):
            if (size := getattr(self, name)) is not None and as_whole(name, size) < 1:
                raise ValueError(f"{name} must be at least 1, not {size}")


class Tokenised(NamedTuple):
    """A window of inputs as token ids.

    Attributes:
        lengths: tokens of each input.
        cut: indices of the inputs that were cut.
        ids: the token ids, in a form defined by the task.
    """

    lengths: list[int]
    cut: list[int]
    ids: Any


class Window(NamedTuple):
    """The result of a window.

    Attributes:
        rows: of its inputs, in order.
        lengths: tokens of each input.
        cut: indices of the inputs that were cut.
    """

    rows: Rows
    lengths: list[int]
    cut: list[int]


class Task(Protocol):
    """What a stream does with its inputs; it can be sent to another process.

    Attributes:
        inputs: word for the inputs in messages, such as "texts".
        doing: label of the progress bar.
        max_length: limit of tokens per input.
    """

    inputs: str
    doing: str
    max_length: int

    @property
    def device(self) -> torch.device:
        """Device of the model."""

    def batch_tokens(self) -> int:
        """Default limit of tokens per batch on the device."""

    def read(self, inputs: Iterable[Any]) -> Iterator[Any]:
        """Check the inputs and yield them; the error for an invalid one holds its index."""

    def windows(self, inputs: Iterable[Any]) -> Iterator[list[Any]]:
        """Lists of consecutive inputs that are tokenised and sorted together."""

    def characters(self, inputs: list[Any]) -> list[int]:
        """Characters of each input that may be tokenised; `max_length` limits them."""

    def tokenise(self, window: list[Any]) -> Tokenised:
        """Token ids of a window."""

    def encode(self, window: Tokenised, first: int, loop: BatchLoop) -> Rows:
        """Queue all work on a window: rows on the device, or a list of them.

        Args:
            window: result of `tokenise`.
            first: index of its first input in the stream, for errors.
            loop: cuts it into batches.
        """


class Stream:
    """Runs a task in this process, on the device of its model."""

    def __init__(self, task: Task, options: Options) -> None:
        """Without `options.batch_tokens`, the task's default applies."""
        self.task = task
        self.options = options
        self._budget = Budget(options.batch_tokens or task.batch_tokens(), options.batch_size)
        self._encoded = 0

    def run(self, inputs: Iterator[Any], progress: Progress | None = None) -> Iterator[Window]:
        """Run the task window by window.

        Args:
            inputs: of the task. On a GPU they are read two windows ahead of the results: one window
                is tokenised while the kernels of the other run.
            progress: in place of the bar of `options.show_progress_bar`. Its owner closes it, and
                counts cut inputs and broken rows, so there are no warnings of them.

        Yields: windows in order, their rows on the host or on the model's device
            (`options.to_host`); lists of rows stay on the device.

        Raises:
            TypeError: an input has the wrong type.
            TextError: an input is not valid Unicode, or is too long with truncate "error".
            torch.OutOfMemoryError: a single input does not fit into the GPU's memory.
        """
        self._encoded = 0
        if progress is not None:
            yield from self.windows(self.task.read(progress.watch(inputs)), progress)
            return
        with (
            Remarks(self.task) as remarks,
            Progress(self.options.show_progress_bar, self.task.doing) as bar,
        ):
            for window in self.windows(self.task.read(bar.watch(inputs)), bar):
                remarks.add(window.rows, len(window.lengths), len(window.cut))
                yield window

    def windows(self, inputs: Iterator[Any], progress: Progress) -> Iterator[Window]:
        """The stages of `run`; on a GPU each stage runs one window ahead of the next stage.

        Args:
            inputs: checked inputs.
            progress: receives the tokens read and done.
        """
        task, device = self.task, self.task.device
        keep_freed_memory(device)
        loop = BatchLoop(device, self._budget, progress)
        read = task.windows(inputs)
        encode = partial(self._encode, loop=loop)
        if not overlaps(device):
            yield from in_turn(in_turn(read, partial(partial, task.tokenise)), encode)
            return
        with Aside(task.tokenise) as tokenise:
            yield from one_ahead(one_ahead(read, tokenise), encode)

    def _encode(self, window: Tokenised, loop: BatchLoop) -> Callable[[], Window]:
        """Queue all work on a window; return a function that waits for its rows."""
        loop.progress.read(window.lengths)
        rows = self.task.encode(window, self._encoded, loop)
        self._encoded += len(window.lengths)
        end: Callable[[], Rows]
        if self.options.to_host and isinstance(rows, Tensor):
            end = landing(rows)
        else:
            end = staying(rows, self.task.device)
        return lambda: Window(end(), window.lengths, window.cut)


def overlaps(device: torch.device) -> bool:
    """Whether the device computes asynchronously, so that the host is free meanwhile."""
    return device.type == "cuda"
