"""Self-attention: fused QKV projection, rotary, attention within each text, output projection.

Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2.
"""

import torch
from torch import Tensor, nn

from nomicbert.config import EncoderConfig
from nomicbert.modeling.context import ForwardContext, Hidden
from nomicbert_kernels import values


class SelfAttention(nn.Module):
    """Bidirectional multi-head attention over packed texts."""

    def __init__(self, config: EncoderConfig) -> None:
        """Queries, keys and values share one weight: (3 H, H), in this order."""
        super().__init__()
        width, bias = config.hidden_size, config.qkv_bias
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)
        self.num_heads = config.num_attention_heads
        self.scale = config.head_dim**-0.5
        self.weights_dropout_p = config.attention_probs_dropout_prob
        self.hidden_dropout_p = config.hidden_dropout_prob

    def forward(
        self, x: Hidden, ctx: ForwardContext, rows: Tensor | None = None
    ) -> tuple[Tensor, Hidden | None]:
        """Attend.

        Args:
            x: (T, H).
            ctx: of this forward pass.
            rows: (B,) the only token of each text whose output is needed, or None for all.

        Returns: (T, H), or (B, H) with `rows`; and the residual if it has not been added yet.
        """
        dropout_p = self.weights_dropout_p if self.training else 0.0
        seed = int(torch.randint(2**31, ())) if dropout_p else 0
        qkv = ctx.qkv(x, self.qkv, self.num_heads)
        o = ctx.ops.attention(
            qkv, ctx.batch.cu_seqlens, ctx.plan, self.scale, dropout_p, seed, rows
        )
        residual = x if rows is None else values(x)[rows]
        return ctx.project(o, self.out, residual, self.hidden_dropout_p if self.training else 0.0)
