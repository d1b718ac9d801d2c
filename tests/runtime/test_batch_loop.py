"""A window's rows, batch by batch; running out of memory is in test_pipeline."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from nomicbert.runtime.batch_loop import BatchLoop, Budget
from nomicbert.runtime.progress import Progress

TABLE = torch.arange(40.0).view(10, 4)


class Counted(Progress):
    """Counts the tokens done."""

    def __init__(self) -> None:
        super().__init__(show=False)
        self.tokens: list[int] = []

    def done(self, tokens: int) -> None:
        self.tokens.append(tokens)


def run(
    lengths: Sequence[int], batch_tokens: int, width: int = 4
) -> tuple[Tensor, list[Tensor], list[int]]:
    """The rows of a window, the batches they came from, and the tokens done."""
    batches: list[Tensor] = []

    def encode(indices: list[int]) -> Tensor:
        batches.append(TABLE[indices][:, :width])
        return batches[-1]

    progress = Counted()
    loop = BatchLoop(torch.device("cpu"), Budget(batch_tokens), progress)
    return loop.rows(lengths, encode), batches, progress.tokens


@pytest.mark.parametrize(
    ("lengths", "batch_tokens", "batches"),
    [([3], 9, 1), ([5, 4, 4], 20, 1), ([2, 9, 4], 20, 1), ([5, 4, 3], 9, 2), ([1, 2, 3, 4], 4, 3)],
)
def test_rows_are_in_the_order_of_the_inputs(
    lengths: list[int], batch_tokens: int, batches: int
) -> None:
    rows, found, tokens = run(lengths, batch_tokens)
    assert torch.equal(rows, TABLE[: len(lengths)])
    assert len(found) == len(tokens) == batches
    assert sum(tokens) == sum(lengths)


def test_a_batch_in_order_is_not_copied() -> None:
    """As a query is: its vector is copied once, to the host."""
    for lengths in ([3], [5, 4, 4]):
        rows, (batch,), _ = run(lengths, 20)
        assert rows.data_ptr() == batch.data_ptr()
    rows, (batch,), _ = run([4, 5], 20)
    assert rows.data_ptr() != batch.data_ptr()


def test_rows_are_contiguous() -> None:
    """Columns cut off after pooling would stay in memory, and stride the caller's array."""
    rows, (batch,), _ = run([5, 4, 4], 20, width=2)
    assert not batch.is_contiguous()
    assert rows.is_contiguous()
    assert torch.equal(rows, TABLE[:3, :2])
