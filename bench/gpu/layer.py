"""A whole layer as one problem: what a launch costs depends on the kernels around it.

On a GPU the launches of our kernels are recorded once and replayed, as `nomicbert.runtime.graphs`
does for a query.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from bench import problems
from bench.aot_cases import Model
from bench.problem import Call, Draw, Problem, Tensors, offsets_of, size_of
from nomicbert_kernels import Ops, Rope, values


def layer(model: Model, draw: Draw, lengths: Sequence[int]) -> Problem:
    """A layer of a model with rotary embeddings and a gated MLP, on texts of these lengths."""
    lengths, hidden, inner = [*lengths], model.hidden, model.inner
    tokens, offsets = sum(lengths), offsets_of(lengths, draw.device)
    weights = {
        "qkv": draw.weight(3 * hidden, hidden),
        "out": draw.weight(hidden, hidden),
        "up": draw.weight(2 * inner, hidden),
        "down": draw.weight(hidden, inner),
    }
    norms = {
        "norm": draw(2, hidden, scale=0.3, middle=1.0),
        "shift": draw(2, hidden, scale=0.1),
    }
    x = draw.rows(tokens, hidden)
    tensors = {"x": x, **weights, **norms, **problems.angles(draw, tokens, model.head_dim)}

    def bind(ops: Ops, t: Tensors) -> Call:
        qkv, out, down = (ops.prepare(t[name], None, "linear") for name in ("qkv", "out", "down"))
        up = ops.prepare(t["up"], None, "gated")
        rope = Rope(t["cos"], t["sin"], t["row"], model.head_dim, False)
        plan = ops.plan(lengths, model.heads, model.head_dim, t["x"].dtype)
        first, second = zip(t["norm"], t["shift"], [problems.EPS] * 2, strict=True)

        def run() -> Tensor:
            heads = ops.qkv_rotary(t["x"], qkv, rope, model.heads)
            mixed = ops.attention(heads, offsets, plan, model.head_dim**-0.5)
            y, residual = ops.project(mixed, out, t["x"])
            x = ops.layer_norm(y, *first, residual)
            y, residual = ops.project(ops.swiglu(x, up), down, x)
            return values(ops.layer_norm(y, *second, residual))

        return replayed(run) if ops.name == "triton" and t["x"].is_cuda else run

    products = sum(weight.numel() for weight in weights.values())
    pairs = sum(length * length for length in lengths)
    return Problem(
        "layer",
        tensors,
        bind,
        (),
        tokens,
        2.0 * tokens * products + 4.0 * hidden * pairs,
        size_of(*weights.values(), *norms.values(), x, x),
    )


def replayed(run: Call) -> Call:
    """The replay of a CUDA graph of a call, whose result always has the same address."""
    run()  # compiles kernels, which cannot be recorded
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay
