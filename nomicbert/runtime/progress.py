"""The progress bar of a stream: tokens done, tokens a second, time left."""

import sys
from collections.abc import Iterator
from operator import length_hint
from types import TracebackType
from typing import Any

from tqdm import tqdm

# A bar that nobody asked for shows itself after as many seconds.
DELAY = 2.0


class Progress:
    """A bar that counts tokens, because they are what takes time.

    How many there will be is estimated from the inputs read so far and from how many are left,
    where their iterator tells that (`__length_hint__`, as those of lists do).

    Attributes:
        inputs: the same, which are counted as they are read.
    """

    def __init__(self, show: bool | None, inputs: Iterator[Any], doing: str = "Embedding") -> None:
        """`show`: None shows the bar on a terminal, once the work has taken a while."""
        self.inputs = Unread(inputs)
        self._read = self._tokens = 0
        # a bar that nobody sees would take a good part of a query's time
        self._bar: Any = None
        # where programs have no window for it, stderr is None
        on_terminal = getattr(sys.stderr, "isatty", bool)
        if on_terminal() if show is None else show:
            delay = DELAY if show is None else 0
            self._bar = tqdm(desc=doing, unit=" tokens", unit_scale=True, delay=delay)

    def read(self, lengths: list[int]) -> None:
        """The oldest inputs that were read have so many tokens, and wait to be encoded."""
        self.inputs.away -= len(lengths)
        if self._bar is None:
            return
        self._read += len(lengths)
        self._tokens += sum(lengths)
        left = length_hint(self.inputs, -1)
        if left >= 0:
            # shown with the next tokens: a refresh would not wait for the delay
            self._bar.total = round(self._tokens * (1 + left / self._read))

    def done(self, tokens: int) -> None:
        """So many tokens have been encoded."""
        if self._bar is not None:
            self._bar.update(tokens)

    def __enter__(self) -> "Progress":
        """The bar itself."""
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
    """The inputs, and how many are yet to come back: those not read and those under way."""

    def __init__(self, inputs: Iterator[Any]) -> None:
        """Nothing is read yet."""
        self.inputs = inputs
        self.away = 0

    def __next__(self) -> Any:
        """The next input, which is under way from now on."""
        found = next(self.inputs)
        self.away += 1
        return found

    def __length_hint__(self) -> int:
        """As many as that, where the inputs know."""
        left = length_hint(self.inputs, -1)
        return NotImplemented if left < 0 else left + self.away
