"""The three kinds of MLP: gated (SwiGLU), plain (GELU or another activation), mixture of experts.

Source: Shazeer 2020, arXiv:2002.05202; Hendrycks and Gimpel 2016, arXiv:1606.08415;
Shazeer et al. 2017, arXiv:1701.06538.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nomicbert.config import EncoderConfig
from nomicbert.modeling.context import ForwardContext, Hidden
from nomicbert.modeling.plain_layers import is_plain
from nomicbert_kernels import values
from nomicbert_kernels.moe_torch import combined


class GatedMLP(nn.Module):
    """down(up(x) * silu(gate(x)))."""

    def __init__(self, config: EncoderConfig) -> None:
        """Up and gate share one weight: (2 I, H), up first."""
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.up_gate = nn.Linear(width, 2 * inner, bias=config.mlp_up_bias)
        self.down = nn.Linear(inner, width, bias=config.mlp_down_bias)
        self.dropout_p = config.hidden_dropout_prob

    def forward(self, x: Hidden, ctx: ForwardContext) -> tuple[Tensor, Hidden | None]:
        """(T, H) -> (T, H), and the residual if it is still to be added."""
        inner = ctx.swiglu(x, self.up_gate)
        return ctx.project(inner, self.down, x, self.dropout_p if self.training else 0.0)


class PlainMLP(nn.Module):
    """down(act(up(x)))."""

    def __init__(self, config: EncoderConfig) -> None:
        """Two linear layers."""
        super().__init__()
        self.act = config.hidden_act
        width, inner = config.hidden_size, config.intermediate_size
        self.up = nn.Linear(width, inner, bias=config.mlp_up_bias)
        self.down = nn.Linear(inner, width, bias=config.mlp_down_bias)
        self.dropout_p = config.hidden_dropout_prob

    def forward(self, x: Hidden, ctx: ForwardContext) -> tuple[Tensor, Hidden | None]:
        """(T, H) -> (T, H), and the residual if it is still to be added."""
        inner = ctx.activated(x, self.up, self.act)
        return ctx.project(inner, self.down, x, self.dropout_p if self.training else 0.0)


class MixtureOfExperts(nn.Module):
    """sum over the top-k experts e of p_e * down_e(gelu(up_e(x))), + one bias."""

    def __init__(self, config: EncoderConfig) -> None:
        """The experts' weights are (E, F, H) up and (E, H, F) down."""
        super().__init__()
        experts, width, inner = config.num_experts, config.hidden_size, config.intermediate_size
        self.router = nn.Linear(width, experts, bias=False)
        self.experts_up = nn.Parameter(torch.empty(experts, inner, width))
        self.experts_down = nn.Parameter(torch.empty(experts, width, inner))
        self.bias = nn.Parameter(torch.zeros(width))
        self.top_k = config.moe_top_k
        self.dropout_p = config.hidden_dropout_prob

    def forward(self, x: Hidden, ctx: ForwardContext) -> tuple[Tensor, Hidden | None]:
        """(T, H) -> (T, H), and the residual, which is not added yet."""
        up = ctx.prepared.get(
            ctx.ops, (id(self), "up"), self.experts_up, None, "experts", ctx.dtype
        )
        down = ctx.prepared.get(
            ctx.ops, (id(self), "down"), self.experts_down, self.bias, "experts", ctx.dtype
        )
        if is_plain(self.router):
            y = ctx.ops.moe(x, ctx.weight(self.router, "router"), up, down, self.top_k)
        else:
            data = values(x, ctx.dtype)
            chances = ctx.call(self.router, data).float().softmax(dim=-1)
            y = combined(data, *chances.topk(self.top_k, dim=-1), up, down)
        return F.dropout(y, self.dropout_p, self.training), x


def build_mlp(config: EncoderConfig, index: int) -> nn.Module:
    """Build the MLP of layer `index`."""
    if config.is_moe_layer(index):
        return MixtureOfExperts(config)
    return GatedMLP(config) if config.hidden_act == "swiglu" else PlainMLP(config)
