"""Plain layers, whose parameters the ops read, and all others, which are called as modules.

An op reads the parameters of an nn.Linear, nn.Embedding or nn.LayerNorm itself. That is only right
where calling the layer would compute the same. A layer that was replaced (LoRA, dynamic
quantisation), wrapped, hooked or parametrised is called instead.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from nomicbert_kernels import Activation, values

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
PLAIN_WEIGHTS = (nn.Parameter, Tensor)


def is_hooked(module: nn.Module) -> bool:
    """Whether calling a module runs more than its class's `forward`.

    That is so for hooks on the module or on all modules (also those of pruning, weight_norm and
    spectral_norm), and for a `forward` of the instance, which accelerate sets.
    """
    own = module.__dict__
    return bool(
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
        or _has_any_global_hook()  # type: ignore[no-untyped-call]
    )


def is_plain(layer: nn.Module, kind: type[nn.Module] = nn.Linear) -> bool:
    """Whether an op may read the layer's parameters in place of calling it.

    Args:
        layer: any module.
        kind: the exact class that the op computes. A layer with parametrisations is of another.
    """
    if type(layer) is not kind or is_hooked(layer):
        return False
    weight = layer.__dict__["_parameters"].get("weight")
    # a weight of another class, such as a quantised one, computes in its own way; torch.export has
    # stand-ins of its own
    return type(weight) in PLAIN_WEIGHTS or (weight is not None and torch.compiler.is_exporting())


def is_plain_norm(norm: nn.Module) -> bool:
    """`is_plain` for LayerNorm with weight and bias."""
    return is_plain(norm, nn.LayerNorm) and norm._parameters["bias"] is not None


def is_plain_table(table: nn.Module) -> bool:
    """`is_plain` for an embedding table whose rows are read as they are."""
    return is_plain(table, nn.Embedding) and table.max_norm is None


def call(layer: nn.Module, x: Tensor | Activation, dtype: torch.dtype) -> Tensor:
    """Call a layer that is not plain.

    Args:
        layer: in place of an nn.Linear or nn.LayerNorm.
        x: (T, K).
        dtype: of the hidden states.

    Returns: (T, N) in `dtype`; under autocast in the layer's own.
    Raises: TypeError: the layer does not return a tensor.
    """
    data = values(x, dtype)
    y = layer(data.to(input_dtype(layer, dtype)))
    if not isinstance(y, Tensor):
        raise TypeError(f"{type(layer).__name__} must return a tensor, not {type(y).__name__}")
    return y if torch.is_autocast_enabled(data.device.type) else y.to(dtype)


def input_dtype(layer: nn.Module, dtype: torch.dtype) -> torch.dtype:
    """The dtype that a layer takes: that of its first floating-point parameter, else `dtype`."""
    found = (p.dtype for p in layer.parameters() if p.dtype.is_floating_point and p.itemsize > 1)
    return next(found, dtype)


def refuse_hooks(module: nn.Module) -> None:
    """Refuse a module with hooks whose parts are about to be used without calling it.

    Raises: ValueError: it has hooks, or a `forward` of its own.
    """
    own = module.__dict__
    if "forward" in own or any(own[name] for name in HOOKS):
        raise ValueError(
            f"a hook on {type(module).__name__} (or a wrapped forward) would not run here: packed "
            "texts are computed without calling it. Put the hook on its layers, or on the model "
            "that is called"
        )
