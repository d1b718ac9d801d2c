"""One post-norm layer: h = LN(x + attention(x)), y = LN(h + mlp(h)).

Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.1.
"""

from torch import Tensor, nn

from nomicbert.config import EncoderConfig
from nomicbert.modeling.attention import SelfAttention
from nomicbert.modeling.context import ForwardContext, Hidden
from nomicbert.modeling.mlp import build_mlp


class Layer(nn.Module):
    """Attention and MLP, each followed by residual and LayerNorm."""

    def __init__(self, config: EncoderConfig, index: int) -> None:
        """`index` counts from 0 and decides the kind of MLP."""
        super().__init__()
        self.attention = SelfAttention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = build_mlp(config, index)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Hidden, ctx: ForwardContext, rows: Tensor | None = None) -> Hidden:
        """Run the layer.

        Args:
            x: (T, H).
            ctx: of this forward pass.
            rows: (B,) the only token of each text whose output is needed, or None for all.

        Returns: (T, H), or (B, H) with `rows`: attention output, MLP and norms of the other tokens
            are not computed.
        """
        z, residual = self.attention(x, ctx, rows)
        h = ctx.layer_norm(z, self.attention_norm, residual)
        z, residual = self.mlp(h, ctx)
        return ctx.layer_norm(z, self.mlp_norm, residual)
