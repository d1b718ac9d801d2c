"""The calls to measure: a model's kernels that have launch settings, on random inputs.

A problem is one kernel, one size of its weight, and one range of the number of rows. Times do not
depend on the values, but the check of a candidate does.
"""

import functools
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from nomicbert_kernels.backend import Ops
from nomicbert_kernels.fp8 import round_groups, round_rows
from nomicbert_kernels.launch import Row
from nomicbert_kernels.tensors import Activation, Rope, Weight

KERNELS = ("qkv_rotary", "swiglu", "gelu", "linear", "attention", "experts")
# Those that backend "fp8" launches on e4m3, with rows of their own for elements of 1 byte.
NARROW_KERNELS = ("qkv_rotary", "swiglu", "gelu", "linear")
# Row counts where the best settings change: few rows are bound by reading the weight, many by the
# tensor cores. The limits of the shipped rows are added.
LIMITS = (64, 512)
# Rows measured for all counts beyond the last limit: several tiles for every multiprocessor.
LARGE = 8192
# Lengths of the texts that attention is measured on, cycled until the rows are used up.
SHORT_TEXTS = (16, 32, 64, 128, 256)
LONG_TEXTS = (512, 1024, 2048)
# Rows of the rotary tables.
POSITIONS = 512
# Minimum lead in probability of a token's last chosen expert, so that rounding cannot change it.
CLEAR = 1e-3
SEED = 0

Call = Callable[[], Tensor | Activation]
Prepare = Callable[[Ops, torch.dtype], Call]


@dataclass(frozen=True)
class Model:
    """Sizes of an encoder, in the terms of `nomicbert_kernels.tensors`.

    Attributes:
        fused_rotary: whether the projection's kernel applies the rotation: half-split pairs of
            whole heads whose size is a power of two. Otherwise the vendor's GEMM is used, which
            has no settings.
        mlp: the op before the down projection; "linear" for an activation without an op.
        experts: number of experts in every second layer; 0 for none.
    """

    name: str
    hidden: int
    heads: int
    inner: int
    mlp: Literal["swiglu", "gelu", "linear"]
    rotary: bool
    fused_rotary: bool
    bias: bool
    experts: int = 0
    top_k: int = 0

    @property
    def head_dim(self) -> int:
        """Size of a head."""
        return self.hidden // self.heads


# The shapes of the most widely used checkpoints.
LEADING = (
    Model("nomic-embed-text-v1.5", 768, 12, 3072, "swiglu", True, True, False),
    Model("nomic-embed-text-v2-moe", 768, 12, 3072, "gelu", True, True, True, 8, 2),
    Model("BERT-large", 1024, 16, 4096, "gelu", False, False, True),
    Model("MiniLM", 384, 12, 1536, "gelu", False, False, True),
)


class Draw:
    """Draws random tensors of one dtype on one device, the same each time."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        """Seed the generator."""
        self.dtype, self.device = dtype, device
        self._generator = torch.Generator(device).manual_seed(SEED)

    def __call__(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Draw normal values."""
        drawn = torch.randn(shape, generator=self._generator, device=self.device)
        return (drawn * scale).to(self.dtype)

    def weight(self, *shape: int) -> Tensor:
        """Draw a weight whose GEMM result is about as large as its input."""
        return self(*shape, scale=shape[-1] ** -0.5)


@dataclass(frozen=True)
class Problem:
    """One kernel at one size.

    Attributes:
        kernel: its name in the launch tables.
        exactly: the sizes for "exactly" in its table rows.
        up_to: largest number of rows it applies to; None for all beyond the other problems.
        rows: the number of rows measured; None if settings do not depend on it.
        make: draws the tensors; returns a function that makes the call for any ops and dtype.
    """

    kernel: str
    exactly: Mapping[str, int]
    up_to: int | None
    rows: int | None
    make: Callable[[Draw], Prepare] = field(compare=False, repr=False)

    @property
    def sizes(self) -> dict[str, int]:
        """All sizes that a table row may be compared with."""
        return {**self.exactly, **({} if self.rows is None else {"rows": self.rows})}

    @property
    def shape(self) -> str:
        """The sizes as text: "3072 x 768", or "heads of 64"."""
        if "n" not in self.exactly:
            return f"heads of {self.exactly['head_dim']}"
        return f"{self.exactly['n']} x {self.exactly['k']}"


def given(ops: Ops, x: Tensor, grouped: bool = False) -> Tensor | Activation:
    """The input of a GEMM: for backend "fp8" rounded, as the op before it does in a model."""
    if ops.name != "fp8":
        return x
    return round_groups(x) if grouped else round_rows(x)


def linear(
    n: int, k: int, bias: bool, residual: bool, grouped: bool, rows: int, draw: Draw
) -> Prepare:
    """linear, with the residual add of the output projections if `residual`.

    grouped: the input is that of an MLP's second half, with a scale per group in e4m3.
    """
    x, source = draw(rows, k), draw.weight(n, k)
    added = draw(rows, n) if residual else None
    b = draw(n) if bias else None

    def prepare(ops: Ops, dtype: torch.dtype) -> Call:
        weight = ops.prepare(source.to(dtype), None if b is None else b.to(dtype), "linear")
        after = None if added is None else added.to(dtype)
        return functools.partial(ops.linear, given(ops, x.to(dtype), grouped), weight, after)

    return prepare


def mlp(kernel: str, n: int, k: int, bias: bool, rows: int, draw: Draw) -> Prepare:
    """Any kind of MLP without its down projection, and without an activation that has no op."""
    x, source = draw(rows, k), draw.weight(2 * n if kernel == "swiglu" else n, k)
    b = draw(source.shape[0]) if bias else None

    def prepare(ops: Ops, dtype: torch.dtype) -> Call:
        kind: Literal["gated", "linear"] = "gated" if kernel == "swiglu" else "linear"
        weight = ops.prepare(source.to(dtype), None if b is None else b.to(dtype), kind)
        return functools.partial(getattr(ops, kernel), given(ops, x.to(dtype)), weight)

    return prepare


def qkv_rotary(model: Model, rows: int, draw: Draw) -> Prepare:
    """qkv_rotary with rotation of whole heads."""
    x, source = draw(rows, model.hidden), draw.weight(3 * model.hidden, model.hidden)
    b = draw(3 * model.hidden) if model.bias else None
    angles = draw(POSITIONS, model.head_dim // 2).float()
    row = torch.arange(rows, dtype=torch.int32, device=draw.device) % POSITIONS
    rope = Rope(angles.cos(), angles.sin(), row, model.head_dim)

    def prepare(ops: Ops, dtype: torch.dtype) -> Call:
        weight = ops.prepare(source.to(dtype), None if b is None else b.to(dtype), "linear")
        x8 = given(ops, x.to(dtype))
        return functools.partial(ops.qkv_rotary, x8, weight, rope, model.heads)

    return prepare


def attention(model: Model, texts: Sequence[int], one_each: bool, rows: int, draw: Draw) -> Prepare:
    """Attention over texts of these lengths, cycled; for all tokens, or one token per text."""
    lengths: list[int] = []
    for length in itertools.cycle(texts):
        if lengths and sum(lengths) + length > rows:
            break
        lengths.append(length)
    qkv = draw(sum(lengths), 3, model.heads, model.head_dim)
    ends = torch.tensor([0, *lengths], dtype=torch.int32, device=draw.device)
    offsets = ends.cumsum(0, dtype=torch.int32)
    wanted = offsets[:-1] if one_each else None

    def prepare(ops: Ops, dtype: torch.dtype) -> Call:
        plan = ops.plan(lengths, model.heads, model.head_dim, dtype)
        scale = model.head_dim**-0.5
        return functools.partial(ops.attention, qkv.to(dtype), offsets, plan, scale, rows=wanted)

    return prepare


def experts(model: Model, rows: int, draw: Draw) -> Prepare:
    """The whole mixture, on tokens with clear routes; `rows` counts (token, expert) pairs."""
    tokens, chosen = max(1, rows // model.top_k), model.top_k
    x, router = draw(2 * tokens, model.hidden), draw.weight(model.experts, model.hidden)
    if chosen < model.experts:
        shares = torch.softmax(x.float() @ router.float().T, dim=-1).sort(descending=True).values
        x = x[shares[:, chosen - 1] - shares[:, chosen] > CLEAR]
    x = x[:tokens].contiguous()
    up = draw.weight(model.experts, model.inner, model.hidden)
    down = draw.weight(model.experts, model.hidden, model.inner)
    b = draw(model.hidden) if model.bias else None

    def prepare(ops: Ops, dtype: torch.dtype) -> Call:
        weights: tuple[Weight, ...] = (
            ops.prepare(router.to(dtype), None, "router"),
            ops.prepare(up.to(dtype), None, "experts"),
            ops.prepare(down.to(dtype), None if b is None else b.to(dtype), "experts"),
        )
        return functools.partial(ops.moe, x.to(dtype), *weights, chosen)

    return prepare


def gemms(model: Model) -> Iterator[tuple[str, int, int, Callable[..., Prepare]]]:
    """Yield (kernel, n, k, maker) of a model's GEMMs; a maker takes a number of rows and `draw`."""
    h, inner, bias = model.hidden, model.inner, model.bias
    if model.fused_rotary:
        yield "qkv_rotary", 3 * h, h, functools.partial(qkv_rotary, model)
    elif not model.rotary:
        yield "linear", 3 * h, h, functools.partial(linear, 3 * h, h, bias, False, False)
    for k, grouped in ((h, False), (inner, True)):
        yield "linear", h, k, functools.partial(linear, h, k, bias, True, grouped)
    yield model.mlp, inner, h, functools.partial(mlp, model.mlp, inner, h, bias)
    if model.experts:
        for n, k in ((inner, h), (h, inner)):
            yield "experts", n, k, functools.partial(experts, model)


def limits_of(kernel: str, shipped: Collection[Row]) -> list[int]:
    """Row counts at which settings may change, ascending."""
    stated = {row.up_to["rows"] for row in shipped if row.kernel == kernel and "rows" in row.up_to}
    return sorted(stated.union(LIMITS))


def problems(
    models: Sequence[Model], kernels: Collection[str], shipped: Collection[Row]
) -> list[Problem]:
    """List the problems of some models, each size once.

    Args:
        models: the models.
        kernels: a subset of KERNELS.
        shipped: rows of the shipped table for the measured element size.
    """
    found: dict[tuple[object, ...], Problem] = {}

    def add(problem: Problem) -> None:
        key = (problem.kernel, *problem.exactly.items(), problem.up_to)
        found.setdefault(key, problem)

    for model in models:
        for kernel, n, k, maker in gemms(model):
            if kernel in kernels:
                exactly = {"n": n, "k": k}
                if kernel == "qkv_rotary":
                    exactly["head_dim"] = model.head_dim
                limits = limits_of(kernel, shipped)
                for up_to in (*limits, None):
                    rows = max(LARGE, 2 * limits[-1]) if up_to is None else up_to
                    make = functools.partial(maker, rows)
                    add(Problem(kernel, exactly, up_to, rows, make))
        if "attention" in kernels:
            for kernel, texts, one_each in (
                ("attention_short", SHORT_TEXTS, False),
                ("attention_long", LONG_TEXTS, False),
                ("attention_rows", SHORT_TEXTS, True),
            ):
                make = functools.partial(attention, model, texts, one_each, LARGE)
                add(Problem(kernel, {"head_dim": model.head_dim}, None, None, make))
    return list(found.values())
