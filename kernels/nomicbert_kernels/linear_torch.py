"""Linear layer on plain torch; on a CPU through oneDNN with a packed weight.

oneDNN applies bias, activation and residual while the result is in registers. It also gives a row
the same bits whatever the number of rows, which F.linear does not. This makes a text's vector
independent of its batch. There are two exceptions, which are avoided:

- A single row takes another code path, so it is computed as two equal rows.
- With bf16 in AMX tiles, oneDNN splits the sums of a linear layer with over 480 inputs at places
  that depend on the number of rows and threads. It does not split those of a 1x1 convolution, which
  is the same arithmetic but 5 to 30% slower. A test GEMM, run once, shows which one is needed.

Bit equality was measured with the shapes of the checkpoints on 1 to 64 threads: fp32 on AVX2 and
AVX-512, bf16 in AMX tiles. For bf16 on AVX-512 without AMX it holds up to 12 threads; with more,
oneDNN splits some sums among the threads when there are few rows.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from nomicbert_kernels import linear as reference
from nomicbert_kernels.tensors import (
    Activation,
    BlockedWeight,
    Packed,
    Weight,
    WeightKind,
    plain_linear,
)

# Padding, stride, dilation and groups of a 1x1 convolution.
ONE_BY_ONE = ([0, 0], [1, 1], [1, 1], 1)
# Longest sums that AMX does not split (tried with 1 to 64 threads); those of 511 terms it does.
UNCUT = 480
# Rows of an AMX tile. A convolution of few rows gets a multiple of it: with 4 rows and narrow
# weights it takes another code path. For more rows than FEW_ROWS, adding some would copy too much.
TILE = 16
FEW_ROWS = 512
# Input rows whose weight layout also suits most other row counts.
MANY_ROWS = 4096


def onednn_packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN is available, enabled, and packs weights of this dtype."""
    if not (torch._C._has_mkldnn and torch._C._get_mkldnn_enabled()):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def pack(source: Tensor) -> Packed:
    """Reorder (N, K) into oneDNN's opaque layout, which cannot be copied or shared."""
    source = source.detach().contiguous()
    whole = source.dtype != torch.bfloat16 or source.shape[1] <= UNCUT
    if whole or sums_ignore_rows(torch.get_num_threads()):
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(source)
        return packed
    plain = source[:, :, None, None]
    return BlockedWeight(plain, *blocked_for(plain, MANY_ROWS))


def blocked_for(plain: Tensor, rows: int) -> tuple[Tensor, bytes]:
    """Reorder a 1x1 convolution's weight for an input of `rows` rows; return it and its layout.

    Args:
        plain: the weight, (N, K, 1, 1).
        rows: number of input rows.
    """
    size = [1, plain.shape[1], rows, 1]
    ops = torch.ops.mkldnn
    blocked: Tensor = ops._reorder_convolution_weight(plain, *ONE_BY_ONE, size)
    return blocked, ops._get_mkldnn_serialized_md(blocked).numpy().tobytes()


def suited(weight: BlockedWeight, rows: int) -> tuple[int, Tensor]:
    """Return how many rows to compute, `rows` or a few more, and the layout of the weight for them.

    oneDNN would reorder a weight in another layout than it prefers: a plain one in about the time
    of the GEMM, a blocked one in a hundred times that. Adding rows of zeros takes nearly nothing.
    """
    n, k = weight.plain.shape[:2]
    least = rows if rows >= FEW_ROWS else rows + -rows % TILE
    count = fitting_rows(n, k, least, torch.get_num_threads(), weight.layout)
    return (count, weight.blocked) if count else (max(rows, TILE), weight.plain)


@functools.lru_cache(maxsize=4096)
def fitting_rows(n: int, k: int, rows: int, threads: int, layout: bytes) -> int:
    """Return the least row count from `rows` for which oneDNN prefers a layout of a weight (n, k).

    Only a few counts are tried; 0 if none of them fits. `threads` is only a cache key.
    """
    plain = torch.zeros(n, k, 1, 1, dtype=torch.bfloat16, device="cpu")
    tiled = rows + -rows % TILE
    counts = (rows, tiled, tiled + TILE, tiled + 2 * TILE)
    return next((count for count in counts if blocked_for(plain, count)[1] == layout), 0)


@functools.cache
def sums_ignore_rows(threads: int) -> bool:
    """Whether the order of a packed bf16 linear layer's sums is independent of the row count.

    Each sum starts with a large term and ends with its negative, so the result exposes the rounding
    in between, and with it the order.

    Args:
        threads: torch's current thread count; only a cache key.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    x, weight = (
        torch.randn(n, 2048, generator=generator, dtype=torch.float32, device="cpu")
        for n in (640, 512)
    )
    x[:, 0], x[:, -1] = 2.0**18, -(2.0**18)
    weight[:, 0] = weight[:, -1] = 1.0
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.bfloat16())
    x = x.bfloat16()
    first = gemm(x[:2], packed, None)
    return all(torch.equal(gemm(x[:rows], packed, None)[:2], first) for rows in (16, 64, 200, 640))


def prepare(source: Tensor, bias: Tensor | None, kind: WeightKind) -> Weight:
    """Pack a weight for `gemm`, or leave it unchanged if oneDNN cannot pack it.

    Args:
        source: (N, K), or (E, N, K) for kind "experts".
        bias: (N,) or None.
        kind: "linear" one piece · "gated" the up half and the gate half ·
            "router" one piece in fp32, because a rounded logit changes the route ·
            "experts" one piece per expert.
    """
    dtype = torch.float32 if kind == "router" else source.dtype
    if source.device.type != "cpu" or source.numel() == 0 or not onednn_packs(dtype):
        return Weight(source, bias)
    pieces: tuple[Tensor, ...]
    if kind == "gated":
        pieces = source.chunk(2)
    elif kind == "experts":
        pieces = source.unbind()
    else:
        pieces = (source.to(dtype),)
    return Weight(source, bias, packed=tuple(pack(piece) for piece in pieces))


def usable(x: Tensor, weight: Weight, added: Tensor | None = None) -> tuple[Packed, ...]:
    """Return the packed pieces; empty with gradients or autocast, which they do not support."""
    if weight.packed is None or x.shape[0] == 0 or torch.is_autocast_enabled(x.device.type):
        return ()
    if torch.is_grad_enabled():
        # a bias or residual alone may require a gradient, which the fused op would lose
        inputs = (x, weight.source, weight.bias, added)
        if any(t is not None and t.requires_grad for t in inputs):
            return ()
    return weight.packed


def gemm(x: Tensor, packed: Packed, bias: Tensor | None, activation: str = "none") -> Tensor:
    """Packed linear layer of x (T, K), then "none", "swish" or "gelu" (exact)."""
    if isinstance(packed, BlockedWeight):
        rows, weight = suited(packed, x.shape[0])
        convolve = torch.ops.mkldnn._convolution_pointwise.default
        y = convolve(as_image(x, rows), weight, bias, *ONE_BY_ONE, activation, [], "none")
        return as_rows(y, x.shape[0])
    x = x.contiguous()
    if x.shape[0] == 1:
        return gemm(x.expand(2, -1), packed, bias, activation)[:1]
    apply = torch.ops.mkldnn._linear_pointwise.default
    out: Tensor = apply(x, packed, bias, activation, [], "none")
    return out


def gemm_with(
    x: Tensor, packed: Packed, bias: Tensor | None, other: Tensor, combine: str
) -> Tensor:
    """Packed linear layer of x (T, K), then "add" or "mul" with `other` (T, N)."""
    if isinstance(packed, BlockedWeight):
        rows, weight = suited(packed, x.shape[0])
        images = as_image(x, rows), as_image(other, rows)
        convolve = torch.ops.mkldnn._convolution_pointwise.binary
        y = convolve(*images, weight, bias, *ONE_BY_ONE, combine, None, None, [], None)
        return as_rows(y, x.shape[0])
    x, other = x.contiguous(), other.contiguous()
    if x.shape[0] == 1:
        return gemm_with(x.expand(2, -1), packed, bias, other.expand(2, -1), combine)[:1]
    out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, packed, bias, combine)
    return out


def as_image(x: Tensor, rows: int) -> Tensor:
    """View (T, K) as a channels-last image of `rows` x 1 pixels, with zeros for rows beyond T."""
    missing, channels = rows - x.shape[0], x.shape[1]
    x = F.pad(x, (0, 0, 0, missing)) if missing else x.contiguous()
    return x.as_strided((1, channels, rows, 1), (rows * channels, 1, channels, channels))


def as_rows(image: Tensor, rows: int) -> Tensor:
    """The first T rows (T, N) of an image (1, N, T or more, 1); a view of a channels-last one."""
    channels = image.shape[1]
    if image.stride(1) == 1 and image.stride(2) == channels:
        return image.as_strided((rows, channels), (channels, 1))
    return image[0, :, :rows, 0].T.contiguous()


def linear(
    x: Tensor | Activation, weight: Weight, residual: Tensor | Activation | None = None
) -> Tensor:
    """See `nomicbert_kernels.linear`."""
    data, added = reference.check(x, weight, residual)
    packed = usable(data, weight, added)
    if not packed:
        y = plain_linear(data, weight.source.to(weight.dtype), weight.bias)
        return y if added is None else y + added
    if added is None:
        return gemm(data, packed[0], weight.bias)
    return gemm_with(data, packed[0], weight.bias, added.to(data.dtype), "add")
