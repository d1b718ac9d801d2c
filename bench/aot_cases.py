"""The calls that `bench.aot` compiles: each op with the shapes of common models.

All values are zero and batches are small, because a compiled kernel does not depend on either. The
exception is the number of rows where a launch table distinguishes few rows from many; see ROWS.
"""

import functools
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nomicbert_kernels import tiling
from nomicbert_kernels.tensors import GROUP, Activation, EmbeddingTables, Rope, Weight

Call = Callable[[], Tensor | Activation]
E4M3 = torch.float8_e4m3fn
# Below, between and above the "up_to" of rows in the tables, and on both sides of the limit of
# attention's short texts. Not multiples of 16, as in most batches.
ROWS = (33, 301, 1025)
VOCABULARY = 64


@dataclass(frozen=True)
class Model:
    """Sizes of an encoder, in the terms of `nomicbert_kernels.tensors`.

    Attributes:
        rotary: rotary embeddings and no biases, instead of learned positions.
    """

    name: str
    hidden: int
    heads: int
    inner: int
    mlp: str
    rotary: bool

    @property
    def head_dim(self) -> int:
        """Size of a head."""
        return self.hidden // self.heads


MODELS = (
    Model("nomic", 768, 12, 3072, "swiglu", True),
    Model("bert-large", 1024, 16, 4096, "gelu", False),
    Model("minilm", 384, 12, 1536, "gelu", False),
    Model("nomic-moe", 768, 12, 3072, "moe", True),
)
# Head sizes that the models above lack.
HEADS = (
    Model("heads of 128", 768, 6, 3072, "gelu", True),
    Model("heads of 256", 768, 3, 3072, "gelu", True),
)


@dataclass(frozen=True)
class Task:
    """One op with all its shapes, for one launch table, architecture and dtype.

    Attributes:
        tables: folder of the table.
        quick: only the first model that has the op.
        pdl: with programmatic dependent launch, where the architecture has it.
    """

    table: str
    arch: str
    dtype: str
    op: str
    tables: Path
    quick: bool
    pdl: bool = False


@dataclass(frozen=True)
class Maker:
    """Makes the tensors of one call.

    Attributes:
        dtype: of the hidden states.
        rows: number of tokens.
    """

    dtype: torch.dtype
    rows: int

    def zeros(self, *shape: int) -> Tensor:
        """A parameter or an activation that requires a gradient."""
        return torch.zeros(*shape, dtype=self.dtype, requires_grad=True)

    def weight(self, bias: bool, *shape: int) -> Weight:
        """A linear layer's parameters, (N, K)."""
        return Weight(self.zeros(*shape), self.zeros(shape[-2]) if bias else None)

    def ids(self) -> Tensor:
        """Token ids, types or positions."""
        return torch.zeros(self.rows, dtype=torch.int64)

    def lengths(self) -> list[int]:
        """Lengths of the texts: a long one and two short ones."""
        short = self.rows // 20
        return [self.rows - 2 * short, short, short]

    def offsets(self) -> Tensor:
        """cu_seqlens of `lengths`."""
        return torch.tensor([0, *self.lengths()], dtype=torch.int32).cumsum(0, dtype=torch.int32)

    def rope(self, model: Model, interleaved: bool) -> Rope:
        """Rotary angles of the texts; all dimensions of a head rotate."""
        table = torch.zeros(max(self.lengths()), model.head_dim // 2)
        row = torch.zeros(self.rows, dtype=torch.int32)
        return Rope(table, table.clone(), row, model.head_dim, interleaved)


def linear(ops: types.ModuleType, model: Model, make: Maker) -> Iterator[Call]:
    """The out and the down projection, with and without a residual."""
    if model.mlp == "moe":
        return
    for width in (model.hidden, model.inner):
        x, weight = make.zeros(make.rows, width), make.weight(not model.rotary, model.hidden, width)
        yield functools.partial(ops.linear, x, weight, make.zeros(make.rows, model.hidden))
        yield functools.partial(ops.linear, x, weight)


def qkv_rotary(ops: types.ModuleType, model: Model, make: Maker) -> Iterator[Call]:
    """Half-split pairs, interleaved ones, and none."""
    x = make.zeros(make.rows, model.hidden)
    weight = make.weight(not model.rotary, 3 * model.hidden, model.hidden)
    ropes = [make.rope(model, False), make.rope(model, True)] if model.rotary else [None]
    for rope in ropes:
        yield functools.partial(ops.qkv_rotary, x, weight, rope, model.heads)


def mlp(name: str, factor: int) -> Any:
    """Swiglu or gelu, whose weight has `factor` rows per column of the result."""

    def calls(ops: types.ModuleType, model: Model, make: Maker) -> Iterator[Call]:
        if model.mlp == name:
            x = make.zeros(make.rows, model.hidden)
            weight = make.weight(not model.rotary, factor * model.inner, model.hidden)
            yield functools.partial(getattr(ops, name), x, weight)

    return calls


def moe(ops: types.ModuleType, model: Model, make: Maker, experts: int = 8) -> Iterator[Call]:
    """Top 2 of 8 experts."""
    if model.mlp == "moe":
        yield functools.partial(
            ops.moe,
            make.zeros(make.rows, model.hidden),
            make.weight(False, experts, model.hidden),
            Weight(make.zeros(experts, model.inner, model.hidden)),
            Weight(make.zeros(experts, model.hidden, model.inner), make.zeros(model.hidden)),
            2,
        )


def layer_norm(ops: types.ModuleType, model: Model, make: Maker) -> Iterator[Call]:
    """With a residual, without it, and without weight and bias."""
    x, residual = make.zeros(make.rows, model.hidden), make.zeros(make.rows, model.hidden)
    weight, bias = make.zeros(model.hidden), make.zeros(model.hidden)
    yield functools.partial(ops.layer_norm, x, weight, bias, 1e-12, residual)
    yield functools.partial(ops.layer_norm, x, weight, bias, 1e-12)
    yield functools.partial(ops.layer_norm, x, None, None, 1e-5)


def embed(ops: types.ModuleType, model: Model, make: Maker) -> Iterator[Call]:
    """From ids and from embeddings, with learned positions if the model has them."""
    tables = EmbeddingTables(
        make.zeros(VOCABULARY, model.hidden),
        make.zeros(2, model.hidden),
        None if model.rotary else make.zeros(VOCABULARY, model.hidden),
    )
    norm = make.zeros(model.hidden), make.zeros(model.hidden), 1e-12
    positions = None if model.rotary else make.ids()
    yield functools.partial(ops.embed, make.ids(), make.ids(), positions, tables, *norm)
    given = make.zeros(make.rows, model.hidden)
    yield functools.partial(ops.embed, None, None, positions, tables, *norm, given)


def attention(ops: types.ModuleType, model: Model, make: Maker) -> Iterator[Call]:
    """All rows, and one row per text."""
    qkv = make.zeros(make.rows, 3, model.heads, model.head_dim)
    plan = tiling.plan_tiles(make.lengths(), model.head_dim, make.dtype, "cpu")
    offsets, scale = make.offsets(), model.head_dim**-0.5
    yield functools.partial(ops.attention, qkv, offsets, plan, scale)
    yield functools.partial(ops.attention, qkv, offsets, plan, scale, rows=offsets[:-1])


def pool(ops: types.ModuleType, model: Model, make: Maker) -> Iterator[Call]:
    """Every mode, then LayerNorm, slice and L2 as in the model card."""
    hidden, offsets = make.zeros(make.rows, model.hidden), make.offsets()
    call = functools.partial(ops.pool, hidden, offsets, None)
    for mode in ("mean", "cls", "max", "mean_sqrt_len", "lasttoken", "weightedmean"):
        yield functools.partial(call, mode)
    yield functools.partial(call, "mean", True, model.hidden // 3, True)


def fp8(ops: types.ModuleType, model: Model, make: Maker) -> Iterator[Call]:
    """Every op on e4m3: inputs rounded by a kernel or by LayerNorm, and MLP activations."""
    if model.mlp == "moe":
        return
    hidden, bias = model.hidden, not model.rotary

    def zeros(*shape: int, dtype: torch.dtype = make.dtype) -> Tensor:
        return torch.zeros(*shape, dtype=dtype)

    def weight(n: int, k: int) -> Weight:
        packed, scale = zeros(n, k, dtype=E4M3), zeros(n, dtype=torch.float32)
        return Weight(zeros(n, k), zeros(n) if bias else None, (packed,), scale)

    def rounded(width: int, *scales: int) -> Activation:
        return Activation(
            zeros(make.rows, width, dtype=E4M3), zeros(make.rows, *scales, dtype=torch.float32)
        )

    x, residual = rounded(hidden), zeros(make.rows, hidden)
    h = rounded(model.inner, -(-model.inner // GROUP))
    first = weight(model.inner * (2 if model.mlp == "swiglu" else 1), hidden)
    rope = make.rope(model, False) if model.rotary else None
    yield functools.partial(ops.round_rows, residual)
    yield functools.partial(ops.layer_norm, residual, zeros(hidden), zeros(hidden), 1e-12, residual)
    yield functools.partial(ops.linear, x, weight(hidden, hidden), residual)
    yield functools.partial(ops.linear, h, weight(hidden, model.inner), residual)
    yield functools.partial(ops.qkv_rotary, x, weight(3 * hidden, hidden), rope, model.heads)
    yield functools.partial(getattr(ops, model.mlp), x, first)


CALLS: dict[str, Any] = {
    "attention": attention,
    "embed": embed,
    "fp8": fp8,
    "gelu": mlp("gelu", 1),
    "layer_norm": layer_norm,
    "linear": linear,
    "moe": moe,
    "pool": pool,
    "qkv_rotary": qkv_rotary,
    "swiglu": mlp("swiglu", 2),
}


def cases(
    op: str, module: types.ModuleType, dtype: torch.dtype, quick: bool
) -> Iterator[tuple[str, Call]]:
    """Yield (label, call) for one op; quick: for the first model that has the op."""
    for model in MODELS + (HEADS if op in ("attention", "fp8", "qkv_rotary") else ()):
        made = False
        for rows in ROWS:
            for call in CALLS[op](module, model, Maker(dtype, rows)):
                made = True
                yield f"{model.name}, {rows} rows", call
        if made and quick:
            return
