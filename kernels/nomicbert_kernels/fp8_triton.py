"""The ops of backend "fp8" on a GPU: launches of the kernels on e4m3; `fp8` has the equations.

The kernels are those of the other modules, with scales. A GEMM over LayerNorm's output accumulates
in the tensor cores. On Hopper these keep 13 bits of a sum; over 1024 columns this adds a fiftieth
of the error of rounding to e4m3. A GEMM over an MLP's hidden states is several times as long, so it
would add a third. But its scales change every GROUP columns, so each step is added in fp32 anyway.
"""

import torch
import triton
from torch import Tensor

from nomicbert_kernels import (
    checks,
    fp8,
    gelu_triton,
    launch,
    layer_norm_triton,
    linear_triton,
    qkv_rotary_triton,
    swiglu_triton,
)
from nomicbert_kernels import layer_norm as layer_norm_reference
from nomicbert_kernels import qkv_rotary as qkv_reference
from nomicbert_kernels import swiglu as swiglu_reference
from nomicbert_kernels.custom_ops import on_its_device, watched
from nomicbert_kernels.gemm_triton import Scales, by_rows
from nomicbert_kernels.tensors import GROUP, Activation, Rope, Weight, values


@on_its_device
def round_rows(x: Tensor) -> Activation:
    """`fp8.round_rows` in one kernel."""
    x = by_rows(x)
    rows, width = x.shape
    out = Activation(*narrow_like(x))
    if x.numel():
        layer_norm_triton.narrow_kernel[(rows,)](
            x, out.data, out.scale, x.stride(0), **layer_norm_triton.tiling(width, x.device)
        )
    return out


def narrow_like(x: Tensor) -> tuple[Tensor, Tensor]:
    """Allocate x (T, K) in e4m3, and one fp32 scale per row (T,)."""
    return x.new_empty(x.shape, dtype=fp8.E4M3), x.new_empty(x.shape[0], dtype=torch.float32)


def usable(x: Tensor | Activation, weight: Weight, added: Tensor | None = None) -> bool:
    """Whether the weight is in e4m3, and no autograd, tracing or autocast needs the parameter."""
    data = x if isinstance(x, Tensor) else x.data
    return fp8.usable(x, weight, added) and not watched(data, weight.source, weight.bias, added)


def operands(x: Tensor | Activation, weight: Weight) -> tuple[Tensor, Tensor, Scales]:
    """Return e4m3 x, e4m3 weight and their scales; x is quantised if it is not yet."""
    assert weight.packed is not None
    narrow = weight.packed[0]
    assert isinstance(narrow, Tensor)
    if isinstance(x, Tensor) or x.data.dtype != fp8.E4M3:
        x = round_rows(values(x, weight.dtype))
    assert x.scale is not None
    grouped = x.scale.dim() == 2
    scale = x.scale.T.contiguous() if grouped else x.scale.contiguous()
    shared = GROUP if grouped and x.data.shape[1] > GROUP else None
    return x.data, narrow, Scales(scale, weight.scale, None, shared, weight.dtype)


def settings(kernel: str, x: Tensor, weight: Tensor, n: int) -> launch.Settings:
    """Launch settings of an e4m3 kernel with n result columns."""
    sizes = {"rows": x.shape[0], "n": n, "k": weight.shape[1]}
    return launch.settings(kernel, x.device, fp8.E4M3, **sizes)


def rounding(scales: Scales, rows: int, width: int) -> Scales:
    """Add to `scales` an allocation for the scales of an e4m3 result (rows, width)."""
    assert scales.x is not None
    y = scales.x.new_empty(triton.cdiv(width, GROUP), rows)
    return Scales(scales.x, scales.weight, y, scales.shared, fp8.E4M3)


def linear(
    x: Tensor | Activation, weight: Weight, residual: Tensor | Activation | None = None
) -> Tensor:
    """See `nomicbert_kernels.linear`."""
    checks.fits("x", x, weight)
    added = None if residual is None else values(residual, weight.dtype)
    if not usable(x, weight, added):
        return linear_triton.linear(x, weight, residual)
    data, packed, scales = operands(x, weight)
    checks.is_like("residual", added, (data.shape[0], packed.shape[0]), data)
    s = settings("linear", data, packed, packed.shape[0])
    kind = "none" if added is None else "add"
    return linear_triton.launch_linear(s, data, packed, weight.bias, added, kind, scales)


def adds_residual(x: Tensor | Activation, weight: Weight) -> bool:
    """See `linear_triton.adds_residual`; the kernel on e4m3 adds it."""
    return usable(x, weight) or linear_triton.adds_residual(x, weight)


def qkv_rotary(x: Tensor | Activation, weight: Weight, rope: Rope | None, num_heads: int) -> Tensor:
    """See `nomicbert_kernels.qkv_rotary`."""
    if not usable(x, weight):
        return qkv_rotary_triton.qkv_rotary(x, weight, rope, num_heads)
    data = qkv_reference.check(x, weight, rope, num_heads)
    if rope is None:
        return linear(x, weight).view(qkv_reference.heads_shape(data, weight, num_heads))
    narrow, packed, scales = operands(only_rows(x, weight), weight)
    return qkv_rotary_triton.forward(
        narrow,
        packed,
        weight.bias,
        rope.cos,
        rope.sin,
        rope.row,
        num_heads,
        rope.interleaved,
        scales,
    )


def only_rows(x: Tensor | Activation, weight: Weight) -> Tensor | Activation:
    """Dequantise `x` if it has scales per group, which the swiglu and qkv kernels do not take."""
    grouped = isinstance(x, Activation) and x.scale is not None and x.scale.dim() == 2
    return values(x, weight.dtype) if grouped else x


def swiglu(x: Tensor | Activation, weight: Weight) -> Tensor | Activation:
    """See `nomicbert_kernels.swiglu`; returns e4m3, one scale per row and GROUP columns."""
    if not usable(x, weight):
        return swiglu_triton.swiglu(x, weight)
    swiglu_reference.check(x, weight)
    data, packed, scales = operands(only_rows(x, weight), weight)
    rows, inner = data.shape[0], packed.shape[0] // 2
    y, scales = data.new_empty(rows, inner, dtype=fp8.E4M3), rounding(scales, rows, inner)
    assert scales.y is not None
    if y.numel():
        s = settings("swiglu", data, packed, inner)
        swiglu_triton.launch_swiglu(s, by_rows(data), packed, weight.bias, y, scales)
    return Activation(y, scales.y.T)


def gelu(x: Tensor | Activation, weight: Weight) -> Tensor | Activation:
    """See `nomicbert_kernels.gelu`; returns e4m3, one scale per row and GROUP columns."""
    if not usable(x, weight):
        return gelu_triton.gelu(x, weight)
    checks.fits("x", x, weight)
    data, packed, scales = operands(x, weight)
    scales = rounding(scales, data.shape[0], packed.shape[0])
    assert scales.y is not None
    s = settings("gelu", data, packed, packed.shape[0])
    y = linear_triton.launch_linear(s, data, packed, weight.bias, None, "gelu", scales)
    return Activation(y, scales.y.T)


def layer_norm(
    x: Tensor | Activation,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | Activation | None = None,
) -> Tensor | Activation:
    """See `nomicbert_kernels.layer_norm`; returns e4m3, and the unrounded values as `wide`."""
    data, added = layer_norm_reference.check(x, weight, bias, residual)
    if watched(data, weight, bias, added) or torch.is_autocast_enabled(data.device.type):
        return layer_norm_triton.layer_norm(data, weight, bias, eps, added)
    layer_norm_triton.refuse_double("x", data)
    narrow = narrow_like(data)
    wide = layer_norm_triton.forward(data, weight, bias, eps, added, data.dtype, narrow)
    return Activation(*narrow, wide)
