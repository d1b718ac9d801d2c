"""State shared by all modules in one forward pass: ops, prepared weights, batch."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nomicbert.modeling.packing import PackedBatch
from nomicbert.modeling.prepared_weights import PreparedWeights
from nomicbert_kernels import Activation, Ops, Plan, Rope, Weight, WeightKind

# Hidden states between layers: a tensor, or the form that a backend's LayerNorm returns.
Hidden = Tensor | Activation


@dataclass(frozen=True)
class ForwardContext:
    """One forward pass.

    Attributes:
        ops: of the selected backend.
        dtype: of the hidden states; parameters may be stored in a narrower one.
        prepared: the model's cache of prepared weights.
        batch: the packed texts.
        plan: how the backend divides the batch into work.
        rope: their rotary angles, or None for learned positions.
    """

    ops: Ops
    dtype: torch.dtype
    prepared: PreparedWeights
    batch: PackedBatch
    plan: Plan
    rope: Rope | None

    def weight(self, layer: nn.Linear, kind: WeightKind = "linear") -> Weight:
        """The prepared weight of a linear layer."""
        place = (id(layer), kind)
        return self.prepared.get(self.ops, place, layer.weight, layer.bias, kind, self.dtype)

    def project(
        self, x: Hidden, layer: nn.Linear, residual: Hidden, dropout_p: float
    ) -> tuple[Tensor, Hidden | None]:
        """Apply a sublayer's output projection; return the residual too if it is not added yet.

        The GEMM adds the residual itself, unless dropout has to be applied in between.
        """
        if dropout_p == 0.0:
            return self.ops.linear(x, self.weight(layer), residual), None
        return F.dropout(self.ops.linear(x, self.weight(layer)), dropout_p), residual
