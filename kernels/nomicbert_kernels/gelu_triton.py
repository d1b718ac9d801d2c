"""GELU in one kernel: GEMM, bias and the exact activation; only the result is written.

The gradient recomputes the GEMM and applies the derivative in the same kernel, so the
pre-activation is never written to memory.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nomicbert_kernels import gelu as reference
from nomicbert_kernels import launch
from nomicbert_kernels.custom_ops import autocast, linear_gradients, watched
from nomicbert_kernels.linear_triton import launch_linear
from nomicbert_kernels.tensors import Activation, Weight, plain_linear


def settings_for(x: Tensor, weight: Tensor) -> launch.Settings:
    """Launch settings for these sizes."""
    sizes = {"rows": x.shape[0], "n": weight.shape[0], "k": weight.shape[1]}
    return launch.settings("gelu", x.device, x.dtype, **sizes)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (T, H), weight (I, H), bias (I,) or None -> (T, I)."""
    s = settings_for(x, weight)
    if s.library:
        return F.gelu(plain_linear(x, weight, bias))
    return launch_linear(s, x, weight, bias, None, "gelu")


@torch.library.custom_op("nomicbert::gelu", mutates_args=())
def gelu_op(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`forward` as a custom op."""
    return forward(x, weight, bias)


@gelu_op.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@torch.library.custom_op("nomicbert::gelu_backward", mutates_args=())
def gelu_backward_op(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Gradient (T, I) of the pre-activation from dy (T, I), the gradient of the result."""
    s = settings_for(x, weight)
    if s.library:
        dz: Tensor = torch.ops.aten.gelu_backward(dy.contiguous(), plain_linear(x, weight, bias))
        return dz
    return launch_linear(s, x, weight, bias, dy, "gelu_backward")


@gelu_backward_op.register_fake
def _(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Save only the inputs."""
    ctx.save_for_backward(*inputs)


def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias."""
    x, weight, bias = ctx.saved_tensors
    dz = gelu_backward_op(dy, x, weight, bias)
    return linear_gradients(dz, x, weight, ctx.needs_input_grad)


gelu_op.register_autograd(backward, setup_context=save)


def gelu(x: Tensor | Activation, weight: Weight) -> Tensor:
    """See `nomicbert_kernels.gelu`."""
    data, source, bias = autocast(reference.check(x, weight), weight)
    run = gelu_op if watched(data, source, bias) else forward
    return run(data, source, bias)
