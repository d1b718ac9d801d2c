"""Token ids -> the first hidden states: word + token type (+ learned position) -> LayerNorm.

Source: Devlin et al. 2018, arXiv:1810.04805, figure 2.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nomicbert.config import EncoderConfig
from nomicbert.errors import ConfigError
from nomicbert.modeling.context import ForwardContext
from nomicbert.modeling.plain_layers import is_plain_norm, is_plain_table
from nomicbert_kernels import EmbeddingTables, embed, values


class Embeddings(nn.Module):
    """The tables and their LayerNorm."""

    def __init__(self, config: EncoderConfig) -> None:
        """Create the tables; rotary models have no position table."""
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.hidden_size, padding_row(config))
        self.token_type = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.position = (
            None
            if config.rotary_dim
            else nn.Embedding(config.max_position_embeddings, config.hidden_size)
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout_p = config.hidden_dropout_prob

    def forward(self, ctx: ForwardContext) -> Tensor:
        """Embed the batch: (T, H)."""
        x = self._by_op(ctx) if self._is_plain() else self._by_modules(ctx)
        return F.dropout(x, self.dropout_p, self.training)

    def _is_plain(self) -> bool:
        """Whether the op may read the tables and the norm."""
        others = [self.token_type] if self.position is None else [self.token_type, self.position]
        return (
            is_plain_norm(self.norm)
            and all(map(is_plain_table, [self.word, *others]))
            and not any(map(trains_apart, others))
        )

    def _by_op(self, ctx: ForwardContext) -> Tensor:
        batch, tables = ctx.batch, self._tables()
        ids, rows = batch.input_ids, batch.inputs_embeds
        if ids is not None and trains_apart(self.word):
            # the op's gradient includes the padding row: torch gathers the words
            embed.check(ids, None, None, EmbeddingTables(tables.word), None)
            ids, rows = None, self.word(ids)
        return ctx.ops.embed(
            ids,
            batch.token_type_ids,
            batch.position_ids,
            tables,
            self.norm.weight.to(ctx.dtype),
            self.norm.bias.to(ctx.dtype),
            self.norm.eps,
            rows,
        )

    def _by_modules(self, ctx: ForwardContext) -> Tensor:
        """The same where a table or the norm is not plain."""
        batch, dtype = ctx.batch, ctx.dtype
        x = self.word(batch.input_ids) if batch.inputs_embeds is None else batch.inputs_embeds
        types = batch.token_type_ids
        if types is None:
            types = torch.zeros_like(batch.position_ids)
        x = x.to(dtype) + self.token_type(types).to(dtype)
        if self.position is not None:
            x = x + self.position(batch.position_ids).to(dtype)
        return values(ctx.layer_norm(x, self.norm))

    def _tables(self) -> EmbeddingTables:
        position = None if self.position is None else self.position.weight
        return EmbeddingTables(self.word.weight, self.token_type.weight, position)


def trains_apart(table: nn.Embedding) -> bool:
    """Whether a gradient is wanted that differs from the sum over the gathered rows."""
    special = table.padding_idx is not None or table.sparse or table.scale_grad_by_freq
    return special and torch.is_grad_enabled() and table.weight.requires_grad


def padding_row(config: EncoderConfig) -> int | None:
    """The row of the padding token, which is not trained; None if config.json says null.

    Raises: ConfigError: the vocabulary has no such row.
    """
    if config.source.get("pad_token_id", config.pad_token_id) is None:
        return None
    if not -config.vocab_size <= config.pad_token_id < config.vocab_size:
        raise ConfigError(
            f"pad_token_id = {config.pad_token_id}, but the vocabulary has {config.vocab_size} rows"
        )
    return config.pad_token_id
