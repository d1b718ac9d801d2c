"""The data that ops exchange: prepared weights, activations, rotary tables, batch plans.

Symbols used in all docstrings of this package:
T tokens of all texts end to end, B texts, H hidden size, h attention heads, d head size,
I intermediate size, N and K the output and input width of a linear layer.
"""

import functools
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PoolMode = Literal["mean", "cls", "max", "mean_sqrt_len", "lasttoken", "weightedmean"]
# Those that read one token of a text.
ONE_TOKEN_MODES = ("cls", "lasttoken")
WeightKind = Literal["linear", "gated", "router", "experts"]
# Columns of a row that share a scale, where a row has several.
GROUP = 128


@dataclass(frozen=True)
class BlockedWeight:
    """A weight (N, K) as that of a 1x1 convolution, for oneDNN; see `linear_torch`.

    Attributes:
        plain: (N, K, 1, 1), the weight itself.
        blocked: the same values in oneDNN's blocks, for most numbers of rows.
        layout: of `blocked`, serialised.
    """

    plain: Tensor
    blocked: Tensor
    layout: bytes


Packed = Tensor | BlockedWeight


@dataclass(frozen=True)
class Weight:
    """A linear layer's parameters, as the model stores them and as a backend wants them.

    Attributes:
        source: (N, K), the parameter itself. Ops use it whenever gradients are recorded.
        bias: (N,) in `dtype`, or None.
        packed: what the backend made of `source`: the same numbers in blocks that suit its
            matrix product, in one piece or several; None where `source` serves as it is.
        scale: (N,) fp32 factors of a quantised `packed`, or None.
        computed_in: the dtype that `packed` serves, where `source` may be stored in a narrower
            one; None for that of `source`.
    """

    source: Tensor
    bias: Tensor | None = None
    packed: tuple[Packed, ...] | None = None
    scale: Tensor | None = None
    computed_in: torch.dtype | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the hidden states that it multiplies, and of the result."""
        return self.computed_in or self.source.dtype


@dataclass(frozen=True)
class Activation:
    """Hidden states in a narrow format, as `layer_norm` may hand them to the next product.

    Attributes:
        data: (T, H), any dtype.
        scale: (T,) fp32 factor of each row, or (T, groups) of each row's columns, GROUP at a time;
            None when `data` holds the values themselves.
        wide: (T, H) the values as they were before they were rounded, for who adds them on; or
            None where nobody does.
    """

    data: Tensor
    scale: Tensor | None = None
    wide: Tensor | None = None


@dataclass(frozen=True)
class Rope:
    """Rotary angles of one batch.

    Attributes:
        cos: (R, rotary_dim / 2) fp32, one row for each distinct (position, theta).
        sin: same shape.
        row: (T,) int32, the row of `cos` and `sin` that each token uses.
        rotary_dim: leading dimensions of a head that rotate; the rest pass through.
        interleaved: pairs are (2j, 2j + 1) when True, (j, j + rotary_dim / 2) when False.
    """

    cos: Tensor
    sin: Tensor
    row: Tensor
    rotary_dim: int
    interleaved: bool = False

    @functools.cached_property
    def of_tokens(self) -> tuple[Tensor, Tensor]:
        """Cosines and sines of each token, (T, rotary_dim / 2), gathered once for all layers."""
        return self.cos[self.row], self.sin[self.row]


class Run(NamedTuple):
    """Neighbouring texts of one length: a dense (texts, length) block of the packed tokens.

    Attributes:
        text: index of the first text.
        token: index of its first token.
        texts: how many texts.
        length: tokens of each, at least 1.
    """

    text: int
    token: int
    texts: int
    length: int


@dataclass(frozen=True)
class Tiles:
    """Neighbouring tokens that a kernel takes at a time, listed on the device.

    Attributes:
        table: (n, 4) int32 rows of first token, tokens, first text, and the text after the last.
            A tile is a part of one text, or several whole short ones; one of 0 tokens is idle.
        text: (T,) int32, the text of each token.
        rows: tokens of a tile at most.
    """

    table: Tensor
    text: Tensor
    rows: int


@dataclass(frozen=True)
class Plan:
    """How a backend walks the texts of one batch; made once a batch by `Ops.plan`.

    Attributes:
        runs: in the order of the texts; texts without tokens are left out. For reference and torch.
        tiles: for triton, else None.
    """

    runs: tuple[Run, ...] = ()
    tiles: Tiles | None = None


@dataclass(frozen=True)
class EmbeddingTables:
    """The tables that `embed` gathers from.

    Attributes:
        word: (V, H), one row for each token id.
        token_type: (types, H), or None for a model without token types.
        position: (positions, H) learned positions, or None for a rotary model.
    """

    word: Tensor
    token_type: Tensor | None = None
    position: Tensor | None = None


def to_device(values: np.ndarray, device: torch.device | str) -> Tensor:
    """One copy; to a GPU from pinned memory, so that the host does not wait for it."""
    tensor = torch.from_numpy(values)
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def accumulator(x: Tensor) -> torch.dtype:
    """The dtype that a reference computes in: fp32, or fp64 when `x` is fp64."""
    return torch.promote_types(x.dtype, torch.float32)


def unstrided(x: Tensor) -> Tensor:
    """Rows (T, K) of a GEMM, without gaps on a CPU.

    Where oneDNN computes 16-bit rows in AMX tiles and K is odd, it also reads the element behind
    each row and multiplies it by zero: NaN between strided rows would spread (seen in torch 2.13).
    """
    return x if x.is_cuda else x.contiguous()


def plain_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear of `unstrided` rows: (T, K), (N, K), (N,) or None -> (T, N)."""
    return F.linear(unstrided(x), weight, bias)


def values(x: Tensor | Activation, dtype: torch.dtype = torch.float32) -> Tensor:
    """The plain tensor behind an op's input; a scaled one is multiplied out, then made `dtype`."""
    if isinstance(x, Tensor):
        return x
    if x.wide is not None:
        return x.wide
    if x.scale is None:
        return x.data
    factor = x.scale[:, None]
    if x.scale.dim() == 2:
        factor = x.scale.repeat_interleave(GROUP, 1)[:, : x.data.shape[1]]
    return (x.data.float() * factor).to(dtype)
