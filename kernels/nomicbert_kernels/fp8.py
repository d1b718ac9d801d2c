"""Linear layers on e4m3 numbers: the specification of backend "fp8", in plain torch.

A number of e4m3 has 3 bits behind the point and 448 as its largest. y[t, n] = c[n] sum_k s[t, k]
x8[t, k] w8[n, k] + b[n] + r[t, n]: each output channel has a scale of its own, c[n] = max |w[n]| /
448, and so has each token, s[t] = max |x[t]| / 448. The hidden states of an MLP are rounded where
they are made, by programs that see GROUP columns of a row; there each row has a scale for each
GROUP columns. So nothing has to be calibrated, and a token's numbers depend on nothing beside it.
LayerNorm hands on both, what is rounded for the products and the values themselves for the sums.
Where gradients or autocast are on, the parameters themselves are multiplied by another backend.
Source: Micikevicius et al. 2022, arXiv:2209.05433, section 3 (the format); DeepSeek-AI 2024,
arXiv:2412.19437, section 3.3.2 (a scale for 128 columns of a row).
"""

import torch
from torch import Tensor

from nomicbert_kernels import checks, gelu, layer_norm, linear, qkv_rotary, swiglu
from nomicbert_kernels.tensors import GROUP, Activation, Rope, Weight, WeightKind, values

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
# The least magnitude of a row that is not rounded to zeros.
TINY = 1e-30
KINDS = ("linear", "gated")


def round_rows(x: Tensor) -> Activation:
    """(T, K) fp32, fp16 or bf16 in e4m3, to nearest even, with a scale for each row.

    A row with a NaN or an infinity is no number afterwards, whatever it is multiplied by.
    """
    x = x.float()
    largest = x.abs().amax(1).clamp(min=TINY)
    # torch would take the inverse of a number that stands in the code, and round twice
    most = torch.full_like(largest, LARGEST)
    fitting = (x * (most / largest)[:, None]).clamp(-LARGEST, LARGEST)
    return Activation(fitting.to(E4M3), largest / most)


def round_groups(x: Tensor) -> Activation:
    """The same with a scale for GROUP columns of a row at a time, (T, groups)."""
    pieces = [round_rows(piece) for piece in torch.split(x, GROUP, 1)]
    scales = [piece.scale for piece in pieces if piece.scale is not None]
    # in the order that the kernels read: all rows of a group beside each other
    return Activation(torch.cat([piece.data for piece in pieces], 1), torch.stack(scales).T)


def prepare(source: Tensor, bias: Tensor | None, kind: WeightKind) -> Weight:
    """Round a weight, with a scale for each of its rows.

    Kinds "linear" and "gated" are rounded; the others, and an empty weight, stay as they are.
    """
    if kind not in KINDS or source.numel() == 0:
        return Weight(source, bias)
    rounded = round_rows(source.detach())
    return Weight(source, bias, packed=(rounded.data,), scale=rounded.scale)


def usable(x: Tensor | Activation, weight: Weight, added: Tensor | None = None) -> bool:
    """Whether `weight` is in e4m3 and no gradient or autocast asks for the weight itself."""
    data = x if isinstance(x, Tensor) else x.data
    if weight.scale is None or torch.is_autocast_enabled(data.device.type):
        return False
    inputs = (data, weight.source, weight.bias, added)
    recorded = any(t is not None and t.requires_grad for t in inputs)
    return not (recorded and torch.is_grad_enabled())


def rounded(x: Tensor | Activation) -> Activation:
    """`x` in e4m3, unless it already is."""
    if isinstance(x, Activation) and x.data.dtype == E4M3:
        return x
    return round_rows(values(x))


def as_rounded(x: Tensor | Activation) -> Tensor:
    """The fp32 numbers that `x` stands for in a product."""
    narrow = rounded(x)
    return values(Activation(narrow.data, narrow.scale))


def as_weight(weight: Weight) -> Weight:
    """The weight as it is rounded, in fp32."""
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
    """See `nomicbert_kernels.swiglu`; returns e4m3 with a scale for GROUP columns of a row."""
    if not usable(x, weight):
        return swiglu.swiglu(x, weight)
    return round_groups(swiglu.swiglu(as_rounded(x), as_weight(weight)))


def gelu_fp8(x: Tensor | Activation, weight: Weight) -> Tensor | Activation:
    """See `nomicbert_kernels.gelu`; returns e4m3 with a scale for GROUP columns of a row."""
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
    """See `nomicbert_kernels.layer_norm`; returns e4m3, and the values themselves as `wide`."""
    data, added = layer_norm.check(x, weight, bias, residual)
    inputs = (data, weight, bias, added)
    recorded = any(t is not None and t.requires_grad for t in inputs) and torch.is_grad_enabled()
    if recorded or torch.is_autocast_enabled(data.device.type):
        return layer_norm.layer_norm(data, weight, bias, eps, added)
    sums = data.float() if added is None else data.float() + added.float()
    y = layer_norm.normalise(sums, weight, bias, eps)
    narrow = round_rows(y)
    return Activation(narrow.data, narrow.scale, y.to(data.dtype))
