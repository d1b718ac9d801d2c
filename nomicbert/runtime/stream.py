"""A stream of inputs -> a stream of rows, window by window, in the order of the inputs.

Where in the flow: `Embedder` and `CrossEncoder` say what is wanted, as a Task (see `texts` and
`pairs`); here a window of inputs is read, tokenised and encoded, and its rows come back in order.
Memory depends on the window, not on the stream. On a GPU the next window is tokenised meanwhile,
and its kernels are queued before the rows of this one have arrived.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from nomicbert.arguments import as_whole
from nomicbert.runtime.allocator import keep_freed_memory
from nomicbert.runtime.batch_loop import BatchLoop, Budget
from nomicbert.runtime.pipeline import Aside, in_turn, landing, one_ahead, staying
from nomicbert.runtime.progress import Progress
from nomicbert.user_warnings import warn_of_cuts

Rows = Tensor | list[Tensor]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a stream runs, whatever it computes.

    Attributes:
        batch_tokens: tokens of a batch at most; None takes what suits the device.
        batch_size: inputs of a batch at most, or None.
        to_host: rows are wanted in the host's memory.
        show_progress_bar: None shows one on a terminal when the work takes long.
    """

    batch_tokens: int | None = None
    batch_size: int | None = None
    to_host: bool = True
    show_progress_bar: bool | None = None

    def __post_init__(self) -> None:
        """Refuse sizes that are none.

        Raises: TypeError, ValueError: the message names the argument.
        """
        for name in ("batch_tokens", "batch_size"):
            if (size := getattr(self, name)) is not None and as_whole(name, size) < 1:
                raise ValueError(f"{name} must be at least 1, not {size}")


class Tokenised(NamedTuple):
    """A window of inputs as token ids.

    Attributes:
        lengths: tokens of each input.
        cut: indices of the inputs that were cut.
        ids: the token ids, in the form that the task wants.
    """

    lengths: list[int]
    cut: list[int]
    ids: Any


class Window(NamedTuple):
    """What became of a window.

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
        inputs: what they are, in messages: "texts".
        doing: what the progress bar says.
        max_length: tokens of an input at most.
    """

    inputs: str
    doing: str
    max_length: int

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    def batch_tokens(self) -> int:
        """Tokens of a batch that suit the device."""

    def read(self, inputs: Iterable[Any]) -> Iterator[Any]:
        """The inputs as they are; an error names the first that cannot be."""

    def windows(self, inputs: Iterable[Any]) -> Iterator[list[Any]]:
        """Neighbouring inputs, in lists that are tokenised and sorted together."""

    def letters(self, inputs: list[Any]) -> list[int]:
        """Of each input those that count: what lies beyond `max_length` is never tokenised."""

    def tokenise(self, window: list[Any]) -> Tokenised:
        """Token ids of a window."""

    def encode(self, window: Tokenised, first: int, loop: BatchLoop) -> Rows:
        """Queue all work on a window: rows on the device, or a list of them.

        Args:
            window: what `tokenise` has made.
            first: number of its first input in the stream, for errors.
            loop: cuts it into batches.
        """


class Truncation:
    """How many inputs were cut; it warns, once, when a stream ends or is left before its end."""

    def __init__(self, task: Task) -> None:
        """Nothing is cut yet."""
        self._task = task
        self._inputs = self._cut = 0

    def add(self, inputs: int, cut: int) -> None:
        """So many more inputs have come, and of these so many were cut."""
        self._inputs += inputs
        self._cut += cut

    def __enter__(self) -> "Truncation":
        """The count itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Warn; an error says enough by itself, but zip leaves a stream by GeneratorExit."""
        if kind in (None, GeneratorExit):
            task = self._task
            warn_of_cuts(self._cut, self._inputs, task.inputs, task.max_length)


class Stream:
    """The way of inputs through a task on the device where its model is."""

    def __init__(self, task: Task, options: Options) -> None:
        """What is to be done, and how."""
        self.task = task
        self.options = options
        self._budget = Budget(options.batch_tokens or task.batch_tokens(), options.batch_size)
        self._encoded = 0

    def run(self, inputs: Iterator[Any]) -> Iterator[Rows]:
        """Do the task window by window.

        Args:
            inputs: of the task. On a GPU they are read two windows further than what has been
                yielded: one is tokenised while the kernels of the other run.

        Yields: a window's rows in order, on the host or on the model's device as the options say;
            lists of rows stay on the device.

        Raises:
            TypeError: an input of another type.
            TextError: one that is no valid Unicode; one that is too long, where that is an error.
            torch.OutOfMemoryError: a single input is too much for the GPU.
        """
        task = self.task
        with (
            Truncation(task) as truncation,
            Progress(self.options.show_progress_bar, inputs, task.doing) as progress,
        ):
            for window in self.windows(task.read(progress.inputs), progress):
                truncation.add(len(window.lengths), len(window.cut))
                yield window.rows

    def windows(self, inputs: Iterator[Any], progress: Progress) -> Iterator[Window]:
        """The stages of `run`, each a window ahead of the one behind it on a GPU.

        Args:
            inputs: that have been checked.
            progress: is told what is read and what is done.
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
        """Queue all work on a window; what is returned waits for its rows."""
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
    """Whether work on a device leaves the host free for other work."""
    return device.type == "cuda"
