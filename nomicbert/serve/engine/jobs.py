"""What the engine computes for one request: lists of token ids, and a row for each.

Where in the flow: `tokens` makes a Job of a request, `scheduler` cuts the waiting jobs into
batches, `compute` fills the rows, and `engine` hands the finished job back to the event loop.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nomicbert.vectors.embedding_model import EmbeddingModel
from nomicbert.vectors.pooling import Finish
from nomicbert.vectors.windows import mean_of_windows, token_mean

Rows = list[Tensor]


class Group(NamedTuple):
    """Pieces of one group may share a batch.

    Attributes:
        model: index of the model.
        skipped: leading tokens of each piece that pooling leaves out.
        hidden: whether hidden states of every token are wanted.
    """

    model: int
    skipped: int = 0
    hidden: bool = False


class Job:
    """The work of one request, or of a slice of a stream.

    Attributes:
        group: which other jobs it may share a batch with.
        pieces: token ids; each becomes one row.
        finish: steps after pooling; None for the pooled hidden states.
        join: rows of the pieces -> rows of the texts, on the compute thread; or None.
        splits: of pairs of texts, per piece the number of leading tokens of type 0; None for all.
        rows: per piece (dim,) fp32 on the CPU, (tokens, hidden_size) for hidden states, or
            (num_labels,) for a reranker's logits; None while it waits. After the end: per text.
        waiting: indices of the pieces that no batch has yet, the shortest first.
        missing: number of rows that are None.
        served: tokens that were put into batches so far.
        error: why it failed, or None.
        dropped: whether nobody waits for it any more.
    """

    __slots__ = (
        "arrival", "arrived", "dropped", "error", "finish", "group", "join", "missing", "pieces",
        "rows", "served", "splits", "started", "waiting",
    )  # fmt: skip

    def __init__(
        self,
        group: Group,
        pieces: Sequence[list[int]],
        finish: Finish | None,
        join: "Join | None" = None,
        splits: Sequence[int] | None = None,
    ) -> None:
        """See the attributes; nothing is computed yet."""
        self.group = group
        self.pieces = pieces
        self.finish = finish
        self.join = join
        self.splits = splits
        self.rows: list[Tensor | None] = [None] * len(pieces)
        self.waiting = sorted(range(len(pieces)), key=lambda i: len(pieces[i]))
        self.missing = len(pieces)
        self.served = 0
        self.arrival = 0
        self.arrived = 0.0
        self.started: float | None = None
        self.error: BaseException | None = None
        self.dropped = False

    @property
    def results(self) -> Rows:
        """The rows of a job that has ended well."""
        found = [row for row in self.rows if row is not None]
        assert len(found) == len(self.rows), "a row is missing"
        return found


class Piece(NamedTuple):
    """One list of token ids in a batch: `job.pieces[number]`."""

    job: Job
    number: int

    @property
    def ids(self) -> list[int]:
        """The token ids."""
        return self.job.pieces[self.number]

    @property
    def split(self) -> int | None:
        """Leading tokens of type 0, which those of type 1 follow; None if all are of type 0."""
        return None if self.job.splits is None else self.job.splits[self.number]


# The model and the rows of a job's pieces -> the rows of its texts.
Join = Callable[[EmbeddingModel, Rows], Rows]


@dataclass(frozen=True)
class WindowMeans:
    """A Join: mean of the unit vectors of each text's windows (`truncate="mean"`).

    Attributes:
        counts: windows of each text.
    """

    counts: tuple[int, ...]

    def __call__(self, model: EmbeddingModel, rows: Rows) -> Rows:
        """See Join."""
        return list(mean_of_windows(torch.stack(rows), self.counts))


@dataclass(frozen=True)
class TokenMeans:
    """A Join: mean over the tokens of each text's windows (`truncate="chunk"`).

    Attributes:
        counts: windows of each text.
        lengths: tokens of each window.
        skipped: leading tokens of each window that pooling leaves out.
        finish: steps after pooling.
    """

    counts: tuple[int, ...]
    lengths: tuple[int, ...]
    skipped: int
    finish: Finish

    def __call__(self, model: EmbeddingModel, rows: Rows) -> Rows:
        """See Join."""
        lengths, counts = np.array(self.lengths), np.array(self.counts)
        pooled_tokens = np.maximum(lengths - self.skipped, 0)
        pooled = token_mean(torch.stack(rows), pooled_tokens, self.counts)
        found = list(model.finish(pooled.to(model.device), self.finish).cpu())
        firsts = np.cumsum(counts) - counts
        for i, tokens in enumerate(np.add.reduceat(lengths, firsts)):
            if not tokens:
                found[i].zero_()  # a text without tokens is zeros, as in EmbeddingModel
        return found
