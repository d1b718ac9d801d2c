"""Linear layer in int8, on a CPU with int8 dot-product instructions, through oneDNN.

y[t, n] = s[t] c[n] sum_k x8[t, k] w8[n, k] + b[n] + r[t, n], with one scale per token, s[t] =
max |x[t]| / 127, and one per output channel, c[n] = max |w[n]| / 127. So a token's values do not
depend on other tokens, as they would with one scale per call. Operands are rounded to 255 levels,
sums are exact, and all else is fp32. With gradients on, `linear_torch` uses the unquantised weight.

Source: Dettmers et al. 2022, arXiv:2208.07339, section 2.1 (vector-wise scales).
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from nomicbert_kernels import checks, linear_torch
from nomicbert_kernels.tensors import ZERO, Activation, Packed, Weight, WeightKind, values

# Rows that pass from op to op at a time: enough to amortise calls, few enough for a cache (L3).
ROWS = 768
STEPS = 127
# x + MAGIC, rounded to fp32, has round(x) + ZERO in its low byte: the steps at 1.5 * 2^23 are 1.
MAGIC = 1.5 * 2**23 + ZERO
# Lower bound of a weight's scales: its channels of zeros stay zeros.
TINY = 1e-30
INSTRUCTIONS = ("avx512_vnni", "avx_vnni", "amx_int8")


@functools.cache
def is_exact() -> bool:
    """Whether oneDNN's int8 sums are exact: its kernels for older CPUs overflow."""
    most = torch.full((4, 256), STEPS, dtype=torch.int8, device="cpu")
    packed = torch.ops.onednn.qlinear_prepack(most, None)
    data = torch.full((4, 256), STEPS + ZERO, dtype=torch.uint8, device="cpu")
    return bool((gemm(data, packed, torch.ones(4, device="cpu")) == 256 * STEPS**2).all())


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
    wide = source.detach().float()
    scale = wide.abs().amax(1).clamp_min_(TINY).div_(STEPS)
    whole = (wide / scale[:, None]).round_().to(torch.int8)
    pieces = whole.chunk(2) if kind == "gated" else (whole,)
    packed = tuple(torch.ops.onednn.qlinear_prepack(piece.contiguous(), None) for piece in pieces)
    return Weight(source, bias, packed=packed, scale=scale)


def quantise(x: Tensor) -> Activation:
    """Quantise (T, K) fp32 to 8 bits, with one scale per row: its largest magnitude / 127.

    A NaN or an infinity makes the scale of its row non-finite, and so every result of that row. A
    row of zeros, or of values below 4e-37, has integers that mean nothing, and a scale so small
    that it does not matter.
    """
    scale = x.abs().amax(1, keepdim=True).div_(STEPS)
    steps = (x * scale.reciprocal()).add_(MAGIC).view(torch.int32)
    return Activation(steps.to(torch.uint8), scale.squeeze(1))


def by_rows(function: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
    """Apply a function of rows to ROWS rows at a time, and join the results.

    Args:
        function: (rows of each tensor) -> tensors with as many rows.
        tensors: each (T, ...).

    Returns: the results, each (T, ...).
    """
    if tensors[0].shape[0] <= ROWS:
        return function(*tensors)
    whole: tuple[Tensor, ...] = ()
    count = tensors[0].shape[0]
    for start in range(0, count, ROWS):
        found = function(*(tensor[start : start + ROWS] for tensor in tensors))
        if not whole:
            whole = tuple(part.new_empty(count, *part.shape[1:]) for part in found)
        for to, part in zip(whole, found, strict=True):
            to[start : start + ROWS] = part
    return whole


def usable(x: Tensor | Activation, weight: Weight, added: Tensor | None = None) -> bool:
    """Whether `weight` is in int8 and neither gradients nor autocast need the parameter itself."""
    data = x if isinstance(x, Tensor) else x.data
    return weight.scale is not None and bool(linear_torch.usable(data, weight, added))


@functools.cache
def no_zero_points(count: int) -> Tensor:
    """Zero points of `count` output channels: weights are symmetric, so all are 0."""
    return torch.zeros(count, dtype=torch.int64, device="cpu")


def gemm(data: Tensor, packed: Packed, scale: Tensor) -> Tensor:
    """Multiply (rows, K) uint8 by a packed weight: (rows, N) fp32, without the scales of rows."""
    zeros = no_zero_points(scale.shape[0])
    y: Tensor = torch.ops.onednn.qlinear_pointwise.default(
        data.contiguous(), 1.0, ZERO, packed, scale, zeros,
        None, 1.0, 0, torch.float32, "none", [], "",
    )  # fmt: skip
    return y


def scaled(y: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply a product (rows, N) by scales (rows, 1) and add a bias, in place."""
    y.mul_(scale)
    return y if bias is None else y.add_(bias)


def apply(x: Activation, weight: Weight) -> Tensor:
    """The linear layer of a few rows, without checks: (rows, N) fp32."""
    assert x.scale is not None
    assert weight.packed is not None
    assert weight.scale is not None
    return scaled(gemm(x.data, weight.packed[0], weight.scale), x.scale.unsqueeze(1), weight.bias)


def of_input(
    function: Callable[[Activation], Activation | Tensor], x: Tensor | Activation
) -> Activation | Tensor:
    """Apply a function of few rows in 8 bits to any number of rows, quantising `x` if needed."""

    def of_parts(data: Tensor, *scale: Tensor) -> tuple[Tensor, ...]:
        found = function(Activation(data, *scale) if scale else quantise(data))
        if isinstance(found, Tensor):
            return (found,)
        assert found.scale is not None
        return found.data, found.scale

    if isinstance(x, Activation) and x.scale is not None:
        found = by_rows(of_parts, x.data, x.scale)
    else:
        found = by_rows(of_parts, values(x))
    return found[0] if len(found) == 1 else Activation(*found)


def linear(
    x: Tensor | Activation, weight: Weight, residual: Tensor | Activation | None = None
) -> Tensor:
    """See `nomicbert_kernels.linear`."""
    checks.fits("x", x, weight)
    data = x if isinstance(x, Tensor) else x.data
    added = None if residual is None else values(residual, weight.dtype)
    if not usable(x, weight, added):
        return linear_torch.linear(x, weight, residual)
    checks.is_like("residual", added, (data.shape[0], weight.source.shape[0]), data)
    y = of_input(lambda rows: apply(rows, weight), x)
    assert isinstance(y, Tensor)
    return y if added is None else y.add_(added)
