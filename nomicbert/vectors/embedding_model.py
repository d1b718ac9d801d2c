"""Packed token ids -> vectors: the encoder, and the pooling that reads its hidden states.

Where in the flow: all that computes, as one module. Streams, fine-tuning and whatever else embeds
take this one; texts and files are known only outside of it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nomicbert.modeling.context import ForwardContext
from nomicbert.modeling.model import NomicBert
from nomicbert.modeling.packing import PackedBatch, pack
from nomicbert.vectors.pooling import Finish, Pooling
from nomicbert_kernels import Weight

AS_IT_IS = Finish()


class EmbeddingModel(nn.Module):
    """An encoder and its pooling.

    Attributes:
        encoder: token ids -> hidden states.
        pooling: hidden states -> one vector a text.
    """

    def __init__(self, encoder: NomicBert, pooling: Pooling) -> None:
        """Both stay the caller's own: nothing is copied or moved."""
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling

    @property
    def device(self) -> torch.device:
        """Where the encoder's parameters are."""
        return self.encoder.device

    def forward(self, batch: PackedBatch, finish: Finish = AS_IT_IS) -> Tensor:
        """Encode and pool a batch, with gradients where they are on.

        Args:
            batch: B packed texts.
            finish: what becomes of the vectors beyond the checkpoint's own modules.

        Returns: (B, dim) fp32; a text without tokens gives zeros.
        """
        filled, kept = batch.without_empty()
        x = self.vectors(self.encoder.context(filled), finish)
        if filled is batch:
            return x
        # computed without them, so that the others have the same bits and no bias is added
        places = torch.tensor(kept, dtype=torch.int64, device=x.device)
        return x.new_zeros(len(batch.lengths), x.shape[1]).index_copy(0, places, x)

    def encode_ids(self, texts: Sequence[Sequence[int]], finish: Finish = AS_IT_IS) -> Tensor:
        """The same for the token ids of B texts, which are packed first."""
        vectors: Tensor = self(pack(texts, self.device), finish)
        return vectors

    def vectors(self, ctx: ForwardContext, finish: Finish) -> Tensor:
        """All that follows planning: (B, dim) fp32; nothing is known of a text without tokens."""
        rows = self.pooling.rows(ctx.batch)
        vectors: Tensor = self.pooling(self.encoder.core(ctx, rows), ctx, rows, finish)
        return vectors

    def pooled(self, batch: PackedBatch) -> Tensor:
        """The pooled hidden states alone, without what follows: (B, hidden_size) fp32."""
        ctx = self.encoder.context(batch)
        rows = self.pooling.rows(batch)
        return self.pooling.pool(self.encoder.core(ctx, rows), ctx, rows)

    def finish(self, pooled: Tensor, finish: Finish) -> Tensor:
        """What follows pooling: (B, hidden_size) fp32 -> (B, dim) fp32."""
        return self.pooling.finish(self.encoder.ops, pooled, finish)

    def prepared_weights(self) -> list[Weight]:
        """What the backend has prepared of the parameters so far."""
        return [*self.encoder.prepared_weights(), *self.pooling.prepared_weights()]
