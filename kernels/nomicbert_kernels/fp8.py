"""Linear layers in e4m3: the specification of backend "fp8", in plain torch.

e4m3 has 3 mantissa bits and a maximum of 448. Operands are scaled per output channel, c[n] = max
|w[n]| / 448, and per token, s[t] = max |x[t]| / 448:
    y[t, n] = c[n] sum_k s[t, k] x8[t, k] w8[n, k] + b[n] + r[t, n]
The hidden states of an MLP are quantised by the kernel that computes them, whose programs see only
GROUP columns of a row, so they have one scale per row and GROUP columns. No calibration is needed,
and a token's values do not depend on other tokens. LayerNorm returns both the quantised values,
for the GEMMs, and the unrounded values, for the residual add. With gradients or autocast on, the
unquantised parameters are used, through another backend.
Source: Micikevicius et al. 2022, arXiv:2209.05433, section 3 (the format); DeepSeek-AI 2024,
arXiv:2412.19437, section 3.3.2 (a scale for 128 columns of a row).
"""

import torch
from torch import Tensor

from nomicbert_kernels import checks, gelu, layer_norm, linear, qkv_rotary, swiglu
from nomicbert_kernels.tensors import GROUP, Activation, Rope, Weight, WeightKind, values

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
# Rows whose largest magnitude is below this become zeros.
TINY = 1e-30
KINDS = ("linear", "gated")


def round_rows(x: Tensor) -> Activation:
    """Quantise (T, K) fp32, fp16 or bf16 to e4m3, to nearest even, with one scale per row.

    A row with a NaN or an infinity gives only NaN in a GEMM.
    """
    x = x.float()
    largest = x.abs().amax(1).clamp(min=TINY)
    # a tensor: with a Python constant torch would multiply by its inverse, and round twice
    most = torch.full_like(largest, LARGEST)
    fitting = (x * (most / largest)[:, None]).clamp(-LARGEST, LARGEST)
    return Activation(fitting.to(E4M3), largest / most)


def round_groups(x: Tensor) -> Activation:
    """Quantise with one scale per row and GROUP columns, (T, groups)."""
    pieces = [round_rows(piece) for piece in torch.split(x, GROUP, 1)]
    scales = [piece.scale for piece in pieces if piece.scale is not None]
    # the memory layout that the kernels read: all rows of a group adjacent
    return Activation(torch.cat([piece.data for piece in pieces], 1), torch.stack(scales).T)


def prepare(source: Tensor, bias: Tensor | None, kind: WeightKind) -> Weight:
    """Quantise a weight to e4m3, with one scale per output channel.

    Only kinds "linear" and "gated" are quantised; other kinds and empty weights stay unchanged.
    """
    if kind not in KINDS or source.numel() == 0:
        return Weight(source, bias)
    rounded = round_rows(source.detach())
    return Weight(source, bias, packed=(rounded.data,), scale=rounded.scale)


def usable(x: Tensor | Activation, weight: Weight, added: Tensor | None = None) -> bool:
    """Whether `weight` is in e4m3 and neither gradients nor autocast need the parameter itself."""
    data = x if isinstance(x, Tensor) else x.data
    if weight.scale is None or torch.is_autocast_enabled(data.device.type):
        return False
    inputs = (data, weight.source, weight.bias, added)
    recorded = any(t is not None and t.requires_grad for t in inputs)
    return not (recorded and torch.is_grad_enabled())


def rounded(x: Tensor | Activation) -> Activation:
    """Quantise `x` to e4m3, unless it already is."""
    if isinstance(x, Activation) and x.data.dtype == E4M3:
        return x
    return round_rows(values(x))


def as_rounded(x: Tensor | Activation) -> Tensor:
    """`x` quantised to e4m3 and dequantised to fp32."""
    narrow = rounded(x)
    return values(Activation(narrow.data, narrow.scale))


def as_weight(weight: Weight) -> Weight:
    """The quantised weight, dequantised to fp32."""
    assert weight.packed is not None
    assert weight.scale is not None
    narrow = weight.packed[0]
    assert isinstance(narrow, Tensor)
    source = narrow.float() * weight.scale[:, None]
    return Weight(source, None if weight.bias is None else weight.bias.float())


def linear_fp8(
    x: Tensor | Activation, weight: Weight, residual: Tensor | Activation | None = None
) -> Tensor:
    """See `nomicbert_kernels.linear`."""
    checks.fits("x", x, weight)
    added = None if residual is None else values(residual, weight.dtype)
    if not usable(x, weight, added):
        return linear.linear(x, weight, residual)
    return linear.linear(as_rounded(x), as_weight(weight), added).to(weight.dtype)


def qkv_rotary_fp8(
    x: Tensor | Activation, weight: Weight, rope: Rope | None, num_heads: int
) -> Tensor:
    """See `nomicbert_kernels.qkv_rotary`."""
    if not usable(x, weight):
        return qkv_rotary.qkv_rotary(x, weight, rope, num_heads)
    y = qkv_rotary.qkv_rotary(as_rounded(x), as_weight(weight), rope, num_heads)
    return y.to(weight.dtype)


def swiglu_fp8(x: Tensor | Activation, weight: Weight) -> Tensor | Activation:
    """See `nomicbert_kernels.swiglu`; returns e4m3, one scale per row and GROUP columns."""
    if not usable(x, weight):
        return swiglu.swiglu(x, weight)
    return round_groups(swiglu.swiglu(as_rounded(x), as_weight(weight)))


def gelu_fp8(x: Tensor | Activation, weight: Weight) -> Tensor | Activation:
    """See `nomicbert_kernels.gelu`; returns e4m3, one scale per row and GROUP columns."""
    if not usable(x, weight):
        return gelu.gelu(x, weight)
    return round_groups(gelu.gelu(as_rounded(x), as_weight(weight)))


def layer_norm_fp8(
    x: Tensor | Activation,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | Activation | None = None,
) -> Tensor | Activation:
    """See `nomicbert_kernels.layer_norm`; returns e4m3, and the unrounded values as `wide`."""
    data, added = layer_norm.check(x, weight, bias, residual)
    inputs = (data, weight, bias, added)
    recorded = any(t is not None and t.requires_grad for t in inputs) and torch.is_grad_enabled()
    if recorded or torch.is_autocast_enabled(data.device.type):
        return layer_norm.layer_norm(data, weight, bias, eps, added)
    sums = data.float() if added is None else data.float() + added.float()
    y = layer_norm.normalise(sums, weight, bias, eps)
    narrow = round_rows(y)
    return Activation(narrow.data, narrow.scale, y.to(data.dtype))
