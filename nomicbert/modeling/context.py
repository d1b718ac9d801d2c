"""What every module of one forward pass shares: ops, prepared weights, batch."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nomicbert.modeling.packing import PackedBatch
from nomicbert.modeling.prepared_weights import PreparedWeights
from nomicbert_kernels import Activation, Ops, Plan, Rope, Weight, WeightKind

# Hidden states between layers: a tensor, or what a backend's LayerNorm made of one.
Hidden = Tensor | Activation


@dataclass(frozen=True)
class ForwardContext:
    """One forward pass.

    Attributes:
        ops: functions of the chosen backend.
        dtype: of the hidden states; parameters may be stored in a narrower one.
        prepared: the model's cache of prepared weights.
        batch: the packed texts.
        plan: how the backend walks them.
        rope: their rotary angles, or None for learned positions.
    """

    ops: Ops
    dtype: torch.dtype
    prepared: PreparedWeights
    batch: PackedBatch
    plan: Plan
    rope: Rope | None

    def weight(self, layer: nn.Linear, kind: WeightKind = "linear") -> Weight:
        """A linear layer's parameters, prepared."""
        place = (id(layer), kind)
        return self.prepared.get(self.ops, place, layer.weight, layer.bias, kind, self.dtype)

    def project(
        self, x: Hidden, layer: nn.Linear, residual: Hidden, dropout_p: float
    ) -> tuple[Tensor, Hidden | None]:
        """The linear layer that ends a sublayer, and what is still to be added to it.

        The product adds the residual itself, unless dropout has to come between the two.
        """
        if dropout_p == 0.0:
            return self.ops.linear(x, self.weight(layer), residual), None
        return F.dropout(self.ops.linear(x, self.weight(layer)), dropout_p), residual
