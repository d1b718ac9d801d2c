"""Linear layer on plain torch; on a CPU through oneDNN with the weight packed beforehand.

oneDNN adds bias, activation and residual while the result is still in registers, and gives a row
the same bits whatever the number of rows beside it, which F.linear does not. This is what makes a
text's vector independent of its batch. Measured on AVX-512 with the shapes of the checkpoints: fp32
on 1 to 64 threads, bf16 on 1 to 12; on more, oneDNN divides the sums of some bf16 products among
the threads when rows are few. One row alone takes another path, so it is computed twice.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from nomicbert_kernels import linear as reference
from nomicbert_kernels.tensors import Activation, Weight, WeightKind


def onednn_packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN is there, switched on, and packs weights of this dtype."""
    if not (torch._C._has_mkldnn and torch._C._get_mkldnn_enabled()):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def pack(source: Tensor) -> Tensor:
    """Reorder (N, K) into oneDNN's blocks; the result is opaque and cannot be copied or shared."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(source.detach().contiguous())
    return packed


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


def usable(x: Tensor, weight: Weight, added: Tensor | None = None) -> tuple[Tensor, ...]:
    """The packed pieces; none where gradients or autocast, which they do not follow, are on."""
    if weight.packed is None or x.shape[0] == 0 or torch.is_autocast_enabled(x.device.type):
        return ()
    if torch.is_grad_enabled():
        # a bias or a residual alone may ask for a gradient: the fused product would lose it
        inputs = (x, weight.source, weight.bias, added)
        if any(t is not None and t.requires_grad for t in inputs):
            return ()
    return weight.packed


def product(x: Tensor, packed: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """(T, K) times a packed weight, plus bias, through "none", "swish" or "gelu" (exact)."""
    x = x.contiguous()
    y: Tensor
    if x.shape[0] == 1:
        return product(x.expand(2, -1), packed, bias, activation)[:1]
    y = torch.ops.mkldnn._linear_pointwise(x, packed, bias, activation, [], "none")
    return y


def product_with(
    x: Tensor, packed: Tensor, bias: Tensor | None, other: Tensor, combine: str
) -> Tensor:
    """(T, K) times a packed weight, plus bias, then "add" or "mul" with `other` (T, N)."""
    x, other = x.contiguous(), other.contiguous()
    if x.shape[0] == 1:
        return product_with(x.expand(2, -1), packed, bias, other.expand(2, -1), combine)[:1]
    y: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, packed, bias, combine)
    return y


def linear(
    x: Tensor | Activation, weight: Weight, residual: Tensor | Activation | None = None
) -> Tensor:
    """See `nomicbert_kernels.linear`."""
    data, added = reference.check(x, weight, residual)
    packed = usable(data, weight, added)
    if not packed:
        y = F.linear(data, weight.source.to(weight.dtype), weight.bias)
        return y if added is None else y + added
    if added is None:
        return product(data, packed[0], weight.bias)
    return product_with(data, packed[0], weight.bias, added.to(data.dtype), "add")
