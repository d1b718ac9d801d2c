"""A batch of texts -> their rows; halves a batch that fails until the text at fault is alone.

Where in the flow: on a compute thread, between `scheduler.take` and `engine`. Texts of requests
with different dimensions share the encoder's pass: they are pooled together and finished apart.
A CPU computes the same bits either way (docs/bits.md).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nomicbert.modeling.packing import pack
from nomicbert.runtime.batches import halves
from nomicbert.runtime.graphs import Graphs
from nomicbert.serve.engine.jobs import Piece
from nomicbert.serve.http.problems import Problem
from nomicbert.vectors.embedding_model import EmbeddingModel
from nomicbert.vectors.pooling import Finish

# Tokens below which sizes of batches are rounded more coarsely.
SMALL = 256


class NotFinite(ArithmeticError):
    """A row has NaN or infinite values."""


class TookTooLong(Exception):
    """A batch was given up after a time that a text at fault takes each time."""


class Replica:
    """One model on one device.

    Attributes:
        model: encoder and pooling.
    """

    def __init__(self, model: EmbeddingModel) -> None:
        """Record graphs on a GPU; none are recorded yet."""
        self.model = model
        self._graphs = Graphs()

    @torch.inference_mode()
    def rows(self, batch: Sequence[Piece]) -> list[Tensor]:
        """The row of each piece, on the CPU.

        Args:
            batch: pieces of one group, the longest first.
        """
        skipped, hidden = batch[0].job.group.skipped, batch[0].job.group.hidden
        # equal texts are computed once: a text has the same bits in any batch
        places: dict[tuple[Finish | None, tuple[int, ...]], int] = {}
        where = [
            places.setdefault((piece.job.finish, tuple(piece.ids)), len(places)) for piece in batch
        ]
        wanted = list(places)
        rows: list[Tensor] = [torch.empty(0)] * len(wanted)
        texts = [i for i, (_, ids) in enumerate(wanted) if ids]
        lists = [list(wanted[i][1]) for i in texts]
        finishes = [wanted[i][0] for i in texts]
        found: list[Tensor] = []
        if texts:
            found = self._hidden(lists) if hidden else self._vectors(lists, finishes, skipped)
        for i, row in zip(texts, found, strict=True):
            rows[i] = row
        for i, (finish, ids) in enumerate(wanted):
            if not ids:  # a text without tokens is zeros, as in EmbeddingModel
                width = self.model.encoder.config.hidden_size
                rows[i] = torch.empty(0, width) if hidden else torch.zeros(self._width(finish))
        return [rows[i] for i in where]

    def _vectors(
        self, texts: list[list[int]], finishes: list[Finish | None], skipped: int
    ) -> list[Tensor]:
        model, kinds = self.model, dict.fromkeys(finishes)
        if model.device.type == "cpu":
            texts = [*texts, *filler(sum(map(len, texts)))]
        (first, *others) = kinds
        if first is not None and not others and not skipped:
            return list(self._graphs.around(model)(texts, first).cpu())[: len(finishes)]
        batch = pack(texts, model.device, skipped)
        if first is not None and not others:
            return list(model(batch, first).cpu())[: len(finishes)]
        pooled = model.pooled(batch)
        rows: list[Tensor] = [torch.empty(0)] * len(finishes)
        for finish in kinds:
            indices = [i for i, own in enumerate(finishes) if own == finish]
            part = pooled[torch.tensor(indices, device=pooled.device)]
            done = part if finish is None else model.finish(part, finish)
            for i, row in zip(indices, done.cpu(), strict=True):
                rows[i] = row
        return rows

    def _hidden(self, texts: list[list[int]]) -> list[Tensor]:
        encoder = self.model.encoder
        states = encoder.encode_packed(pack(texts, encoder.device))
        states = states.to(encoder.dtype).float().cpu()  # as `encode`, where bf16 is widened
        return [part.clone() for part in torch.split(states, list(map(len, texts)))]

    def _width(self, finish: Finish | None) -> int:
        pooling = self.model.pooling
        if finish is None:
            return self.model.encoder.config.hidden_size * len(pooling.modes)
        return finish.matryoshka_dim or finish.truncate_dim or pooling.embedding_dimension


def filler(tokens: int) -> list[list[int]]:
    """A text without a meaning that rounds a batch of `tokens` tokens up; or none.

    oneDNN makes new code for every number of rows that a linear layer meets: 3.6 ms and 1.4 MB for
    all-MiniLM-L6-v2, as measured on an AMD EPYC. With rounded numbers there are few: 112 of up to
    512 tokens. The rows of other texts keep their bits, as in any batch.

    Small batches grow by 6% at most, those of 256 tokens and more by 3%.
    """
    step = 1 << max(0, tokens.bit_length() - (5 if tokens < SMALL else 6))
    missing = -tokens % step
    return [[0] * missing] if missing else []


# A batch -> its rows.
Compute = Callable[[Sequence[Piece]], list[Tensor]]


def isolate(compute: Compute, batch: list[Piece]) -> list[Tensor | Exception]:
    """The row of each piece, or the error that it causes alone.

    A batch that raises is computed again in two halves, down to single texts; one that took too
    long, text by text. A row that is not finite is an error of its text. A Problem is one of the
    server, whatever the texts.
    """
    try:
        return [_checked(row) for row in compute(batch)]
    except Problem as problem:
        return [problem] * len(batch)
    except Exception as error:  # any error of torch or of a kernel, reported to the request
        if len(batch) == 1:
            return [error]
        places = list(range(len(batch)))
        if isinstance(error, TookTooLong):
            parts = [[place] for place in places]
        else:
            parts = halves(places, [len(piece.ids) for piece in batch])
        return [row for part in parts for row in isolate(compute, [batch[i] for i in part])]


def _checked(row: Tensor) -> Tensor | Exception:
    if bool(row.isfinite().all()):
        return row
    return NotFinite("the vector has NaN or infinite values")
