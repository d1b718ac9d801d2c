"""Warnings of one call about its inputs and rows, given once, when the call ends.

Where in the flow: `stream` and `workers` add each window before they yield its rows.
"""

import math
from types import TracebackType
from typing import Protocol

from torch import Tensor

from nomicbert.user_warnings import VectorWarning, warn, warn_of_cuts


class Named(Protocol):
    """The part of a Task that messages name.

    Attributes:
        inputs: word for the inputs, such as "texts".
        max_length: limit of tokens per input.
    """

    inputs: str
    max_length: int


class Remarks:
    """Counts inputs that were cut, and inputs whose rows are not finite."""

    def __init__(self, task: Named) -> None:
        """Start counting at 0."""
        self._task = task
        self._inputs = self._cut = self._broken = 0
        # of rows that stay on a GPU: to wait for them here would stop the next window
        self._counts: list[Tensor] = []

    def add(self, rows: Tensor | list[Tensor], inputs: int, cut: int) -> None:
        """Count the rows of `inputs` more inputs, `cut` of which were truncated."""
        self._inputs += inputs
        self._cut += cut
        for part in [rows] if isinstance(rows, Tensor) else rows:
            if part.is_cuda:
                self._counts.append(broken(part))
            # an overflow of the sum is no problem: the rows are then looked at one by one
            elif not math.isfinite(part.sum().item()):
                self._broken += int(broken(part))

    def __enter__(self) -> "Remarks":
        """Return the counter itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Warn, unless the stream failed. A stream closed early, as by zip, ends normally."""
        if kind not in (None, GeneratorExit):
            return
        task = self._task
        warn_of_cuts(self._cut, self._inputs, task.inputs, task.max_length)
        found = self._broken + sum(int(count) for count in self._counts)
        if found:
            warn(
                f"{found} rows computed from {self._inputs} {task.inputs} hold NaN or infinite "
                "values: the weights are damaged, or too large for their dtype. Download the "
                "checkpoint again, or load it with dtype=torch.float32",
                VectorWarning,
            )


def broken(rows: Tensor) -> Tensor:
    """Number of rows with a value that is not finite, as a tensor on their device."""
    return rows.isfinite().all(-1).logical_not().count_nonzero()
