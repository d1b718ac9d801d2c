"""Every Triton op under the sanitizer: values, gradients, and every access to memory.

Each row of the table draws an op's inputs and calls it. Results are compared with the reference in
fp64, and the allowed error is derived from backend torch. Rows of inputs and upstream gradients are
strided where allowed, with NaN between them. Widths are odd unless a kernel needs even ones.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import nomicbert_kernels
from nomicbert_kernels import EmbeddingTables, Ops, Plan, Rope, Weight, launch, values
from nomicbert_kernels.backend import FP8_REFERENCE, fp8_ops, plan_runs
from tests.ops.cases import ALL_DTYPES, INTERPRETS, assert_within, draw, offsets_of, spread

if not INTERPRETS:
    pytest.skip("kernels run on the device itself", allow_module_level=True)

from triton.runtime.interpreter import InterpretedFunction

from nomicbert_kernels.tiling import plan_tiles
from tests.interpreter import bf16
from tests.interpreter import fp8 as e4m3
from tests.interpreter.sanitizer import sanitized

# Around the edges of tiles, and an empty text; ops without texts use only the last.
LENGTHS = (0, 1, 15, 16, 17, 63, 64, 65)
BATCHES: dict[str, tuple[int, ...]] = {"edges": (65,), "one": (1,), "none": (0, 0)}
HEADS, VOCABULARY, EXPERTS = 2, 50, 5

Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class Batch:
    """Texts of these lengths, and the dtype of the op."""

    lengths: Sequence[int]
    dtype: torch.dtype

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def offsets(self) -> Tensor:
        return offsets_of(self.lengths)

    def plan(self, head_dim: int) -> Plan:
        """A plan for all three backends."""
        runs = plan_runs(self.lengths, HEADS, head_dim, self.dtype)
        if self.dtype == torch.float64:
            return runs
        return dataclasses.replace(
            runs, tiles=plan_tiles(self.lengths, head_dim, self.dtype, "cpu").tiles
        )

    def ids(self, table: int, step: int) -> Tensor:
        return torch.arange(self.tokens) * step % table

    def rope(self, rotary_dim: int, interleaved: bool) -> Rope:
        """Rotary tables in the dtype of the angles, fp64 for the exact result."""
        angle = draw(40, rotary_dim // 2, seed=9, scale=2.0)
        dtype = torch.promote_types(self.dtype, torch.float32)
        cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
        return Rope(cos, sin, self.ids(40, 7).int(), rotary_dim, interleaved)

    def last(self) -> Tensor:
        """The last token of each text."""
        return self.offsets[1:] - 1


@dataclass(frozen=True)
class Row:
    """How one op is called.

    Attributes:
        op: its name.
        shapes: number of tokens -> shapes of its floating-point inputs.
        call: the op, its inputs, the texts -> its result.
        kernels: all kernels that its forward and backward pass launch.
        lengths: of the texts, if they matter.
        trained: whether kernels also compute its gradients.
        library: whether it uses the vendor's GEMM.
        apart: inputs whose rows may be strided.
        choose: replaces inputs, if not all random ones are suitable.
    """

    op: str
    shapes: Callable[[int], dict[str, tuple[int, ...]]]
    call: Callable[[Callable[..., Any], Values, Batch], Tensor]
    kernels: set[str]
    lengths: tuple[int, ...] = ()
    trained: bool = True
    library: bool = False
    apart: tuple[str, ...] = ("x", "residual")
    choose: Callable[[dict[str, Tensor]], dict[str, Tensor]] = field(default=lambda values: values)


def product(op: Callable[..., Tensor], v: Values, _: Batch) -> Tensor:
    """x, w and b of linear, gelu and swiglu."""
    return op(v["x"], Weight(v["w"], v.get("b")))


def rotary(rotary_dim: int, interleaved: bool) -> Callable[..., Tensor]:
    def call(op: Callable[..., Tensor], v: Values, batch: Batch) -> Tensor:
        rope = batch.rope(rotary_dim, interleaved) if rotary_dim else None
        return op(v["x"], Weight(v["w"], v.get("b")), rope, HEADS)

    return call


def attend(op: Callable[..., Tensor], v: Values, batch: Batch) -> Tensor:
    size = v["x"].shape[3]
    return op(v["x"], batch.offsets, batch.plan(size), 1.5 * size**-0.5)


def attend_last(op: Callable[..., Tensor], v: Values, batch: Batch) -> Tensor:
    size = v["x"].shape[3]
    return op(v["x"], batch.offsets, batch.plan(size), size**-0.5, rows=batch.last())


def gather(op: Callable[..., Tensor], v: Values, batch: Batch) -> Tensor:
    tables = EmbeddingTables(v["word"], v["token_type"], v["position"])
    ids = [batch.ids(*step) for step in ((VOCABULARY, 7), (2, 1), (70, 3))]
    return op(*ids, tables, v["weight"], v["b"], 1e-12)


def normalise_given(op: Callable[..., Tensor], v: Values, batch: Batch) -> Tensor:
    tables = EmbeddingTables(v["word"], v["token_type"])
    return op(None, None, None, tables, v["weight"], v["b"], 1e-12, inputs_embeds=v["x"])


def pooling(mode: str, **options: Any) -> Callable[..., Tensor]:
    return lambda op, v, batch: op(v["x"], batch.offsets, batch.plan(16), mode, **options)


def experts(op: Callable[..., Tensor], v: Values, _: Batch) -> Tensor:
    return op(v["x"], Weight(v["router"]), Weight(v["up"]), Weight(v["down"], v["b"]), 2)


def clear_choices(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tokens whose choice of two experts cannot change by rounding."""
    wanted = values["x"].shape[0] // 8
    p = torch.softmax(values["x"].double() @ values["router"].double().T, dim=1)
    best = p.sort(dim=1, descending=True).values
    clear = values["x"][best[:, 1] - best[:, 2] > 0.03]
    assert len(clear) >= wanted
    return {**values, "x": clear[:wanted]}


ATTENTION = {"attention_kernel", "query_gradient_kernel", "key_gradient_kernel"}
POOLING = {
    mode: {"pool_kernel", "pool_backward_kernel"} | ({"pieces_kernel"} if walks else set())
    for mode, walks in {
        "mean": True,
        "mean_sqrt_len": True,
        "weightedmean": True,
        "max": True,
        "cls": False,
        "lasttoken": False,
    }.items()
}
E4M3_KERNELS = {
    "layer_norm_kernel",
    "linear_kernel",
    "narrow_kernel",
    "qkv_rotary_kernel",
    "rotate_kernel",
    "swiglu_kernel",
}
ROWS = {
    "linear": Row(
        "linear",
        lambda t: {"x": (t, 37), "w": (41, 37), "b": (41,), "residual": (t, 41)},
        lambda op, v, _: op(v["x"], Weight(v["w"], v["b"]), v["residual"]),
        {"linear_kernel"},
    ),
    "linear-even": Row(
        "linear", lambda t: {"x": (t, 48), "w": (72, 48)}, product, {"linear_kernel"}, apart=()
    ),
    "gelu": Row(
        "gelu", lambda t: {"x": (t, 37), "w": (41, 37), "b": (41,)}, product, {"linear_kernel"}
    ),
    "gelu-even": Row(
        "gelu", lambda t: {"x": (t, 48), "w": (72, 48)}, product, {"linear_kernel"}, apart=()
    ),
    "swiglu": Row(
        "swiglu",
        lambda t: {"x": (t, 37), "w": (54, 37), "b": (54,)},
        product,
        {"swiglu_kernel", "gate_backward_kernel"},
    ),
    "swiglu-even": Row(
        "swiglu",
        lambda t: {"x": (t, 48), "w": (96, 48)},
        product,
        {"swiglu_kernel", "gate_backward_kernel"},
        apart=(),
    ),
    "swiglu-library": Row(
        "swiglu",
        lambda t: {"x": (t, 37), "w": (54, 37), "b": (54,)},
        product,
        {"gate_kernel", "gate_backward_kernel"},
        library=True,
    ),
    "qkv": Row(
        "qkv_rotary",
        lambda t: {"x": (t, 37), "w": (66, 37), "b": (66,)},
        rotary(0, False),
        {"linear_kernel"},
    ),
    "qkv_rotary": Row(
        "qkv_rotary",
        lambda t: {"x": (t, 37), "w": (96, 37), "b": (96,)},
        rotary(16, False),
        {"qkv_rotary_kernel", "rotate_kernel"},
    ),
    "qkv_rotary-even": Row(
        "qkv_rotary",
        lambda t: {"x": (t, 48), "w": (192, 48)},
        rotary(32, False),
        {"qkv_rotary_kernel", "rotate_kernel"},
        apart=(),
    ),
    "qkv_rotary-interleaved": Row(
        "qkv_rotary",
        lambda t: {"x": (t, 37), "w": (66, 37), "b": (66,)},
        rotary(6, True),
        {"rotate_kernel"},
    ),
    "attention": Row(
        "attention",
        lambda t: {"x": (t, 3, HEADS, 20)},
        attend,
        ATTENTION,
        lengths=LENGTHS,
    ),
    "attention-even": Row(
        "attention",
        lambda t: {"x": (t, 3, HEADS, 32)},
        attend,
        {"attention_kernel"},
        lengths=LENGTHS,
        trained=False,
        apart=(),
    ),
    "attention-long": Row(
        "attention",
        lambda t: {"x": (t, 3, 1, 16)},
        attend,
        ATTENTION,
        lengths=(1, 257, 3),
    ),
    "attention-last": Row(
        "attention",
        lambda t: {"x": (t, 3, HEADS, 20)},
        attend_last,
        ATTENTION,
        lengths=LENGTHS[1:],
    ),
    "layer_norm": Row(
        "layer_norm",
        lambda t: {"x": (t, 37), "weight": (37,), "b": (37,), "residual": (t, 37)},
        lambda op, v, _: op(v["x"], v["weight"], v["b"], 1e-12, v["residual"]),
        {"layer_norm_kernel", "layer_norm_backward_kernel"},
    ),
    "layer_norm-bare": Row(
        "layer_norm",
        lambda t: {"x": (t, 1037)},
        lambda op, v, _: op(v["x"], None, None, 1e-5),
        {"layer_norm_kernel", "layer_norm_backward_kernel"},
    ),
    "embed": Row(
        "embed",
        lambda t: {
            "word": (VOCABULARY, 37),
            "token_type": (2, 37),
            "position": (70, 37),
            "weight": (37,),
            "b": (37,),
        },
        gather,
        {"embed_kernel", "embed_backward_kernel", "table_gradient_kernel"},
        apart=("word", "token_type", "position"),
    ),
    "embed-given": Row(
        "embed",
        lambda t: {
            "x": (t, 37),
            "word": (VOCABULARY, 37),
            "token_type": (2, 37),
            "weight": (37,),
            "b": (37,),
        },
        normalise_given,
        {"embed_kernel", "embed_backward_kernel"},
    ),
    "moe": Row(
        "moe",
        lambda t: {
            "x": (8 * t, 37),
            "router": (EXPERTS, 37),
            "up": (EXPERTS, 41, 37),
            "down": (EXPERTS, 37, 41),
            "b": (37,),
        },
        experts,
        {"route_kernel", "experts_kernel", "combine_kernel"},
        trained=False,
        choose=clear_choices,
    ),
}
for _mode, _kernels in POOLING.items():
    ROWS[f"pool-{_mode}"] = Row(
        "pool", lambda t: {"x": (t, 37)}, pooling(_mode), _kernels, lengths=LENGTHS
    )
ROWS["pool-finished"] = Row(
    "pool",
    lambda t: {"x": (t, 37)},
    pooling("mean", layer_norm=True, dim=21, normalize=True),
    POOLING["mean"],
    lengths=LENGTHS,
)


@pytest.fixture(autouse=True, scope="module")
def exact_bf16() -> None:
    bf16.install()


def form_of(op: str, form: str) -> Callable[..., Any]:
    module = importlib.import_module(f"nomicbert_kernels.{op}{form}")
    return getattr(module, op)


def values_of(row: Row, batch: Batch, seed: int) -> dict[str, Tensor]:
    values = {
        name: draw(*shape, seed=seed + i, dtype=batch.dtype, scale=0.3 if name in "w up" else 1.0)
        for i, (name, shape) in enumerate(row.shapes(batch.tokens).items())
    }
    return row.choose(values)


def results(
    form: str, row: Row, values: Values, batch: Batch, seed: int, apart: bool = False
) -> list[Tensor]:
    """An op's result, and the gradients of its inputs."""
    op = form_of(row.op, form)
    if not row.trained:
        with torch.no_grad():
            return [row.call(op, values, batch)]
    leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
    y = row.call(op, leaves, batch)
    gradients: Sequence[Tensor | None] = [None] * len(leaves)
    if y.requires_grad:  # without texts there is no graph
        upstream = draw(*y.shape, seed=seed, dtype=batch.dtype).to(y.dtype)
        upstream = spread(upstream) if apart and y.numel() else upstream
        gradients = torch.autograd.grad(y, list(leaves.values()), upstream, allow_unused=True)
    pairs = zip(leaves.values(), gradients, strict=True)
    return [y.detach(), *(torch.zeros_like(x) if dx is None else dx for x, dx in pairs)]


@ALL_DTYPES
@pytest.mark.parametrize("lengths", BATCHES)
@pytest.mark.parametrize("name", ROWS)
def test_sanitized(
    name: str, lengths: str, dtype: torch.dtype, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = ROWS[name]
    edges = lengths == "edges"
    if name == "attention-last" and lengths == "none":
        pytest.skip("a text without tokens has no last one")
    batch = Batch(row.lengths if edges and row.lengths else BATCHES[lengths], dtype)
    values = values_of(row, batch, seed)
    if row.library:
        chosen = launch.settings
        monkeypatch.setattr(
            launch, "settings", lambda *a, **k: dataclasses.replace(chosen(*a, **k), library=True)
        )
    mine = {key: spread(v) if key in row.apart and v.numel() else v for key, v in values.items()}
    with sanitized() as sanitizer:
        got = results("_triton", row, mine, batch, seed, apart=bool(row.apart))
    plain = results("_torch", row, values, batch, seed)
    exact = {key: value.double() for key, value in values.items()}
    truth = results("", row, exact, dataclasses.replace(batch, dtype=torch.float64), seed)
    for mine_, wanted, yardstick in zip(got, truth, plain, strict=True):
        assert_within(mine_, wanted, yardstick, yardstick.dtype)
    if edges:
        assert set(sanitizer.kernels) == row.kernels


@pytest.mark.parametrize("tokens", [65, 1, 0])
def test_sanitized_in_e4m3(tokens: int, seed: int) -> None:
    """The same kernels with scales, and the one that quantises rows; 272 columns are 3 groups."""
    e4m3.install()
    width, inner = 64, 272
    mine, plain = fp8_ops(torch.device("cpu")), FP8_REFERENCE
    x, residual = (draw(tokens, width, seed=seed + i) for i in range(2))
    x, residual = (spread(t) if tokens else t for t in (x, residual))
    batch = Batch((tokens,), torch.float32)
    shapes = {"qkv": (3 * width, width), "up": (2 * inner, width), "down": (width, inner)}
    parameters = {
        name: (draw(*shape, seed=seed + i, scale=0.3), draw(shape[0], seed=seed + 9 + i))
        for i, (name, shape) in enumerate(shapes.items())
    }

    def run(ops: Ops) -> list[Tensor]:
        weights = {
            name: ops.prepare(weight, bias, "gated" if name == "up" else "linear")
            for name, (weight, bias) in parameters.items()
        }
        norm = ops.layer_norm(x, torch.ones(width), torch.zeros(width), 1e-12, residual)
        gated = ops.swiglu(norm, weights["up"])
        return [
            values(norm),
            ops.qkv_rotary(x, weights["qkv"], batch.rope(32, False), HEADS),
            ops.qkv_rotary(norm, weights["qkv"], batch.rope(6, True), HEADS),
            ops.qkv_rotary(norm, weights["qkv"], None, HEADS),
            values(ops.gelu(norm, weights["qkv"])),
            values(gated),
            ops.linear(gated, weights["down"], norm),
        ]

    with torch.no_grad(), sanitized() as sanitizer:
        got = run(mine)
    with torch.no_grad():
        wanted = run(plain)
    for a, b in zip(got, wanted, strict=True):
        assert a.shape == b.shape
        # a sum rounded to the other side of a tie changes by up to a sixteenth of itself
        assert (a - b).norm() <= 5e-3 * b.norm()
    if tokens > 1:
        assert set(sanitizer.kernels) == E4M3_KERNELS


def test_no_kernel_is_left_out() -> None:
    modules = [m.name for m in pkgutil.iter_modules(nomicbert_kernels.__path__)]
    found = {
        name
        for module in modules
        if module.endswith("_triton")
        for name, value in vars(importlib.import_module(f"nomicbert_kernels.{module}")).items()
        if isinstance(value, InterpretedFunction) and name.endswith("_kernel")
    }
    assert found == E4M3_KERNELS.union(*(row.kernels for row in ROWS.values()))
