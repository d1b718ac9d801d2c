"""State shared by all modules in one forward pass: ops, prepared weights, batch."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nomicbert.modeling.activations import activate
from nomicbert.modeling.packing import PackedBatch
from nomicbert.modeling.plain_layers import call, is_plain, is_plain_norm
from nomicbert.modeling.prepared_weights import PreparedWeights
from nomicbert_kernels import Activation, Ops, Plan, Rope, Weight, WeightKind, values
from nomicbert_kernels.qkv_rotary import rotate

# Hidden states between layers: a tensor, or the form that a backend's LayerNorm returns.
Hidden = Tensor | Activation


@dataclass(frozen=True)
class ForwardContext:
    """One forward pass.

    Its methods compute a layer by an op if the layer is plain, and otherwise call it and compute
    the rest of the op on its result; see `plain_layers`.

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

    def call(self, layer: nn.Module, x: Hidden) -> Tensor:
        """Call a layer that is not plain: (T, K) -> (T, N)."""
        self.prepared.forget(layer)
        return call(layer, x, self.dtype)

    def linear(self, x: Hidden, layer: nn.Linear, residual: Hidden | None = None) -> Tensor:
        """Apply a linear layer and add the residual: (T, K) -> (T, N)."""
        if is_plain(layer):
            return self.ops.linear(x, self.weight(layer), residual)
        y = self.call(layer, x)
        return y if residual is None else y + values(residual, self.dtype)

    def project(
        self, x: Hidden, layer: nn.Linear, residual: Hidden, dropout_p: float
    ) -> tuple[Tensor, Hidden | None]:
        """Apply a sublayer's output projection; return the residual too if it is not added yet.

        The GEMM adds the residual if the backend's can, unless dropout has to be applied in
        between. LayerNorm, which follows, adds it otherwise.
        """
        if dropout_p:
            return F.dropout(self.linear(x, layer), dropout_p), residual
        if is_plain(layer):
            return self.ops.project(x, self.weight(layer), residual)
        return self.linear(x, layer, residual), None

    def qkv(self, x: Hidden, layer: nn.Linear, num_heads: int) -> Tensor:
        """Project to queries, keys and values, and rotate: (T, H) -> (T, 3, h, d)."""
        if is_plain(layer):
            return self.ops.qkv_rotary(x, self.weight(layer), self.rope, num_heads)
        y = self.call(layer, x)
        y = y.reshape(y.shape[0], 3, num_heads, -1)
        if self.rope is None:
            return y
        turned = rotate(y[:, :2].to(self.rope.cos.dtype), self.rope).to(y.dtype)
        return torch.cat([turned, y[:, 2:]], dim=1)

    def swiglu(self, x: Hidden, layer: nn.Linear) -> Hidden:
        """Apply up and gate, which are one layer, and up * silu(gate): (T, H) -> (T, I)."""
        if is_plain(layer):
            return self.ops.swiglu(x, self.weight(layer, "gated"))
        up, gate = self.call(layer, x).chunk(2, dim=1)
        return up * activate(gate, "silu")

    def activated(self, x: Hidden, layer: nn.Linear, name: str) -> Hidden:
        """Apply up, then the activation of this name: (T, H) -> (T, I)."""
        if name == "gelu" and is_plain(layer):
            return self.ops.gelu(x, self.weight(layer))
        return activate(self.linear(x, layer), name)

    def layer_norm(self, x: Hidden, norm: nn.LayerNorm, residual: Hidden | None = None) -> Hidden:
        """LayerNorm of x + residual: (T, H) -> (T, H)."""
        if is_plain_norm(norm):
            weight, bias = norm.weight.to(self.dtype), norm.bias.to(self.dtype)
            return self.ops.layer_norm(x, weight, bias, norm.eps, residual)
        z = values(x, self.dtype)
        return self.call(norm, z if residual is None else z + values(residual, self.dtype))
