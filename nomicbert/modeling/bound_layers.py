"""The layers of a model with all that a forward pass looks up: prepared weights, norms, sizes.

Where in the flow: `PackedEncoder.core` asks for them once per call, and runs `Ops.layer` on them
instead of calling the layers. With nomic-embed-text-v1.5 in float32, looking everything up again
for each op took 4 of the 25 milliseconds of a query of 3 tokens; comparing it takes 0.1.

Layers are bound if they compute exactly what the op computes. They are bound again when anything
they consist of has changed: a module, parameter, attribute or hook. That is compared once per call,
and as always in `prepared_weights`, a change of a few elements through `.data` is missed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from nomicbert.modeling.attention import SelfAttention
from nomicbert.modeling.context import ForwardContext, Hidden
from nomicbert.modeling.layer import Layer
from nomicbert.modeling.mlp import GatedMLP, PlainMLP
from nomicbert.modeling.plain_layers import HOOKS, is_hooked, is_plain, is_plain_norm
from nomicbert.modeling.prepared_weights import Stamp, elements, stamp
from nomicbert_kernels import Activation, LayerWeights, Norm, Ops, WeightKind

# Dicts of a module, apart from its own, whose content decides what calling it computes.
CONTENTS = ("_parameters", "_modules", *HOOKS)
# Classes whose `forward` an op stands for, and these functions; a library may replace one.
CLASSES = (Layer, SelfAttention, GatedMLP, PlainMLP)
FORWARDS = [kind.forward for kind in CLASSES]

Bound = Sequence[LayerWeights | None]


@dataclass(frozen=True)
class Values:
    """Parameters, and the data that tells whether their values may have changed.

    Attributes:
        parameters: of the bound layers.
        stamps: of each; see `prepared_weights.stamp`.
        live: a few elements of each parameter that was packed or cast, in its own memory.
        kept: all these elements at that time.
    """

    parameters: list[Tensor]
    stamps: list[Stamp]
    live: list[Tensor]
    kept: Tensor

    @classmethod
    def of(cls, parameters: list[Tensor], dtype: torch.dtype) -> "Values":
        """Note the values of now; `dtype` is that of the hidden states."""
        live = [elements(p) for p in parameters if p.dim() == 2 or p.dtype != dtype]
        kept = torch.cat(live) if live else torch.empty(0)
        return cls(parameters, list(map(stamp, parameters)), live, kept)

    def hold(self) -> bool:
        """Whether they are the same as far as one can tell; see `prepared_weights.Sample`."""
        return list(map(stamp, self.parameters)) == self.stamps and (
            not self.live or torch.equal(torch.cat(self.live), self.kept)
        )


@dataclass(frozen=True)
class Binding:
    """Bound layers, and everything that they depend on.

    Attributes:
        layers: the module that holds them.
        ops: of the backend.
        dtype: of the hidden states.
        modules: of all layers, the layers included.
        types: class of each module.
        dicts: the dicts of each module.
        content: the values of all these dicts.
        forgotten: weights that `prepared` had forgotten, after a layer had been called.
        values: of the parameters.
        bound: for each layer its weights, or None if it is to be called.
    """

    layers: nn.ModuleList
    ops: Ops
    dtype: torch.dtype
    modules: list[nn.Module]
    types: list[type[nn.Module]]
    dicts: list[dict[str, Any]]
    content: list[Any]
    forgotten: int
    values: Values
    bound: Bound

    @classmethod
    def of(cls, layers: nn.ModuleList, ctx: ForwardContext) -> "Binding":
        """Bind the layers; prepares their weights."""
        bound = [bind(layer, ctx) for layer in layers]
        modules = list(layers.modules())
        dicts = [vars(module) for module in modules]
        found = [own.get(name) for own in dicts for name in CONTENTS]
        dicts += [content for content in found if isinstance(content, dict)]
        read = [layer for layer, weights in zip(layers, bound, strict=True) if weights is not None]
        return cls(
            layers,
            ctx.ops,
            ctx.dtype,
            modules,
            list(map(type, modules)),
            dicts,
            list(chain.from_iterable(map(dict.values, dicts))),
            ctx.prepared.forgotten,
            Values.of([p for layer in read for p in layer.parameters()], ctx.dtype),
            bound,
        )

    def holds(self, layers: nn.ModuleList, ctx: ForwardContext) -> bool:
        """Whether nothing has changed since."""
        return (
            layers is self.layers
            and ctx.ops is self.ops
            and ctx.dtype == self.dtype
            and ctx.prepared.forgotten == self.forgotten
            and list(map(type, self.modules)) == self.types
            and sum(map(len, self.dicts)) == len(self.content)
            and all(map(is_, chain.from_iterable(map(dict.values, self.dicts)), self.content))
            and self.values.hold()
        )


class BoundLayers:
    """The binding of one model, made at the first use and again after a change."""

    def __init__(self) -> None:
        """Nothing is bound yet."""
        self._binding: Binding | None = None

    def get(self, layers: nn.ModuleList, x: Hidden, ctx: ForwardContext) -> Bound | None:
        """The weights of each layer, None for a layer to be called; None if all are.

        Args:
            layers: of the model.
            x: their input.
            ctx: of this forward pass.
        """
        if ctx.ops.layer is None or not can_run(x, ctx.dtype):
            return None
        binding = self._binding  # another thread may replace it
        if binding is None or not binding.holds(layers, ctx):
            binding = self._binding = None  # the old weights are freed one by one
            binding = self._binding = Binding.of(layers, ctx)
        return binding.bound

    def clear(self) -> None:
        """Drop the binding."""
        self._binding = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "BoundLayers":
        """A copied model binds its own layers."""
        return BoundLayers()

    def __reduce__(self) -> tuple[type["BoundLayers"], tuple[()]]:
        """Pickle as unbound, for the same reason."""
        return (BoundLayers, ())


def can_run(x: Hidden, dtype: torch.dtype) -> bool:
    """Whether `Ops.layer` may run on `x` now: no gradients, tracing, transforms or patches."""
    return (
        takes(x, dtype)
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and torch._C._functorch.peek_interpreter_stack() is None
        and not _has_any_global_hook()  # type: ignore[no-untyped-call]
        and [kind.forward for kind in CLASSES] == FORWARDS
    )


def takes(x: Hidden, dtype: torch.dtype) -> bool:
    """Whether `Ops.layer` computes `x`: what it returned itself, or rows of this dtype on a CPU."""
    return isinstance(x, Activation) or (
        type(x) is Tensor and x.device.type == "cpu" and x.dtype == dtype and x.shape[0] > 0
    )


def bind(layer: nn.Module, ctx: ForwardContext) -> LayerWeights | None:
    """The weights of a layer; None if it is anything but a plain Layer with packed weights."""
    if type(layer) is not Layer or type(layer.attention) is not SelfAttention:
        return None
    attention, mlp = layer.attention, layer.mlp
    if type(mlp) is GatedMLP:
        up, gated = mlp.up_gate, True
    elif type(mlp) is PlainMLP and mlp.act == "gelu":
        up, gated = mlp.up, False
    else:
        return None
    linears = (attention.qkv, attention.out, up, mlp.down)
    norms = (layer.attention_norm, layer.mlp_norm)
    plain = all(map(is_plain, linears)) and all(map(is_plain_norm, norms))
    called = any(is_hooked(module) or module.training for module in layer.modules())
    if called or not plain or not all(p.is_contiguous() for p in layer.parameters()):
        return None
    kinds: tuple[WeightKind, ...] = ("linear", "linear", "gated" if gated else "linear", "linear")
    weights = [ctx.weight(part, kind) for part, kind in zip(linears, kinds, strict=True)]
    if any(weight.packed is None for weight in weights):
        return None
    with torch.inference_mode(False), torch.no_grad():
        first, second = (
            Norm(norm.weight.to(ctx.dtype), norm.bias.to(ctx.dtype), norm.eps) for norm in norms
        )
    qkv, out, up_weight, down = weights
    return LayerWeights(
        num_heads=attention.num_heads,
        scale=attention.scale,
        qkv=qkv,
        out=out,
        attention_norm=first,
        up=up_weight,
        down=down,
        mlp_norm=second,
        gated=gated,
    )
