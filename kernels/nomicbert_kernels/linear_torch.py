"""Linear layer on plain torch; on a CPU through oneDNN with the weight packed beforehand.

oneDNN adds bias, activation and residual while the result is still in registers, and gives a row
the same bits whatever the number of rows beside it, which F.linear does not. This is what makes a
text's vector independent of its batch. Two ways to call it do not, and are avoided:

- One row alone takes another path, so it is computed twice.
- Where bf16 is multiplied in AMX tiles, oneDNN cuts the sums of a linear layer with over 480 inputs
  at places that depend on the number of rows and of threads. Those of a 1x1 convolution, which is
  the same arithmetic, it does not. Which one is needed is found out once, by a product whose sums
  show where they are cut. The convolution takes 5 to 30% longer.

Measured with the shapes of the checkpoints, 1 to 64 threads: fp32 on AVX2 and AVX-512, bf16 in AMX
tiles. bf16 on AVX-512 without AMX: up to 12 threads; on more, oneDNN divides the sums of some
products among the threads when rows are few.
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

# Padding, stride, dilation and groups of a convolution that is a linear layer.
ONE_BY_ONE = ([0, 0], [1, 1], [1, 1], 1)
# Sums of so many terms or fewer are not cut on AMX (1 to 64 threads tried); those of 511 are.
UNCUT = 480
# The fewest rows such a convolution is given: with 4 and narrow weights it takes another path.
FEW_ROWS = 16
# Rows of an input whose weight's blocks suit most other numbers of rows too.
MANY_ROWS = 4096


def onednn_packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN is there, switched on, and packs weights of this dtype."""
    if not (torch._C._has_mkldnn and torch._C._get_mkldnn_enabled()):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def pack(source: Tensor) -> Packed:
    """Reorder (N, K) into oneDNN's blocks, which are opaque and cannot be copied or shared."""
    source = source.detach().contiguous()
    whole = source.dtype != torch.bfloat16 or source.shape[1] <= UNCUT
    if whole or sums_ignore_rows(torch.get_num_threads()):
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(source)
        return packed
    plain = source[:, :, None, None]
    return BlockedWeight(plain, *blocked_for(plain, MANY_ROWS))


def blocked_for(plain: Tensor, rows: int) -> tuple[Tensor, bytes]:
    """A 1x1 convolution's weight (N, K, 1, 1) in oneDNN's blocks for this input, and their layout.

    Args:
        plain: the weight.
        rows: of the input.
    """
    size = [1, plain.shape[1], rows, 1]
    ops = torch.ops.mkldnn
    blocked: Tensor = ops._reorder_convolution_weight(plain, *ONE_BY_ONE, size)
    return blocked, ops._get_mkldnn_serialized_md(blocked).numpy().tobytes()


def suited(weight: BlockedWeight, rows: int) -> Tensor:
    """The form of a weight that oneDNN takes fastest for so many rows.

    It reorders the plain weight in a fraction of a product's time, but blocks of another layout in
    a hundred times that.
    """
    n, k = weight.plain.shape[:2]
    wanted = layout_for(n, k, max(rows, FEW_ROWS), torch.get_num_threads())
    return weight.blocked if wanted == weight.layout else weight.plain


@functools.lru_cache(maxsize=4096)
def layout_for(n: int, k: int, rows: int, threads: int) -> bytes:
    """The layout that oneDNN wants of a weight (n, k); `threads` are those of the moment."""
    return blocked_for(torch.zeros(n, k, 1, 1, dtype=torch.bfloat16, device="cpu"), rows)[1]


@functools.cache
def sums_ignore_rows(threads: int) -> bool:
    """Whether a packed bf16 linear layer sums in one order whatever the number of rows.

    A large term at the start of each sum is taken off at its end, so that rounding in between shows
    in the result, and with it the order.

    Args:
        threads: that torch computes with now; the answer is kept for this number.
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
    first = product(x[:2], packed, None)
    return all(
        torch.equal(product(x[:rows], packed, None)[:2], first) for rows in (16, 64, 200, 640)
    )


def prepare(source: Tensor, bias: Tensor | None, kind: WeightKind) -> Weight:
    """Pack a weight for `product`, or leave it as it is where oneDNN does not serve it.

    Args:
        source: (N, K), or (E, N, K) for kind "experts".
        bias: (N,) or None.
        kind: "linear" one piece · "gated" the up half and the gate half ·
            "router" one piece in fp32, because a rounded logit changes the route ·
            "experts" one piece an expert.
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
    """The packed pieces; none where gradients or autocast, which they do not follow, are on."""
    if weight.packed is None or x.shape[0] == 0 or torch.is_autocast_enabled(x.device.type):
        return ()
    if torch.is_grad_enabled():
        # a bias or a residual alone may ask for a gradient: the fused product would lose it
        inputs = (x, weight.source, weight.bias, added)
        if any(t is not None and t.requires_grad for t in inputs):
            return ()
    return weight.packed


def product(x: Tensor, packed: Packed, bias: Tensor | None, activation: str = "none") -> Tensor:
    """(T, K) times a packed weight, plus bias, through "none", "swish" or "gelu" (exact)."""
    if isinstance(packed, BlockedWeight):
        image, weight = as_image(x), suited(packed, x.shape[0])
        convolve = torch.ops.mkldnn._convolution_pointwise
        y = convolve(image, weight, bias, *ONE_BY_ONE, activation, [], "none")
        return as_rows(y, x.shape[0])
    x = x.contiguous()
    if x.shape[0] == 1:
        return product(x.expand(2, -1), packed, bias, activation)[:1]
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, activation, [], "none")
    return out


def product_with(
    x: Tensor, packed: Packed, bias: Tensor | None, other: Tensor, combine: str
) -> Tensor:
    """(T, K) times a packed weight, plus bias, then "add" or "mul" with `other` (T, N)."""
    if isinstance(packed, BlockedWeight):
        images, weight = (as_image(x), as_image(other)), suited(packed, x.shape[0])
        convolve = torch.ops.mkldnn._convolution_pointwise.binary
        y = convolve(*images, weight, bias, *ONE_BY_ONE, combine, None, None, [], None)
        return as_rows(y, x.shape[0])
    x, other = x.contiguous(), other.contiguous()
    if x.shape[0] == 1:
        return product_with(x.expand(2, -1), packed, bias, other.expand(2, -1), combine)[:1]
    out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, packed, bias, combine)
    return out


def as_image(x: Tensor) -> Tensor:
    """Rows (T, K) as an image of T x 1 pixels and K channels, channels last; some zeros for few."""
    missing = FEW_ROWS - x.shape[0]
    x = F.pad(x, (0, 0, 0, missing)) if missing > 0 else x.contiguous()
    rows, channels = x.shape
    return x.as_strided((1, channels, rows, 1), (rows * channels, 1, channels, channels))


def as_rows(image: Tensor, rows: int) -> Tensor:
    """The first rows (T, N) of an image (1, N, T or more, 1)."""
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
        return product(data, packed[0], weight.bias)
    return product_with(data, packed[0], weight.bias, added.to(data.dtype), "add")
