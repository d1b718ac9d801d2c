"""The data that ops exchange: prepared weights, activations, rotary tables, batch plans.

Symbols used in all docstrings of this package:
T tokens of all texts, concatenated, B texts, H hidden size, h attention heads, d head size,
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
# Modes that read a single token of each text.
ONE_TOKEN_MODES = ("cls", "lasttoken")
WeightKind = Literal["linear", "gated", "router", "experts"]
# Columns of a row that share a scale, if a row has several scales.
GROUP = 128
# What uint8 data are shifted by: oneDNN's int8 GEMMs take unsigned inputs with a zero point.
ZERO = 128


@dataclass(frozen=True)
class BlockedWeight:
    """A weight (N, K) as the weight of a 1x1 convolution, for oneDNN; see `linear_torch`.

    Attributes:
        plain: (N, K, 1, 1), the weight in its plain layout.
        blocked: the same values in the blocked oneDNN layout that suits most row counts.
        layout: serialised oneDNN layout of `blocked`.
    """

    plain: Tensor
    blocked: Tensor
    layout: bytes


Packed = Tensor | BlockedWeight


@dataclass(frozen=True)
class Weight:
    """A linear layer's parameters, as stored by the model and as packed for a backend.

    Attributes:
        source: (N, K), the parameter itself. Ops use it whenever gradients are recorded.
        bias: (N,) in `dtype`, or None.
        packed: `source` in the backend's layout or quantised, in one piece or several; None if
            the backend uses `source` directly.
        scale: (N,) fp32 factors of a quantised `packed`, or None.
        computed_in: the dtype of the computation if `source` may be stored in a narrower one;
            None for the dtype of `source`.
    """

    source: Tensor
    bias: Tensor | None = None
    packed: tuple[Packed, ...] | None = None
    scale: Tensor | None = None
    computed_in: torch.dtype | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the layer's input and result."""
        return self.computed_in or self.source.dtype


class Norm(NamedTuple):
    """A LayerNorm.

    Attributes:
        weight: (H,), dtype of the hidden states.
        bias: same shape.
        eps: added to the variance.
    """

    weight: Tensor
    bias: Tensor
    eps: float


@dataclass(frozen=True)
class LayerWeights:
    """All that `Ops.layer` needs of one layer.

    Attributes:
        num_heads: h.
        scale: factor of the logits.
        qkv: (3 h d, H).
        out: (H, h d).
        attention_norm: after attention.
        up: (2 I, H) of kind "gated", or (I, H) of kind "linear" for GELU.
        down: (H, I).
        mlp_norm: after the MLP.
        gated: whether the MLP is SwiGLU, not GELU.
    """

    num_heads: int
    scale: float
    qkv: Weight
    out: Weight
    attention_norm: Norm
    up: Weight
    down: Weight
    mlp_norm: Norm
    gated: bool


@dataclass(frozen=True)
class Activation:
    """Hidden states, possibly quantised, as an op may pass them to the next GEMM.

    Attributes:
        data: (T, H), any dtype; uint8 holds integers from -128 to 127, shifted by ZERO.
        scale: (T,) fp32, one factor per row, or (T, groups), one per row and GROUP columns; None
            when `data` holds the values themselves.
        wide: (T, H) the unrounded values, for the residual add; None if unused.
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
    def of_tokens(self) -> tuple[Tensor, Tensor, Tensor]:
        """Angles per token, gathered once for all layers, to rotate (T, 2, h, rotary_dim).

        Returns: cosines of both dimensions of every pair, (T, 1, 1, rotary_dim), sines and negative
            sines, each (T, 1, 1, rotary_dim / 2).
        """
        cos, sin = self.cos[self.row][:, None, None], self.sin[self.row][:, None, None]
        both = cos.repeat_interleave(2, -1) if self.interleaved else torch.cat([cos, cos], -1)
        return both, sin, -sin


class Run(NamedTuple):
    """Neighbouring texts of equal length: a dense (texts, length) block of the packed tokens.

    Attributes:
        text: index of the first text.
        token: index of its first token.
        texts: number of texts.
        length: tokens per text, at least 1.
    """

    text: int
    token: int
    texts: int
    length: int


@dataclass(frozen=True)
class Tiles:
    """Tiles of neighbouring tokens, one per program of a kernel, in device memory.

    Attributes:
        table: (n, 4) int32, per tile: first token, token count, first text, last text + 1. A tile
            is a part of one text, or several whole short texts. With 0 tokens it is idle.
        text: (T,) int32, the text of each token.
        rows: maximum tokens per tile.
    """

    table: Tensor
    text: Tensor
    rows: int


@dataclass(frozen=True)
class Plan:
    """How a backend divides the texts of a batch into work; made once per batch by `Ops.plan`.

    Attributes:
        runs: for reference and torch, in the order of the texts, without empty texts.
        tiles: for triton, else None.
    """

    runs: tuple[Run, ...] = ()
    tiles: Tiles | None = None

    def only_run(self) -> Run:
        """The run that all texts are in; ValueError: there is another number of runs."""
        if len(self.runs) != 1:
            raise ValueError(f"the texts must be of one length, a single run, not {self.runs}")
        return self.runs[0]


@dataclass(frozen=True)
class EmbeddingTables:
    """The embedding tables that `embed` gathers from.

    Attributes:
        word: (V, H), one row per token id.
        token_type: (types, H), or None for a model without token types.
        position: (positions, H) learned positions, or None for a rotary model.
    """

    word: Tensor
    token_type: Tensor | None = None
    position: Tensor | None = None


def to_device(values: np.ndarray, device: torch.device | str) -> Tensor:
    """Copy an array to a device; asynchronously, from pinned memory, if it is a GPU."""
    tensor = torch.from_numpy(values)
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def accumulator(x: Tensor) -> torch.dtype:
    """The dtype the reference computes in: fp32, or fp64 when `x` is fp64."""
    # torch.promote_types would be recorded by torch.export as an op
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def unstrided(x: Tensor) -> Tensor:
    """Return the rows (T, K) of a GEMM input, made contiguous on a CPU.

    With 16-bit rows, AMX tiles and odd K, oneDNN also reads the element after each row and
    multiplies it by zero. A NaN between strided rows would spread (seen in torch 2.13).
    """
    return x if x.is_cuda else x.contiguous()


def plain_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear of `unstrided` rows: (T, K), (N, K), (N,) or None -> (T, N)."""
    return F.linear(unstrided(x), weight, bias)


def values(x: Tensor | Activation, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return an op's input as a plain tensor; a scaled one is dequantised to `dtype`."""
    if isinstance(x, Tensor):
        return x
    if x.wide is not None:
        return x.wide
    if x.scale is None:
        return x.data
    factor = x.scale[:, None]
    if x.scale.dim() == 2:
        factor = x.scale.repeat_interleave(GROUP, 1)[:, : x.data.shape[1]]
    data = x.data.float()
    return ((data - ZERO if x.data.dtype == torch.uint8 else data) * factor).to(dtype)
