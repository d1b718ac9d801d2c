"""Packed token ids -> vectors: the encoder and its pooling, as one module.

Where in the flow: streams, fine-tuning and all other code that embeds call this module. It knows
neither texts nor files.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from nomicbert.modeling.context import ForwardContext
from nomicbert.modeling.model import NomicBert
from nomicbert.modeling.packing import PackedBatch, at_rows, offsets, pack
from nomicbert.modeling.plain_layers import refuse_hooks
from nomicbert.vectors.pooling import Finish, Pooling
from nomicbert_kernels import Weight
from nomicbert_kernels.backend import plan_runs
from nomicbert_kernels.tensors import to_device

AS_IT_IS = Finish()
# Rows that `pooled_spans` gathers at once, in multiples of the batch's tokens.
AT_ONCE = 4


class EmbeddingModel(nn.Module):
    """An encoder and its pooling.

    Attributes:
        encoder: token ids -> hidden states.
        pooling: hidden states -> one vector per text.
    """

    def __init__(self, encoder: NomicBert, pooling: Pooling) -> None:
        """Keep references: nothing is copied or moved."""
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling

    @property
    def device(self) -> torch.device:
        """Device of the encoder's parameters."""
        return self.encoder.device

    def forward(self, batch: PackedBatch, finish: Finish = AS_IT_IS) -> Tensor:
        """Encode and pool a batch, with gradients if they are enabled.

        Args:
            batch: B packed texts.
            finish: steps after the checkpoint's own modules.

        Returns: (B, dim) fp32; zeros for an empty text.
        """
        filled, kept = batch.without_empty()
        x = self.vectors(self.encoder.context(filled), finish)
        if filled is batch:
            return x
        # empty texts were left out: the others keep their bits, and no bias makes zeros non-zero
        return at_rows(x, kept, len(batch.lengths))

    def encode_ids(self, texts: Sequence[Sequence[int]], finish: Finish = AS_IT_IS) -> Tensor:
        """Pack the token ids of B texts, then encode and pool them."""
        vectors: Tensor = self(pack(texts, self.device), finish)
        return vectors

    def vectors(self, ctx: ForwardContext, finish: Finish) -> Tensor:
        """Run encoder and pooling on a context: (B, dim) fp32; undefined for an empty text."""
        rows = self.pooling.rows(ctx.batch)
        vectors: Tensor = self.pooling(self.encoder.core(ctx, rows), ctx, rows, finish)
        return vectors

    def pooled(self, batch: PackedBatch) -> Tensor:
        """The pooled hidden states, before Dense and other steps: (B, hidden_size x modes) fp32.

        Raises: ValueError: a hook on this module or its parts, which are not called here.
        """
        self._refuse_hooks()
        ctx = self.encoder.context(batch)
        rows = self.pooling.rows(batch)
        return self.pooling.pool(self.encoder.core(ctx, rows), ctx, rows)

    def pooled_spans(self, batch: PackedBatch, spans: Sequence[Sequence[range]]) -> Tensor:
        """Means over spans of tokens, before Dense and other steps: (n, hidden_size) fp32.

        Args:
            batch: B packed texts; those of empty ones are zeros.
            spans: for each text, ranges of its tokens; n in all.

        Raises: ValueError: a hook, as in `pooled`.
        """
        self._refuse_hooks()
        encoder, filled = self.encoder, batch.without_empty()[0]
        hidden = encoder.core(encoder.context(filled), None)
        starts = np.cumsum(batch.lengths) - batch.lengths
        flat = [(start, span) for start, own in zip(starts, spans, strict=True) for span in own]
        counts = np.array([len(span) for _, span in flat])
        # spans that overlap hold more rows than there are tokens: part by part then
        part = (np.cumsum(counts) - counts) // max(AT_ONCE * len(hidden), 1)
        means = []
        for a, b in pairwise([0, *np.flatnonzero(np.diff(part)) + 1, len(flat)]):
            places = [np.arange(start + span.start, start + span.stop) for start, span in flat[a:b]]
            rows = hidden.index_select(0, to_device(np.concatenate(places), hidden.device))
            lengths = counts[a:b].tolist()
            plan = plan_runs(lengths, 1, 1, hidden.dtype)
            means.append(encoder.ops.pool(rows, offsets(lengths, hidden.device), plan, "mean"))
        return torch.cat(means)

    def finish(self, pooled: Tensor, finish: Finish) -> Tensor:
        """Apply the steps after pooling: what `pooled` returns -> (B, dim) fp32."""
        self._refuse_hooks()
        return self.pooling.finish(self.encoder.ops, pooled, finish)

    def _refuse_hooks(self) -> None:
        for module in (self, self.pooling):
            refuse_hooks(module)

    def prepared_weights(self) -> list[Weight]:
        """The weights of encoder and pooling prepared so far."""
        return [*self.encoder.prepared_weights(), *self.pooling.prepared_weights()]
