"""The progress bar of a stream: tokens done, tokens per second, time left."""

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from operator import length_hint
from types import TracebackType
from typing import Any

from tqdm import tqdm

# Seconds before a bar appears that was not requested.
DELAY = 2.0


def in_notebook() -> bool:
    """Whether this process is the kernel of a Jupyter notebook."""
    return "ipykernel" in sys.modules


def is_watched() -> bool:
    """Whether somebody sees a bar: on a terminal and in a notebook."""
    # stderr is None in programs without a console (pythonw)
    return in_notebook() or bool(getattr(sys.stderr, "isatty", bool)())


def new_bar(**settings: Any) -> Any:
    """A tqdm bar; in a notebook that has ipywidgets, the one that is drawn there."""
    if in_notebook() and find_spec("ipywidgets") is not None:
        from tqdm.notebook import tqdm as notebook_bar

        return notebook_bar(**settings)
    return tqdm(**settings)


class Progress:
    """A bar that counts tokens, because time is proportional to tokens.

    The total is estimated from the inputs read so far and the number of inputs left, if their
    iterator has a `__length_hint__`, as iterators of lists have.

    A subclass shows something else: a Stream calls `watch` once, `read` and `done`.
    """

    def __init__(self, show: bool | None, doing: str = "Embedding") -> None:
        """`show`: None shows the bar where somebody sees it, after DELAY seconds."""
        self._inputs = Unread(iter(()))
        self._read = self._tokens = 0
        # no hidden bar: creating one would take a good part of a query's time
        self._bar: Any = None
        if is_watched() if show is None else show:
            delay = DELAY if show is None else 0
            self._bar = new_bar(desc=doing, unit=" tokens", unit_scale=True, delay=delay)

    def watch(self, inputs: Iterator[Any]) -> Iterator[Any]:
        """Return an iterator over these inputs that counts them as they are read."""
        self._inputs = Unread(inputs)
        return self._inputs

    def read(self, lengths: list[int]) -> None:
        """Report the token counts of the oldest inputs that have not been reported yet."""
        self._inputs.away -= len(lengths)
        if self._bar is None:
            return
        self._read += len(lengths)
        self._tokens += sum(lengths)
        left = length_hint(self._inputs, -1)
        if left >= 0:
            # shown with the next update: refresh() would ignore the delay
            self._bar.total = round(self._tokens * (1 + left / self._read))

    def done(self, tokens: int) -> None:
        """Report that this number of tokens has been encoded."""
        if self._bar is not None:
            self._bar.update(tokens)

    def __enter__(self) -> "Progress":
        """Return the bar itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()


class Unread(Iterator[Any]):
    """Iterator over inputs whose length hint also counts inputs read but not reported yet.

    Attributes:
        inputs: the underlying iterator.
        away: number of inputs read, less those reported to `Progress.read`.
    """

    def __init__(self, inputs: Iterator[Any]) -> None:
        """Nothing is read yet."""
        self.inputs = inputs
        self.away = 0

    def __next__(self) -> Any:
        """Return the next input and count it as away."""
        found = next(self.inputs)
        self.away += 1
        return found

    def __length_hint__(self) -> int:
        """Inputs left plus inputs away, if the inputs have a length hint."""
        left = length_hint(self.inputs, -1)
        return NotImplemented if left < 0 else left + self.away
