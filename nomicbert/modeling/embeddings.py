"""Token ids -> the first hidden states: word + token type (+ learned position) -> LayerNorm.

Source: Devlin et al. 2018, arXiv:1810.04805, figure 2.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from nomicbert.config import EncoderConfig
from nomicbert.modeling.context import ForwardContext
from nomicbert_kernels import EmbeddingTables


class Embeddings(nn.Module):
    """The tables and their LayerNorm."""

    def __init__(self, config: EncoderConfig) -> None:
        """Create the tables; rotary models have no position table."""
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.hidden_size)
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
        batch = ctx.batch
        tables = EmbeddingTables(
            self.word.weight,
            self.token_type.weight,
            None if self.position is None else self.position.weight,
        )
        x = ctx.ops.embed(
            batch.input_ids,
            batch.token_type_ids,
            batch.position_ids,
            tables,
            self.norm.weight.to(ctx.dtype),
            self.norm.bias.to(ctx.dtype),
            self.norm.eps,
            batch.inputs_embeds,
        )
        return F.dropout(x, self.dropout_p, self.training)
