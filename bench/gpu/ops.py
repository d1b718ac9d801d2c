"""Our ops compared with plain and compiled torch, at the batch sizes of models.

The peers are those of the op benchmarks, bench/bench_*.py. Ours also run with other launch settings
and on backend "fp8". One more case combines the end of a sublayer: a projection with its residual,
and LayerNorm.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from bench import problems
from bench.aot_cases import Model
from bench.bench_embed import gathers_and_norm
from bench.bench_gelu import linear_and_gelu
from bench.bench_layer_norm import add_and_norm
from bench.bench_linear import addmm_with_residual, linear_and_add
from bench.bench_moe import all_experts, loop
from bench.bench_pool import masked, segmented, summed
from bench.bench_qkv_rotary import linear_and_rotation
from bench.bench_swiglu import linear_and_gate
from bench.gpu import forms
from bench.gpu.place import Place
from bench.gpu.race import Task, contest
from bench.harness import Peer
from bench.problem import Call, Draw, Problem, Tensors, size_of
from nomicbert.benchmark.lines import Line
from nomicbert_kernels import Ops, values

# Full waves of tiles on 132 multiprocessors for both models; for nomic only; and few tokens.
TOKENS = (16896, 5632, 256)
DRY_TOKENS = (70,)
POOLED = (70, 512)
# TFLOP/s that our fused kernel needs to beat cuBLAS at 600 TFLOP/s followed by a second kernel.
BREAK_EVEN = {"qkv_rotary": 478.0, "swiglu": 465.0, "gelu": 461.0}

Made = tuple[Problem, Mapping[str, Peer]]
# (model, random tensors, tokens) -> the problem, and its peers.
Maker = Callable[[Model, Draw, int], Made]


def qkv_rotary(model: Model, draw: Draw, tokens: int) -> Made:
    peer = Peer(linear_and_rotation(model), compiled=True)
    return problems.qkv_rotary(model, draw, tokens), {"linear, rotation": peer}


def swiglu(model: Model, draw: Draw, tokens: int) -> Made:
    peer = Peer(linear_and_gate, compiled=True)
    return problems.swiglu(model, draw, tokens), {"linear, silu * up": peer}


def gelu(model: Model, draw: Draw, tokens: int) -> Made:
    peer = Peer(linear_and_gelu, compiled=True)
    return problems.gelu(model, draw, tokens), {"linear, gelu": peer}


def linear(down: bool) -> Maker:
    def make(model: Model, draw: Draw, tokens: int) -> Made:
        peers = {
            "linear + residual": Peer(linear_and_add, compiled=True),
            "addmm": Peer(addmm_with_residual),
        }
        return problems.linear(model, draw, tokens, down=down), peers

    return make


def layer_norm(model: Model, draw: Draw, tokens: int) -> Made:
    peer = Peer(add_and_norm, compiled=True)
    return problems.layer_norm(model, draw, tokens), {"add, layer_norm": peer}


def sublayer_end(model: Model, draw: Draw, tokens: int) -> Made:
    """Down projection, residual and LayerNorm: our two kernels against torch's."""
    plain = problems.linear(model, draw, tokens, down=True)
    norm = {
        "norm": draw(model.hidden, scale=0.3, middle=1.0),
        "shift": draw(model.hidden, scale=0.1),
    }

    def bind(ops: Ops, t: Tensors) -> Call:
        weight = ops.prepare(t["weight"], t.get("bias"), "linear")

        def run() -> Tensor:
            y, residual = ops.project(t["x"], weight, t["residual"])
            return values(ops.layer_norm(y, t["norm"], t["shift"], problems.EPS, residual))

        return run

    def normed(product: Callable[[Tensors], Call]) -> Callable[[Tensors], Call]:
        def call(t: Tensors) -> Call:
            project = product(t)
            width = (model.hidden,)
            return lambda: F.layer_norm(project(), width, t["norm"], t["shift"], problems.EPS)

        return call

    between = 2.0 * tokens * model.hidden * draw.dtype.itemsize
    size = plain.bytes + size_of(*norm.values()) + between
    problem = replace(
        plain, op="linear, layer_norm", tensors=plain.tensors | norm, bind=bind, bytes=size
    )
    return problem, {
        "linear + residual, layer_norm": Peer(normed(linear_and_add), compiled=True),
        "addmm, layer_norm": Peer(normed(addmm_with_residual)),
    }


def embed(model: Model, draw: Draw, tokens: int) -> Made:
    peer = Peer(gathers_and_norm, compiled=True)
    return problems.embed(model, draw, tokens), {"gathers, layer_norm": peer}


def pool(length: int) -> Maker:
    def make(model: Model, draw: Draw, tokens: int) -> Made:
        lengths, dim = [length] * max(1, tokens // length), model.hidden // 3
        options: dict[str, Any] = {"layer_norm": True, "dim": dim, "normalize": True}
        peers = {
            "index_add": summed(lengths, dim),
            "segment_reduce": segmented(lengths, dim),
            "masked mean": masked(lengths, dim),
        }
        return problems.pool(model, draw, lengths, **options), peers

    return make


def moe(model: Model, draw: Draw, tokens: int) -> Made:
    peers = {"loop over experts": Peer(loop), "all experts": Peer(all_experts, compiled=True)}
    return problems.moe(model, draw, tokens), peers


def makers(model: Model) -> dict[str, Maker]:
    """The ops of a model, by the name of their case."""
    if model.mlp == "moe":  # its other ops are the same as nomic's
        return {"moe": moe}
    found = {"swiglu": swiglu} if model.mlp == "swiglu" else {"gelu": gelu}
    return {
        "qkv_rotary": qkv_rotary,
        **found,
        "linear out": linear(down=False),
        "linear down": linear(down=True),
        "layer_norm": layer_norm,
        "linear, layer_norm": sublayer_end,
        "embed": embed,
        **{f"pool {length}": pool(length) for length in POOLED},
    }


def tasks(place: Place) -> Iterator[Task]:
    """Each op of each model; small models at one batch size only."""
    for tokens in DRY_TOKENS if place.dry else TOKENS:
        for model in place.models():
            if model.name in ("minilm", "nomic-moe") and tokens not in (TOKENS[0], *DRY_TOKENS):
                continue
            for name in makers(model):
                if name.startswith("pool") and int(name.split()[1]) > tokens:
                    continue
                # without rotation cuBLAS needs no second kernel, so there is no break-even
                leading = model.name in ("nomic", "bert-large")
                fused = leading and forms.kernel_of(model, name) == name
                even = BREAK_EVEN.get(name) if fused else None
                more = {"batch": f"{tokens} tokens", "break_even_tflops": even}
                yield Task("ops", model.name, f"{name}, {tokens}", "op", tokens, more=more)


def measure(place: Place, task: Task) -> list[Line]:
    """One case."""
    (model,) = place.models(task.model)
    name, _, tokens = task.case.rpartition(", ")
    problem, peers = makers(model)[name](model, place.bench.draw(), int(tokens))
    known = replace(task, tokens=problem.tokens, flops=problem.flops, bytes=problem.bytes)
    others = forms.of_products(place, forms.kernel_of(model, problem.op), problem)
    return contest(place, known, problem, peers, others, forms.in_fp8(place, name, problem))
