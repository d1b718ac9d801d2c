"""Linear layer in int8, on a CPU with int8 dot-product instructions, through oneDNN.

y[t, n] = s[t] c[n] sum_k x8[t, k] w8[n, k] + b[n] + r[t, n], with one scale per token, s[t] =
max |x[t]| / 127, and one per output channel, c[n] = max |w[n]| / 127. So a token's values do not
depend on other tokens, as they would with one scale per call. Operands are rounded to 255 levels,
sums are exact, and all else is fp32. With gradients on, `linear_torch` uses the unquantised weight.
Source: Dettmers et al. 2022, arXiv:2208.07339, section 2.1 (vector-wise scales).
"""

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from nomicbert_kernels import checks, linear_torch
from nomicbert_kernels.tensors import Activation, Packed, Weight, WeightKind, values

# Rows per oneDNN call: enough to amortise the call, few enough to bound the temporaries.
ROWS = 1024
STEPS = 127
# Zero point: oneDNN's kernels take unsigned inputs, so x8 is shifted, and oneDNN corrects the sum.
ZERO = 128
SIGNS = -0x7F7F7F7F7F7F7F80  # the sign bits of eight int8 values
# Rows whose largest magnitude is below this become zeros.
TINY = 1e-30
INSTRUCTIONS = ("avx512_vnni", "avx_vnni", "amx_int8")


@functools.cache
def is_exact() -> bool:
    """Whether oneDNN's int8 sums are exact: its kernels for older CPUs overflow."""
    most = torch.full((4, 256), STEPS, dtype=torch.int8, device="cpu")
    one = torch.ones(4, device="cpu")
    packed = torch.ops.onednn.qlinear_prepack(most, None)
    return bool((gemm(Activation(most, one), packed, one) == 256 * STEPS**2).all())


def why_not() -> str | None:
    """Return why int8 GEMMs cannot run on this CPU, or None if they can."""
    if not linear_torch.onednn_packs(torch.float32):
        return "this torch has no oneDNN, or oneDNN is disabled"
    capabilities = torch.cpu.get_capabilities()
    if not any(capabilities.get(name) for name in INSTRUCTIONS):
        return f"this CPU has none of the instructions {', '.join(INSTRUCTIONS)}"
    # after the check of the CPU, because this may be slow without the instructions
    if not is_exact():
        return "oneDNN does not use this CPU's int8 instructions (is ONEDNN_MAX_CPU_ISA set?)"
    return None


def prepare(source: Tensor, bias: Tensor | None, kind: WeightKind) -> Weight:
    """Quantise a weight to int8, with one scale per output channel, and pack it.

    Only kinds "linear" and "gated" are quantised; `linear_torch` prepares the others and empty
    weights.
    """
    if kind not in ("linear", "gated") or source.numel() == 0:
        return linear_torch.prepare(source, bias, kind)
    rounded = quantise(source.detach().float())
    scale = rounded.scale
    assert scale is not None
    pieces = rounded.data.chunk(2) if kind == "gated" else (rounded.data,)
    packed = tuple(torch.ops.onednn.qlinear_prepack(piece.contiguous(), None) for piece in pieces)
    return Weight(source, bias, packed=packed, scale=scale)


def quantise(x: Tensor, out: Activation | None = None) -> Activation:
    """Quantise (T, K) fp32 to int8, with one scale per row: its largest magnitude / 127.

    A NaN or an infinity makes the scale of its row non-finite, and so every result of that row.
    With `out`, the result is written there and `x` is overwritten.
    """
    # two reductions are faster than a copy of |x|; the clamp avoids 0 / 0 for a row of zeros
    largest = torch.maximum(x.amax(1), x.amin(1).neg_()).clamp_(min=TINY)
    inverse = (STEPS / largest)[:, None]
    if out is None:
        return Activation((x * inverse).round_().to(torch.int8), largest.div_(STEPS))
    assert out.scale is not None
    out.data.copy_(x.mul_(inverse).round_())
    torch.div(largest, STEPS, out=out.scale)
    return out


def usable(x: Tensor | Activation, weight: Weight, added: Tensor | None = None) -> bool:
    """Whether `weight` is in int8 and neither gradients nor autocast need the parameter itself."""
    data = x if isinstance(x, Tensor) else x.data
    return weight.scale is not None and bool(linear_torch.usable(data, weight, added))


def chunks(x: Tensor | Activation) -> Iterator[tuple[slice, Activation]]:
    """Yield (T, K) ROWS rows at a time: the slice, and its rows quantised to int8."""
    data = x if isinstance(x, Tensor) else x.data
    for start in range(0, data.shape[0], ROWS):
        rows = slice(start, start + ROWS)
        if isinstance(x, Tensor) or x.scale is None:
            yield rows, quantise(data[rows])
        else:
            yield rows, Activation(x.data[rows], x.scale[rows])


@functools.cache
def no_zero_points(count: int) -> Tensor:
    """Zero points of `count` output channels: weights are symmetric, so all are 0."""
    return torch.zeros(count, dtype=torch.int64, device="cpu")


def gemm(x: Activation, packed: Packed, scale: Tensor) -> Tensor:
    """Multiply x (rows, K) int8 by a packed weight: (rows, N) fp32, without the row scales."""
    # flip eight sign bits at a time if all rows are aligned to eight bytes
    if any(place % 8 for place in (x.data.shape[1], x.data.stride(0), x.data.storage_offset())):
        moved = x.data.view(torch.uint8).bitwise_xor(ZERO)
    else:
        moved = x.data.view(torch.int64).bitwise_xor(SIGNS).view(torch.uint8)
    zeros = no_zero_points(scale.shape[0])
    y: Tensor = torch.ops.onednn.qlinear_pointwise(
        moved, 1.0, ZERO, packed, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return y


def scaled(
    x: Activation, packed: Packed, scale: Tensor, bias: Tensor | None, out: Tensor | None = None
) -> Tensor:
    """`gemm` times the scales of the rows, plus bias."""
    assert x.scale is not None
    y = gemm(x, packed, scale)
    y = torch.mul(y, x.scale[:, None], out=y if out is None else out)
    return y if bias is None else y.add_(bias)


def linear(
    x: Tensor | Activation, weight: Weight, residual: Tensor | Activation | None = None
) -> Tensor:
    """See `nomicbert_kernels.linear`."""
    checks.fits("x", x, weight)
    data = x if isinstance(x, Tensor) else x.data
    added = None if residual is None else values(residual, weight.dtype)
    if not usable(x, weight, added):
        return linear_torch.linear(x, weight, residual)
    assert weight.packed is not None
    assert weight.scale is not None
    out = torch.empty(data.shape[0], weight.source.shape[0], dtype=weight.dtype, device=data.device)
    checks.is_like("residual", added, out.shape, data)
    for rows, some in chunks(x):
        y = scaled(some, weight.packed[0], weight.scale, weight.bias, out[rows])
        if added is not None:
            y.add_(added[rows])
    return out
