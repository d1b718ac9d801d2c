"""When a Triton launch goes through torch.library, and when it is direct.

Each launch is registered as a functional custom op, so that autograd, torch.compile, torch.export
and fake tensors know it. When none of them is active, the kernel is launched directly: a custom op
costs about ten microseconds per call, as much as a small kernel.
"""

import functools
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from nomicbert_kernels.launch import explain
from nomicbert_kernels.tensors import Weight, unstrided

PLAIN = (Tensor, torch.nn.Parameter)

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def on_its_device(launch: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Make the GPU of the first tensor current during a launch: Triton uses the current one.

    If the device has less than the kernel needs, the error names the launch row.
    """

    @functools.wraps(launch)
    def run(*args: Arguments.args, **keywords: Arguments.kwargs) -> Result:
        device = next(a.device for a in args if isinstance(a, Tensor))
        try:
            if device.type != "cuda" or device.index == torch.cuda.current_device():
                return launch(*args, **keywords)
            with torch.cuda.device(device):
                return launch(*args, **keywords)
        except Exception as error:
            explain(error)
            raise

    return run


def recorded(*tensors: Tensor | None) -> bool:
    """Whether autograd records operations on these tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def has_tangent(tensor: Tensor) -> bool:
    """Whether the tensor carries a forward-mode tangent."""
    return forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def watched(*tensors: Tensor | None) -> bool:
    """Whether a launch must go through its custom op.

    That is so under autograd, tracing or a dispatch mode, and for tensor subclasses.

    Raises: NotImplementedError: a tensor has a tangent: the kernels have no forward mode.
    """
    if torch.compiler.is_compiling():
        return True
    given = [t for t in tensors if t is not None]
    if forward_ad._current_level >= 0 and any(map(has_tangent, given)):
        raise NotImplementedError(
            "backend 'triton' has no forward-mode derivatives: use backend 'torch'"
        )
    if torch._C._len_torch_dispatch_stack() or any(type(t) not in PLAIN for t in given):
        return True
    return recorded(*given)


def autocast(x: Tensor, weight: Weight) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return input, weight and bias of a linear layer in one dtype: autocast's if it is on."""
    source, bias = weight.source, weight.bias
    if not torch.is_autocast_enabled(x.device.type):
        return x, source.to(weight.dtype), bias
    dtype = torch.get_autocast_dtype(x.device.type)
    return x.to(dtype), source.to(dtype), None if bias is None else bias.to(dtype)


def linear_gradients(
    dz: Tensor, x: Tensor, weight: Tensor, needed: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias from dz, the gradient of x Wᵀ + b.

    Args:
        dz: (T, N).
        x: (T, K).
        weight: (N, K).
        needed: for each of the three, whether to compute it; otherwise it is None.
    """
    return (
        unstrided(dz) @ weight if needed[0] else None,
        dz.T @ x if needed[1] else None,
        dz.sum(0) if needed[2] else None,
    )
