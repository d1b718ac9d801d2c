"""A problem for each op at the sizes of a model, for tests and benchmarks."""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.aot_cases import Model
from bench.problem import Call, Draw, Problem, Tensors, offsets_of, size_of, spread
from nomicbert_kernels import EmbeddingTables, Ops, PoolMode, Rope, values
from nomicbert_kernels.tensors import ONE_TOKEN_MODES

EPS = 1e-12
VOCABULARY, TYPES, POSITIONS = 30522, 2, 8192
THETA = 1000.0
EXPERTS, TOP_K = 8, 2
# If two experts' probabilities are closer than this, rounding may swap them.
MARGIN = 1e-3


def projected(
    op: str,
    model: Model,
    draw: Draw,
    tokens: int,
    columns: int,
    width: int,
    bind: Callable[[Ops, Tensors], Call],
) -> Problem:
    """A problem of x (tokens, width) and a weight (columns, width), with a bias for BERT models."""
    tensors = {"x": draw.rows(tokens, width), "weight": draw.weight(columns, width)}
    if not model.rotary:
        tensors["bias"] = draw(columns, scale=0.1)
    moved_bytes = size_of(*tensors.values()) + tokens * columns * draw.dtype.itemsize
    return Problem(
        op, tensors, bind, tuple(tensors), tokens, 2.0 * tokens * columns * width, moved_bytes
    )


def linear(
    model: Model, draw: Draw, tokens: int, *, down: bool = False, residual: bool = True
) -> Problem:
    """The out projection of attention, or the down projection of the MLP."""
    width = model.inner if down else model.hidden

    def bind(ops: Ops, t: Tensors) -> Call:
        weight = ops.prepare(t["weight"], t.get("bias"), "linear")
        return functools.partial(ops.linear, t["x"], weight, t.get("residual"))

    problem = projected("linear", model, draw, tokens, model.hidden, width, bind)
    if not residual:
        return problem
    added = draw.rows(tokens, model.hidden)
    tensors = problem.tensors | {"residual": added}
    return Problem(
        "linear",
        tensors,
        bind,
        tuple(tensors),
        tokens,
        problem.flops,
        problem.bytes + size_of(added),
    )


def angles(draw: Draw, tokens: int, rotary_dim: int) -> Tensors:
    """fp32 cos and sin tables of positions up to 511, and each token's row in them."""
    frequency = THETA ** -(torch.arange(0, rotary_dim, 2, device=draw.device) / rotary_dim)
    angle = torch.arange(512, device=draw.device)[:, None] * frequency
    row = torch.arange(tokens, device=draw.device, dtype=torch.int32) % len(angle)
    return {"cos": angle.cos(), "sin": angle.sin(), "row": row}


def qkv_rotary(
    model: Model, draw: Draw, tokens: int, *, interleaved: bool = False, fraction: float = 1.0
) -> Problem:
    """The projection to queries, keys and values; rotated if the model has rotary embeddings."""
    rotary_dim = int(model.head_dim * fraction)

    def bind(ops: Ops, t: Tensors) -> Call:
        weight = ops.prepare(t["weight"], t.get("bias"), "linear")
        rope = None
        if "cos" in t:
            rope = Rope(t["cos"], t["sin"], t["row"], rotary_dim, interleaved)
        return functools.partial(ops.qkv_rotary, t["x"], weight, rope, model.heads)

    problem = projected("qkv_rotary", model, draw, tokens, 3 * model.hidden, model.hidden, bind)
    if not model.rotary:
        return problem
    tensors = problem.tensors | angles(draw, tokens, rotary_dim)
    return Problem(
        "qkv_rotary", tensors, bind, problem.leaves, tokens, problem.flops, problem.bytes
    )


def swiglu(model: Model, draw: Draw, tokens: int) -> Problem:
    """The up and gate projections of a gated MLP."""

    def bind(ops: Ops, t: Tensors) -> Call:
        weight = ops.prepare(t["weight"], t.get("bias"), "gated")
        return functools.partial(ops.swiglu, t["x"], weight)

    problem = projected("swiglu", model, draw, tokens, 2 * model.inner, model.hidden, bind)
    unwritten = tokens * model.inner * draw.dtype.itemsize
    return Problem(
        "swiglu", problem.tensors, bind, problem.leaves, tokens, problem.flops,
        problem.bytes - unwritten,
    )  # fmt: skip


def gelu(model: Model, draw: Draw, tokens: int) -> Problem:
    """The up projection of a plain MLP."""

    def bind(ops: Ops, t: Tensors) -> Call:
        weight = ops.prepare(t["weight"], t.get("bias"), "linear")
        return functools.partial(ops.gelu, t["x"], weight)

    return projected("gelu", model, draw, tokens, model.inner, model.hidden, bind)


def clear_rows(x: Tensor, router: Tensor, count: int) -> Tensor:
    """The first `count` rows whose choice of experts does not depend on rounding."""
    ranked = (x.double() @ router.double().T).softmax(1).sort(dim=1, descending=True).values
    clear = ranked[:, TOP_K - 1] - ranked[:, TOP_K] > MARGIN
    chosen = x[clear][:count]
    if len(chosen) < count:
        raise ValueError(f"only {len(chosen)} of {len(x)} tokens are routed clearly, need {count}")
    return chosen


def moe(model: Model, draw: Draw, tokens: int) -> Problem:
    """Top 2 of 8 experts."""
    router = draw(EXPERTS, model.hidden, scale=1.5 * model.hidden**-0.5)
    x = clear_rows(draw(tokens + tokens // 4 + 32, model.hidden), router, tokens)
    tensors = {
        "x": spread(x, draw.apart) if draw.apart else x,
        "router": router,
        "up": draw.weight(EXPERTS, model.inner, model.hidden),
        "down": draw.weight(EXPERTS, model.hidden, model.inner),
        "bias": draw(model.hidden, scale=0.1),
    }

    def bind(ops: Ops, t: Tensors) -> Call:
        router = ops.prepare(t["router"], None, "router")
        up, down = (
            ops.prepare(t["up"], None, "experts"),
            ops.prepare(t["down"], t["bias"], "experts"),
        )
        return functools.partial(ops.moe, t["x"], router, up, down, TOP_K)

    flops = 2.0 * tokens * model.hidden * (EXPERTS + 2 * TOP_K * model.inner)
    moved_bytes = size_of(*tensors.values()) + size_of(x)
    return Problem("moe", tensors, bind, tuple(tensors), tokens, flops, moved_bytes)


def attention(
    model: Model, draw: Draw, lengths: Sequence[int], *, one_row: bool = False
) -> Problem:
    """Attention within texts of these lengths; logits have a standard deviation of about 3."""
    lengths = [*lengths]
    tensors = {"qkv": draw.rows(sum(lengths), 3, model.heads, model.head_dim, scale=1.7)}
    offsets = offsets_of(lengths, draw.device)

    def bind(ops: Ops, t: Tensors) -> Call:
        plan = ops.plan(lengths, model.heads, model.head_dim, t["qkv"].dtype)
        call = functools.partial(ops.attention, t["qkv"], offsets, plan, model.head_dim**-0.5)
        return functools.partial(call, rows=offsets[:-1]) if one_row else call

    pairs = float(sum(lengths) if one_row else sum(n * n for n in lengths))
    queries = len(lengths) if one_row else sum(lengths)
    moved_bytes = size_of(tensors["qkv"]) + queries * model.hidden * draw.dtype.itemsize
    return Problem(
        "attention", tensors, bind, ("qkv",), sum(lengths), 4.0 * model.hidden * pairs, moved_bytes
    )


def layer_norm(
    model: Model, draw: Draw, tokens: int, *, residual: bool = True, affine: bool = True
) -> Problem:
    """The LayerNorm that ends a sublayer."""
    tensors = {"x": draw.rows(tokens, model.hidden, scale=2.0)}
    if residual:
        tensors["residual"] = draw.rows(tokens, model.hidden)
    if affine:
        tensors["weight"] = draw(model.hidden, scale=0.3, middle=1.0)
        tensors["bias"] = draw(model.hidden, scale=0.1)

    def bind(ops: Ops, t: Tensors) -> Call:
        weight, bias, added = (t.get(name) for name in ("weight", "bias", "residual"))
        return lambda: values(ops.layer_norm(t["x"], weight, bias, EPS, added))

    moved_bytes = size_of(*tensors.values()) + size_of(tensors["x"])
    return Problem("layer_norm", tensors, bind, tuple(tensors), tokens, 0.0, moved_bytes)


def embed(model: Model, draw: Draw, tokens: int, *, vocabulary: int = VOCABULARY) -> Problem:
    """Word, type and, if the model has them, position embeddings, and LayerNorm."""
    tensors = {
        "ids": draw.ids(vocabulary, tokens),
        "types": draw.ids(TYPES, tokens),
        "word": draw(vocabulary, model.hidden),
        "token_type": draw(TYPES, model.hidden),
        "weight": draw(model.hidden, scale=0.3, middle=1.0),
        "bias": draw(model.hidden, scale=0.1),
    }
    leaves = ["word", "token_type", "weight", "bias"]
    if not model.rotary:
        tensors["positions"] = torch.arange(tokens, device=draw.device) % POSITIONS
        tensors["position"] = draw(POSITIONS, model.hidden)
        leaves.append("position")

    def bind(ops: Ops, t: Tensors) -> Call:
        tables = EmbeddingTables(t["word"], t["token_type"], t.get("position"))
        ids = t["ids"], t["types"], t.get("positions")
        return functools.partial(ops.embed, *ids, tables, t["weight"], t["bias"], EPS)

    # at worst one row of the word table per token; the other tables stay in cache
    rows = 2.0 * tokens * model.hidden * draw.dtype.itemsize
    return Problem("embed", tensors, bind, tuple(leaves), tokens, 0.0, rows)


def pool(
    model: Model,
    draw: Draw,
    lengths: Sequence[int],
    mode: PoolMode = "mean",
    *,
    layer_norm: bool = False,
    dim: int | None = None,
    normalize: bool = False,
) -> Problem:
    """One vector per text."""
    lengths = [*lengths]
    tensors = {"hidden": draw.rows(sum(lengths), model.hidden)}
    offsets = offsets_of(lengths, draw.device)

    def bind(ops: Ops, t: Tensors) -> Call:
        plan = ops.plan(lengths, model.heads, model.head_dim, t["hidden"].dtype)
        finish = layer_norm, dim, normalize
        return functools.partial(ops.pool, t["hidden"], offsets, plan, mode, *finish)

    kept = len(lengths) if mode in ONE_TOKEN_MODES else sum(lengths)
    moved_bytes = kept * model.hidden * draw.dtype.itemsize + 4.0 * len(lengths) * model.hidden
    return Problem("pool", tensors, bind, ("hidden",), sum(lengths), 0.0, moved_bytes)
