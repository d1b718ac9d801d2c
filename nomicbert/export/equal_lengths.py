"""What a program of torch.export records: a model called on B texts of S tokens each.

It plans a pass by tensors alone, and runs the encoder itself with the reference's ops for texts of
one length (`EQUAL_LENGTHS` in `nomicbert_kernels.backend`). There is no second encoder to keep in
step: only the plan, the angles, attention and pooling have forms of their own, of the same
formulas.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from nomicbert.modeling.context import ForwardContext
from nomicbert.modeling.model import NomicBert
from nomicbert.modeling.packing import PackedBatch, unpad
from nomicbert.modeling.prepared_weights import PreparedWeights
from nomicbert.vectors.embedding_model import EmbeddingModel
from nomicbert.vectors.pooling import Finish
from nomicbert_kernels import Plan, Run
from nomicbert_kernels.backend import EQUAL_LENGTHS, REFERENCE


class EqualLengths(nn.Module):
    """An encoder, or encoder and pooling, called on texts of one length.

    Attributes:
        model: what is called.
        finish: steps after pooling.
    """

    def __init__(self, model: NomicBert | EmbeddingModel, finish: Finish) -> None:
        """Keep the model, not a copy; `finish` is for an EmbeddingModel."""
        super().__init__()
        self.model = model
        self.finish = finish

    @property
    def encoder(self) -> NomicBert:
        """The model, or the encoder in it."""
        return self.model.encoder if isinstance(self.model, EmbeddingModel) else self.model

    def forward(self, input_ids: Tensor, *, token_type_ids: Tensor | None = None) -> Tensor:
        """Plan, then encode.

        Args:
            input_ids: (B, S) int64.
            token_type_ids: (B, S) int64; None means type 0.

        Returns: (B, S, hidden_size), or (B, dim) of an EmbeddingModel.
        """
        encoder, (texts, tokens) = self.encoder, input_ids.shape
        batch = PackedBatch(
            lengths=(),
            rope_lengths=(),
            cu_seqlens=(torch.arange(texts + 1, device="cpu") * tokens).to(torch.int32),
            position_ids=torch.arange(tokens, device="cpu").repeat(texts),
            input_ids=input_ids.flatten(),
            token_type_ids=None if token_type_ids is None else token_type_ids.flatten(),
        )
        rotary = encoder.rotary
        rope = None if rotary is None else rotary.of_equal_lengths(texts, tokens)
        plan = Plan((Run(text=0, token=0, texts=texts, length=tokens),))
        ctx = ForwardContext(
            EQUAL_LENGTHS, encoder.compute_dtype, PreparedWeights(), batch, plan, rope
        )
        return self.compute(ctx).view(texts, *self.shape(tokens))

    def compute(self, ctx: ForwardContext) -> Tensor:
        """Hidden states (T, H), or vectors (B, dim)."""
        if isinstance(self.model, EmbeddingModel):
            return self.model.vectors(ctx, self.finish)
        return self.model.core(ctx)

    def shape(self, tokens: int) -> tuple[int, ...]:
        """Of the result of one text."""
        if not isinstance(self.model, EmbeddingModel):
            return tokens, self.encoder.config.hidden_size
        width = self.model.pooling.embedding_dimension
        return (self.finish.matryoshka_dim or self.finish.truncate_dim or width,)

    def eager(self, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """The same by the reference backend, on packed texts, as any call of the model is."""
        batch, _ = unpad(input_ids, None, token_type_ids)
        ctx = replace(self.encoder.context(batch), ops=REFERENCE, prepared=PreparedWeights())
        return self.compute(ctx).view(input_ids.shape[0], *self.shape(input_ids.shape[1]))
