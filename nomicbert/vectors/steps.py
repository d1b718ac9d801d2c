"""The modules after pooling: Dense, LayerNorm, L2 and Dropout.

Where in the flow: `step_files` reads them, `pooling` applies them in order. Each takes (B, K) fp32
and returns (B, N) fp32. Names of parameters are those of sentence-transformers.
"""

from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nomicbert.modeling.plain_layers import call, input_dtype, is_plain, is_plain_norm
from nomicbert.modeling.prepared_weights import PreparedWeights
from nomicbert.vectors.activations import ACTIVATIONS
from nomicbert_kernels import Ops, Plan, Run, compute_dtype, values


class StepCall(Protocol):
    """The type of a step's `__call__`."""

    def __call__(self, x: Tensor, ops: Ops, prepared: PreparedWeights) -> Tensor:
        """(B, K) fp32 -> (B, N) fp32."""


class Step(nn.Module):
    """Base class of the steps; `str` of one describes it in a few words."""

    if TYPE_CHECKING:
        __call__: StepCall

    def forward(self, x: Tensor, ops: Ops, prepared: PreparedWeights) -> Tensor:
        """Apply the step.

        Args:
            x: (B, K) fp32.
            ops: of the encoder's backend.
            prepared: cache of the weights in the form of that backend.

        Returns: (B, N) fp32.
        """
        raise NotImplementedError

    def columns(self, width: int) -> int:
        """N, if K is `width`."""
        return width


class Dense(Step):
    """activation(linear(x)), plus the residual if there is one.

    Attributes:
        linear: the layer.
        activation: a name of `activations.ACTIVATIONS`.
        use_residual: whether x is added to the result.
        residual: a layer without bias that x goes through first, if the widths differ; else None.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: str = "Tanh",
        use_residual: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Build with the initial values of torch."""
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias, dtype=dtype)
        self.activation = activation
        self.use_residual = use_residual
        projects = use_residual and in_features != out_features
        self.residual = (
            nn.Linear(in_features, out_features, False, dtype=dtype) if projects else None
        )

    def forward(self, x: Tensor, ops: Ops, prepared: PreparedWeights) -> Tensor:
        """See Step."""
        y = ACTIVATIONS[self.activation](_linear(x, self.linear, ops, prepared).float())
        if not self.use_residual:
            return y
        return y + (x if self.residual is None else _linear(x, self.residual, ops, prepared))

    def columns(self, width: int) -> int:
        """See Step."""
        return self.linear.out_features

    def __str__(self) -> str:
        """As `nomicbert info` shows it."""
        widths = f"{self.linear.in_features} -> {self.linear.out_features}"
        return f"Dense {widths} ({self.activation}{', residual' if self.use_residual else ''})"


class LayerNorm(Step):
    """LayerNorm with weight and bias.

    Attributes:
        norm: the layer.
    """

    def __init__(self, dimension: int, dtype: torch.dtype | None = None) -> None:
        """Build with the initial values of torch."""
        super().__init__()
        self.norm = nn.LayerNorm(dimension, dtype=dtype)

    def forward(self, x: Tensor, ops: Ops, prepared: PreparedWeights) -> Tensor:
        """See Step; in fp32 whatever the parameters' dtype."""
        if not is_plain_norm(self.norm):
            return call(self.norm, x, torch.float32)
        weight, bias = self.norm.weight.float(), self.norm.bias.float()
        return values(ops.layer_norm(x.float(), weight, bias, self.norm.eps))

    def __str__(self) -> str:
        """As `nomicbert info` shows it."""
        return "LayerNorm"


class Normalize(Step):
    """L2."""

    def forward(self, x: Tensor, ops: Ops, prepared: PreparedWeights) -> Tensor:
        """See Step."""
        return pool_rows(ops, x, unit=True)

    def __str__(self) -> str:
        """As `nomicbert info` shows it."""
        return "L2"


class Dropout(Step):
    """Dropout in training, nothing in eval mode.

    Attributes:
        p: share of the values that become zero.
    """

    def __init__(self, p: float) -> None:
        """`p` is 0 to 1."""
        super().__init__()
        self.p = p

    def forward(self, x: Tensor, ops: Ops, prepared: PreparedWeights) -> Tensor:
        """See Step."""
        return F.dropout(x, self.p, self.training)

    def __str__(self) -> str:
        """As `nomicbert info` shows it."""
        return f"Dropout {self.p:g} in training"


def pool_rows(
    ops: Ops, rows: Tensor, layer_norm: bool = False, dim: int | None = None, unit: bool = False
) -> Tensor:
    """Apply layer_norm, slice and L2 to (B, H) pooled rows, by pooling them as one-token texts."""
    texts = rows.shape[0]
    plan = Plan((Run(text=0, token=0, texts=texts, length=1),) if texts else ())
    offsets = torch.arange(texts + 1, dtype=torch.int32, device=rows.device)
    pooled: Tensor = ops.pool(rows, offsets, plan, "cls", layer_norm, dim, unit)
    return pooled


def _linear(x: Tensor, layer: nn.Linear, ops: Ops, prepared: PreparedWeights) -> Tensor:
    """Apply a linear layer by an op, or call it if it is not plain: (B, K) -> (B, N)."""
    if not is_plain(layer):
        prepared.forget(layer)
        return call(layer, x, compute_dtype(x.device, input_dtype(layer, x.dtype)))
    dtype = compute_dtype(layer.weight.device, layer.weight.dtype)
    weight = prepared.get(ops, (id(layer), "linear"), layer.weight, layer.bias, "linear", dtype)
    y: Tensor = ops.linear(x.to(weight.dtype), weight)
    return y
