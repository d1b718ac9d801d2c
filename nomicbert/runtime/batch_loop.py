"""Run a window of inputs through a model, batch by batch; halve batches that do not fit.

Where in the flow: `stream` creates a BatchLoop and passes it to the task with each window; the task
supplies the function that encodes a batch. Every model of this package runs through this loop.
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

# Indices of a batch's inputs, the longest first -> the model's output for them.
Encode = Callable[[list[int]], Tensor]


@dataclass
class Budget:
    """Limits of a batch; a stream lowers them when memory runs out.

    Attributes:
        tokens: limit per batch.
        inputs: limit per batch, or None.
    """

    tokens: int
    inputs: int | None = None


class BatchLoop:
    """Cuts windows into batches of similar length, runs them and reports progress."""

    def __init__(self, device: torch.device, budget: Budget, progress: Progress) -> None:
        """`budget` is shared: once lowered, it stays lowered for the caller's later loops."""
        self.device = device
        self.budget = budget
        self.progress = progress

    def each(self, lengths: Sequence[int], encode: Encode) -> Iterator[tuple[list[int], Tensor]]:
        """Yield (indices of inputs, output of `encode`) per batch, the longest first.

        A batch that runs out of GPU memory is halved, as are all later ones.

        Args:
            lengths: tokens of each input of a window.
            encode: see Encode.

        Raises: torch.OutOfMemoryError: a single input does not fit.
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
        """`each` as one tensor with a row per input, in input order; under inference_mode."""
        rows, all_in_order = torch.empty(0), list(range(len(lengths)))
        for indices, found in self.each(lengths, encode):
            if indices == all_in_order:
                rows = found.contiguous()  # one batch, in input order
                continue
            if not rows.numel():
                rows = found.new_empty(len(lengths), found.shape[1])
            rows.index_copy_(0, to_device(np.array(indices), found.device), found)
        return rows

    def _lower(self, tokens: int) -> None:
        """Halve the limit, based on the size of the batch that did not fit."""
        self.budget.tokens = max(1, min(self.budget.tokens, tokens) // 2)
        logger.warning(
            "a batch of %d tokens does not fit into the memory of %s: the rest of this call uses "
            "at most %d; set batch_tokens to avoid this",
            tokens,
            self.device,
            self.budget.tokens,
        )
