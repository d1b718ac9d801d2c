"""The three kinds of MLP as nodes.

A mixture of experts gathers the tokens of each expert, so that a token costs two experts and not
all of them. Routing is float32 in every precision.
Source: as in `modeling.mlp`.
"""

import numpy as np
from torch import nn

from nomicbert.export.activations import activation, silu
from nomicbert.export.graph import Graph
from nomicbert.export.layers import linear, matmul
from nomicbert.modeling.mlp import GatedMLP, MixtureOfExperts, PlainMLP


def mlp(graph: Graph, name: str, module: nn.Module, x: str) -> str:
    """Add an MLP, without the residual: (B, S, H) -> (B, S, H)."""
    if isinstance(module, GatedMLP):
        inner = module.up_gate.out_features // 2
        both = linear(graph, f"{name}.up_gate", module.up_gate, x)
        up, gate = graph.add("Split", both, graph.ints(inner, inner), outputs=2, axis=-1)
        return linear(graph, f"{name}.down", module.down, graph.add("Mul", up, silu(graph, gate)))
    if isinstance(module, PlainMLP):
        inner_states = linear(graph, f"{name}.up", module.up, x)
        active = activation(graph, module.act, inner_states)
        return linear(graph, f"{name}.down", module.down, active)
    assert isinstance(module, MixtureOfExperts)  # build_mlp makes no other
    return _experts(graph, name, module, x)


def _experts(graph: Graph, name: str, module: MixtureOfExperts, x: str) -> str:
    """Sum over the top-k experts e of p_e * down_e(gelu(up_e(x))), + one bias."""
    width = module.router.in_features
    tokens = graph.add("Reshape", x, graph.ints(-1, width))  # (T, H), padding included
    with graph.in_float32():
        logits = linear(graph, f"{name}.router", module.router, graph.widen(tokens))
    probabilities = graph.add("Softmax", logits, axis=-1)  # (T, E)
    top, chosen = graph.add("TopK", probabilities, graph.ints(module.top_k), outputs=2, axis=-1)
    # the sum is float32: onnxruntime adds in ScatterND in no narrower type
    total = graph.add("Expand", graph.floats(0.0), graph.add("Shape", tokens))
    for expert in range(module.router.out_features):
        here = graph.add("Equal", chosen, graph.scalar(expert))  # (T, k)
        weights = graph.add("Mul", top, graph.cast(here, np.float32))
        weights = graph.add("ReduceSum", weights, graph.ints(1), keepdims=1)  # (T, 1)
        hit = graph.add("ReduceMax", graph.cast(here, np.float32), axes=(1,), keepdims=0)
        rows = graph.add("Transpose", graph.add("NonZero", hit), perm=(1, 0))  # (n, 1)
        inner = matmul(
            graph,
            f"{name}.experts.{expert}.up",
            graph.add("GatherND", tokens, rows),
            module.experts_up[expert],
            None,
        )
        inner = activation(graph, "gelu", inner)
        found = matmul(
            graph, f"{name}.experts.{expert}.down", inner, module.experts_down[expert], None
        )
        share = graph.add("GatherND", weights, rows)  # (n, 1)
        found = graph.add("Mul", graph.widen(found), share)
        total = graph.add("ScatterND", total, rows, found, reduction="add")
    with graph.in_float32():
        total = graph.add("Add", total, graph.weight(f"{name}.bias", module.bias))
    return graph.add("Reshape", graph.narrow(total), graph.add("Shape", x))
