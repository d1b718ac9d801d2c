"""A window of inputs through a model, batch by batch; a batch that does not fit is halved.

Where in the flow: `stream` gives a task one of these for its windows, and the task says what
becomes of a batch. Every model of this package runs through this loop.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nomicbert.runtime.batches import halves, token_batches
from nomicbert.runtime.progress import Progress
from nomicbert_kernels.tensors import to_device

logger = logging.getLogger(__name__)

# Indices of a batch's inputs, the longest first -> what the model makes of them.
Encode = Callable[[list[int]], Tensor]


@dataclass
class Budget:
    """The size of a batch, which a stream lowers when memory runs out.

    Attributes:
        tokens: of a batch at most.
        inputs: of a batch at most, or None.
    """

    tokens: int
    inputs: int | None = None


class BatchLoop:
    """Cuts windows into batches of like length, and counts what is done."""

    def __init__(self, device: torch.device, budget: Budget, progress: Progress) -> None:
        """`budget` stays lowered for the caller's later loops, too."""
        self.device = device
        self.budget = budget
        self.progress = progress

    def each(self, lengths: Sequence[int], encode: Encode) -> Iterator[tuple[list[int], Tensor]]:
        """(indices of inputs, what `encode` makes of them), the longest first.

        A batch that a GPU has no memory for is halved, and so are those after it.

        Args:
            lengths: tokens of each input of a window.
            encode: see Encode.

        Raises: torch.OutOfMemoryError: a single input is too much.
        """
        waiting = deque(token_batches(lengths, self.budget.tokens, self.budget.inputs))
        while waiting:
            indices = waiting.popleft()
            tokens = sum(lengths[i] for i in indices)
            try:
                found = encode(indices)
            except torch.OutOfMemoryError:
                if len(indices) == 1:
                    raise
                self._lower(tokens)
                parts = [part for batch in (indices, *waiting) for part in halves(batch, lengths)]
                waiting = deque(parts)
                continue
            yield indices, found
            self.progress.done(tokens)

    def rows(self, lengths: Sequence[int], encode: Encode) -> Tensor:
        """The same as one tensor, a row for each input in order; under inference_mode."""
        rows = torch.empty(0)
        for indices, found in self.each(lengths, encode):
            if not rows.numel():
                rows = found.new_empty(len(lengths), found.shape[1])
            rows.index_copy_(0, to_device(np.array(indices), found.device), found)
        return rows

    def _lower(self, tokens: int) -> None:
        """Allow half of what did not fit."""
        self.budget.tokens = max(1, min(self.budget.tokens, tokens) // 2)
        logger.warning(
            "a batch of %d tokens does not fit into the memory of %s: %d at most in the "
            "rest of this call; give it batch_tokens",
            tokens,
            self.device,
            self.budget.tokens,
        )
