"""A batch of texts or pairs -> their rows; halves a failing batch until its cause is alone.

Where in the flow: on a compute thread, between `scheduler.take` and `engine`. Texts of requests
with different dimensions share the encoder's pass: they are pooled together and finished apart.
A CPU computes the same bits either way (docs/bits.md).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from nomicbert.modeling.heads import NomicBertForSequenceClassification
from nomicbert.modeling.packing import pack
from nomicbert.runtime.batches import halves
from nomicbert.runtime.graphs import Graphs
from nomicbert.serve.engine.jobs import Piece
from nomicbert.vectors.embedding_model import EmbeddingModel
from nomicbert.vectors.pooling import Finish
from nomicbert_kernels.tensors import to_device

# Tokens below which sizes of batches are rounded more coarsely.
SMALL = 256


class NotFinite(ArithmeticError):
    """A row has NaN or infinite values."""


class Replica:
    """One model on one device.

    Attributes:
        model: encoder and pooling, or encoder and classifier.
    """

    def __init__(self, model: EmbeddingModel | NomicBertForSequenceClassification) -> None:
        """Record graphs on a GPU; none are recorded yet."""
        self.model = model
        self._graphs = Graphs()

    @property
    def embedding_model(self) -> EmbeddingModel:
        """The model of a group of texts."""
        assert isinstance(self.model, EmbeddingModel), "texts are embedded, pairs are scored"
        return self.model

    @torch.inference_mode()
    def rows(self, batch: Sequence[Piece]) -> list[Tensor]:
        """The row of each piece, on the CPU.

        Args:
            batch: pieces of one group, the longest first.
        """
        group = batch[0].job.group
        # equal texts are computed once: a text has the same bits in any batch
        places: dict[tuple[Finish | None, int | None, tuple[int, ...]], int] = {}
        where = [
            places.setdefault((piece.job.finish, piece.split, tuple(piece.ids)), len(places))
            for piece in batch
        ]
        wanted = list(places)
        rows: list[Tensor] = [torch.empty(0)] * len(wanted)
        texts = [i for i, (_, _, ids) in enumerate(wanted) if ids]
        lists = [list(wanted[i][2]) for i in texts]
        found: list[Tensor] = []
        if not texts:
            pass
        elif isinstance(self.model, NomicBertForSequenceClassification):
            found = list(self.logits(lists, [wanted[i][1] for i in texts], group.skipped))
        elif group.hidden:
            found = self._hidden(lists)
        else:
            found = self._vectors(lists, [wanted[i][0] for i in texts], group.skipped)
        for i, row in zip(texts, found, strict=True):
            rows[i] = row
        for i, (finish, _, ids) in enumerate(wanted):
            if not ids:
                rows[i] = self._of_nothing(finish, group.hidden)
        return [rows[i] for i in where]

    def plain_rows(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Compute texts just as they are, for a warm-up; under inference_mode."""
        if isinstance(self.model, EmbeddingModel):
            return self.model.encode_ids(texts)
        return self.logits(texts, [None] * len(texts), rounded=False)

    def logits(
        self,
        pairs: Sequence[Sequence[int]],
        splits: Sequence[int | None],
        skipped: int = 0,
        *,
        rounded: bool = True,
    ) -> Tensor:
        """(B, num_labels) fp32 on the CPU, as `runtime.pairs` computes them.

        Args:
            pairs: token ids of each.
            splits: see `Piece`.
            skipped: leading tokens that are a prompt's.
            rounded: add a `filler` on a CPU.
        """
        model = self.model
        assert isinstance(model, NomicBertForSequenceClassification)
        lists = [*pairs]
        if rounded and model.device.type == "cpu":
            lists += filler(sum(map(len, pairs)))
        batch = pack(lists, model.device, skipped)
        kinds = np.zeros(sum(batch.lengths), np.int64)
        start = 0
        for length, split in zip(batch.lengths, splits, strict=False):
            kinds[start + (length if split is None else split) : start + length] = 1
            start += length
        batch = replace(batch, token_type_ids=to_device(kinds, model.device))
        return model.packed_logits(batch)[: len(pairs)].float().cpu()

    def _vectors(
        self, texts: list[list[int]], finishes: list[Finish | None], skipped: int
    ) -> list[Tensor]:
        model, kinds = self.embedding_model, dict.fromkeys(finishes)
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
        encoder = self.embedding_model.encoder
        states = encoder.encode_packed(pack(texts, encoder.device))
        states = states.to(encoder.dtype).float().cpu()  # as `encode`, where bf16 is widened
        return [part.clone() for part in torch.split(states, list(map(len, texts)))]

    def _of_nothing(self, finish: Finish | None, hidden: bool) -> Tensor:
        """The row of a text without tokens: zeros, as in EmbeddingModel and the head."""
        if isinstance(self.model, NomicBertForSequenceClassification):
            return torch.zeros(len(self.model.labels.names))
        pooling, width = self.model.pooling, self.model.encoder.config.hidden_size
        if hidden:
            return torch.empty(0, width)
        if finish is None:
            return torch.zeros(width * len(pooling.modes))
        columns = finish.matryoshka_dim or finish.truncate_dim or pooling.embedding_dimension
        return torch.zeros(columns)


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

    A batch that raises is computed again in two halves, down to single texts. A row that is not
    finite is an error of its text.
    """
    found: list[Tensor | Exception]
    try:
        found = [_checked(row) for row in compute(batch)]
    except Exception as error:  # any error of torch or of a kernel, reported to the request
        if len(batch) == 1:
            return [error]
        left, right = halves(list(range(len(batch))), [len(piece.ids) for piece in batch])
        found = isolate(compute, [batch[i] for i in left])
        found += isolate(compute, [batch[i] for i in right])
    return found


def _checked(row: Tensor) -> Tensor | Exception:
    if bool(row.isfinite().all()):
        return row
    return NotFinite("the row has NaN or infinite values")
