"""Linear layer in int8, on a CPU that multiplies bytes, through oneDNN.

y[t, n] = s[t] c[n] sum_k x8[t, k] w8[n, k] + b[n] + r[t, n], where each token has a scale of its
own, s[t] = max |x[t]| / 127, and so has each output channel, c[n] = max |w[n]| / 127. A token's
numbers depend on nothing beside it, which one scale a call would not give. The sums are exact, all
else is fp32; what a product reads is rounded to 255 steps. Where gradients are recorded the product
is `linear_torch`'s, on the weight itself.
Source: Dettmers et al. 2022, arXiv:2208.07339, section 2.1 (vector-wise scales).
"""

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from nomicbert_kernels import checks, linear_torch
from nomicbert_kernels.tensors import Activation, Packed, Weight, WeightKind, values

# Rows taken at a time: enough for a call, and no more than has to be held.
ROWS = 1024
STEPS = 127
# oneDNN's kernels multiply unsigned bytes: a signed one is moved by this much, and the sum back.
ZERO = 128
SIGNS = -0x7F7F7F7F7F7F7F80  # the sign bits of eight bytes
# The least magnitude of a row that is not rounded to zeros.
TINY = 1e-30
INSTRUCTIONS = ("avx512_vnni", "avx_vnni", "amx_int8")


@functools.cache
def is_exact() -> bool:
    """Whether oneDNN adds up bytes without loss: its kernels for older CPUs do not."""
    most = torch.full((4, 256), STEPS, dtype=torch.int8, device="cpu")
    one = torch.ones(4, device="cpu")
    packed = torch.ops.onednn.qlinear_prepack(most, None)
    return bool((product(Activation(most, one), packed, one) == 256 * STEPS**2).all())


def why_not() -> str | None:
    """What keeps int8 products from running on this CPU, or None."""
    if not linear_torch.onednn_packs(torch.float32):
        return "this torch has no oneDNN, or it is switched off"
    capabilities = torch.cpu.get_capabilities()
    if not any(capabilities.get(name) for name in INSTRUCTIONS):
        return f"this CPU has none of the instructions {', '.join(INSTRUCTIONS)}"
    # the look at the CPU comes first: without the instructions this might be slow
    if not is_exact():
        return "this oneDNN does not use the CPU's instructions for bytes (ONEDNN_MAX_CPU_ISA?)"
    return None


def prepare(source: Tensor, bias: Tensor | None, kind: WeightKind) -> Weight:
    """Round a weight to int8, a scale for each of its rows, and pack it.

    Kinds "linear" and "gated" are rounded; the others, and an empty weight, are `linear_torch`'s.
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
    """Round each row of (T, K) fp32 to whole multiples of a 127th of its largest magnitude.

    A row with a NaN or an infinity has such a scale too, and so has what becomes of it. With `out`,
    a place for the result, `x` is used up.
    """
    # two reductions are quicker than a copy of |x|; a row of zeros has any scale
    largest = torch.maximum(x.amax(1), x.amin(1).neg_()).clamp_(min=TINY)
    inverse = (STEPS / largest)[:, None]
    if out is None:
        return Activation((x * inverse).round_().to(torch.int8), largest.div_(STEPS))
    assert out.scale is not None
    out.data.copy_(x.mul_(inverse).round_())
    torch.div(largest, STEPS, out=out.scale)
    return out


def usable(x: Tensor | Activation, weight: Weight, added: Tensor | None = None) -> bool:
    """Whether `weight` is in int8 and no gradient or autocast asks for the weight itself."""
    data = x if isinstance(x, Tensor) else x.data
    return weight.scale is not None and bool(linear_torch.usable(data, weight, added))


def chunks(x: Tensor | Activation) -> Iterator[tuple[slice, Activation]]:
    """Some rows at a time of (T, K), rounded where they are not yet, and which rows they are."""
    data = x if isinstance(x, Tensor) else x.data
    for start in range(0, data.shape[0], ROWS):
        rows = slice(start, start + ROWS)
        if isinstance(x, Tensor) or x.scale is None:
            yield rows, quantise(data[rows])
        else:
            yield rows, Activation(x.data[rows], x.scale[rows])


@functools.cache
def no_zero_points(count: int) -> Tensor:
    """What oneDNN is told of so many output channels: none is moved."""
    return torch.zeros(count, dtype=torch.int64, device="cpu")


def product(x: Activation, packed: Packed, scale: Tensor) -> Tensor:
    """(rows, K) int8 times a packed weight: (rows, N) fp32, the rows' own scales left out."""
    # eight bytes are taken at a time where the rows begin at a multiple of eight
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
    """The same with the rows' scales, plus bias."""
    assert x.scale is not None
    y = product(x, packed, scale)
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
