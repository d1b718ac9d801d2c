"""Linear layer in int8, on a CPU with int8 dot-product instructions, through oneDNN.

y[t, n] = s[t] c[n] sum_k x8[t, k] w8[n, k] + b[n] + r[t, n], with one scale per token, s[t] =
max |x[t]| / 127, and one per output channel, c[n] = max |w[n]| / 127. So a token's values do not
depend on other tokens, as they would with one scale per call. Operands are rounded to 255 levels,
sums are exact, and all else is fp32. With gradients on, `linear_torch` uses the unquantised weight.

GEMMs run on many rows at a time, all else on few, which pass from op to op within a core's cache:
on 512 rows, the ops of SwiGLU took 2.4 ms per layer one after the other and take 1.0 ms in blocks.
Source: Dettmers et al. 2022, arXiv:2208.07339, section 2.1 (vector-wise scales).
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from nomicbert_kernels import checks, linear_torch
from nomicbert_kernels.tensors import ZERO, Activation, Packed, Weight, WeightKind, values

# Rows per oneDNN call: enough to amortise the call, few enough to bound the temporaries.
ROWS = 1024
# Bytes of fp32 rows that pass from op to op at a time.
BLOCK = 1 << 19
STEPS = 127
# x + MAGIC, rounded to fp32, has round(x) + ZERO in its low byte: the steps at 1.5 * 2^23 are 1.
MAGIC = 1.5 * 2**23 + ZERO
# Rows whose largest magnitude is below this become zeros.
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

    A NaN or an infinity makes the scale of its row non-finite, and so every result of that row.
    """
    return Activation(*by_blocks(x.shape[1], quantised, x))


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """`quantise` of one block: (rows, K) uint8, shifted by ZERO, and the scales, (rows,)."""
    scale = x.abs().amax(1, keepdim=True).clamp_min_(TINY).div_(STEPS)
    steps = (x * scale.reciprocal()).add_(MAGIC).view(torch.int32)
    return steps.to(torch.uint8), scale.squeeze(1)


def by_blocks(
    width: int, function: Callable[..., tuple[Tensor, ...]], *rows: Tensor
) -> tuple[Tensor, ...]:
    """Apply a function of rows to blocks of rows that fit a core's cache, and join the results.

    Args:
        width: columns of the widest rows.
        function: (rows of each tensor) -> tensors with as many rows.
        rows: tensors (T, ...).

    Returns: the results of all blocks, each (T, ...).
    """
    return in_parts(max(1, BLOCK // (4 * width)), function, *rows)


def in_parts(
    most: int, function: Callable[..., tuple[Tensor, ...]], *rows: Tensor
) -> tuple[Tensor, ...]:
    """`by_blocks` with at most `most` rows at a time."""
    if rows[0].shape[0] <= most:
        return function(*rows)
    parts = zip(*(torch.split(tensor, most) for tensor in rows), strict=True)
    return tuple(map(torch.cat, zip(*(function(*part) for part in parts), strict=True)))


def usable(x: Tensor | Activation, weight: Weight, added: Tensor | None = None) -> bool:
    """Whether `weight` is in int8 and neither gradients nor autocast need the parameter itself."""
    data = x if isinstance(x, Tensor) else x.data
    return weight.scale is not None and bool(linear_torch.usable(data, weight, added))


def quantised_input(x: Tensor | Activation) -> Activation:
    """`x` (T, K) in 8 bits; one that is already is returned as it is."""
    return quantise(values(x)) if isinstance(x, Tensor) or x.scale is None else x


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


def project(
    x: Activation,
    weight: Weight,
    finish: Callable[..., tuple[Tensor, ...]],
    *beside: Tensor,
) -> tuple[Tensor, ...]:
    """Apply a prepared weight, ROWS rows at a time, and a function to blocks of the results.

    Args:
        x: (T, K), quantised.
        weight: (N, K), in one piece or several.
        finish: (the product with each piece, the scales of the rows as (rows, 1), rows of `beside`)
            -> tensors with as many rows. It may overwrite the products.
        beside: tensors (T, ...).

    Returns: what `finish` returns, joined.
    """
    assert x.scale is not None
    assert weight.packed is not None
    assert weight.scale is not None
    scales = weight.scale.chunk(len(weight.packed))
    pieces = list(zip(weight.packed, scales, strict=True))

    def of_chunk(data: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        products = [gemm(data, *piece) for piece in pieces]
        return by_blocks(scales[0].shape[0], finish, *products, *others)

    return in_parts(ROWS, of_chunk, x.data, x.scale.unsqueeze(1), *beside)


def scaled(y: Tensor, scale: Tensor, bias: Tensor | None, added: Tensor | None = None) -> Tensor:
    """Multiply a product (rows, N) by the scales of the rows, in place; add bias and residual."""
    y.mul_(scale)
    if bias is not None:
        y.add_(bias)
    return y if added is None else y.add_(added)


def apply(x: Activation, weight: Weight, added: Tensor | None = None) -> Tensor:
    """The linear layer without checks: (T, N) fp32."""

    def finish(*parts: Tensor) -> tuple[Tensor, ...]:
        return (scaled(parts[0], parts[1], weight.bias, *parts[2:]),)

    return project(x, weight, finish, *(() if added is None else (added,)))[0]


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
    return apply(quantised_input(x), weight, added)
