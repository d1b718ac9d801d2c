"""Pooling and the modules after it as nodes: hidden states -> one vector per text, in float32.

Source: as in `vectors.pooling` and `vectors.steps`.
"""

from collections.abc import Iterable

import numpy as np
from torch import nn

from nomicbert.errors import ExportError
from nomicbert.export.activations import activation
from nomicbert.export.graph import Graph
from nomicbert.export.layers import layer_norm, linear
from nomicbert.vectors.pooling import Pooling
from nomicbert.vectors.steps import Dense, Dropout, LayerNorm, Normalize
from nomicbert_kernels import PoolMode
from nomicbert_kernels.pool import NORMALIZE_EPS

# Of a masked token in the maximum over tokens.
LOWEST = -3.0e38


def check_pooling(pooling: Pooling) -> None:
    """Refuse what a graph of token ids cannot compute.

    Raises: ExportError.
    """
    if not pooling.include_prompt:
        raise ExportError(
            "the pooling leaves out the tokens of the prompt (include_prompt is false): a graph "
            "of token ids cannot know how many those are"
        )


def text_vectors(graph: Graph, pooling: Pooling, hidden: str, mask: str) -> str:
    """Pool, and apply the modules of the checkpoint, the L2 at the end included.

    Args:
        graph: to add nodes to.
        pooling: of the checkpoint.
        hidden: last hidden state (B, S, H) in the graph's precision.
        mask: attention_mask as (B, S) float32.

    Returns: (B, dim) float32; zeros for a text without tokens.
    """
    states = graph.widen(hidden)
    with graph.in_float32():
        parts = [_pooled(graph, mode, states, mask) for mode in pooling.modes]
        x = parts[0] if len(parts) == 1 else graph.add("Concat", *parts, axis=-1)
        x = _stepped(graph, pooling.steps, x)
        return or_zeros(graph, _unit(graph, x) if pooling.normalize else x, mask)


def or_zeros(graph: Graph, x: str, mask: str) -> str:
    """Rows (B, N) float32, but zeros for texts without tokens, as the model gives them."""
    kept = graph.cast(graph.add("ReduceMax", mask, axes=(1,), keepdims=1), np.bool_)  # (B, 1)
    return graph.add("Where", kept, x, graph.floats(0.0))


def _pooled(graph: Graph, mode: PoolMode, states: str, mask: str) -> str:
    """(B, S, H) -> (B, H)."""
    column = graph.add("Unsqueeze", mask, graph.ints(2))  # (B, S, 1)
    if mode == "max":
        missing = graph.add("Sub", graph.number(1.0), column)
        lowered = graph.add("Add", states, graph.add("Mul", missing, graph.number(LOWEST)))
        return graph.add("ReduceMax", lowered, axes=(1,), keepdims=0)
    if mode == "cls":
        return first_token(graph, states, mask)
    if mode == "lasttoken":
        return _one_token(graph, states, mask, last=True)
    if mode == "weightedmean":
        column = graph.add("Mul", column, _ranks(graph, column))
    total = graph.add("ReduceSum", graph.add("Mul", states, column), graph.ints(1), keepdims=0)
    count = graph.add("ReduceSum", column, graph.ints(1), keepdims=0)  # (B, 1)
    count = graph.add("Sqrt", count) if mode == "mean_sqrt_len" else count
    return graph.add("Div", total, graph.add("Max", count, graph.number(1e-9)))


def first_token(graph: Graph, states: str, mask: str) -> str:
    """The hidden state of each text's first kept token: (B, S, H) -> (B, H)."""
    return _one_token(graph, states, mask, last=False)


def _one_token(graph: Graph, states: str, mask: str, last: bool) -> str:
    place = graph.add("ArgMax", mask, axis=1, keepdims=1, select_last_index=int(last))  # (B, 1)
    return graph.add("GatherND", states, place, batch_dims=1)


def _ranks(graph: Graph, column: str) -> str:
    """Each token's rank among the kept ones of its text, from 1: (B, S, 1)."""
    return graph.add("CumSum", column, graph.scalar(1))


def _stepped(graph: Graph, steps: Iterable[nn.Module], x: str) -> str:
    for index, step in enumerate(steps):
        name = f"steps.{index}"
        if isinstance(step, Dense):
            y = activation(graph, step.activation, linear(graph, f"{name}.linear", step.linear, x))
            if step.use_residual and step.residual is not None:
                x = linear(graph, f"{name}.residual", step.residual, x)
            x = graph.add("Add", y, x) if step.use_residual else y
        elif isinstance(step, LayerNorm):
            x = layer_norm(graph, f"{name}.norm", step.norm, x)
        elif isinstance(step, Normalize):
            x = _unit(graph, x)
        else:
            assert isinstance(step, Dropout)  # does nothing here
    return x


def _unit(graph: Graph, x: str) -> str:
    """Divide by the L2 norm."""
    norm = graph.add("ReduceL2", x, axes=(-1,), keepdims=1)
    return graph.add("Div", x, graph.add("Max", norm, graph.number(NORMALIZE_EPS)))
