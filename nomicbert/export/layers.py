"""Linear layers, the word table and LayerNorm as nodes, in the precision of the graph.

    q8:  W = scale_n Q_n,  x = scale_t (q_t + 1/2) + min_t,
         x Wᵀ = scale_t scale_n (q_t Q_nᵀ) + (min_t + scale_t / 2) (sum of W_n)

Weights have a scale per output channel n; inputs a scale and a minimum per token t, found while
running. So padding and batch mates change no vector, and an outlier takes bits from one token only.
Inputs are truncated to the middle of their step, which takes one pass over them less than rounding.
"""

import numpy as np
import torch
from torch import Tensor, nn

from nomicbert.export.graph import Graph

# Largest step of a weight. 7 bits: CPUs without VNNI add pairs of products in 16 bits, which 8 bits
# of both would overflow. Words are looked up, not multiplied, and use all 8.
WEIGHT_STEPS, WORD_STEPS = 63, 127
# The largest input of a token ends in the last of 256 steps, 255.
INPUT_STEPS = 255.99
TINY = 1e-30
# Rows that are quantised at a time: tables are large, and float64 doubles them.
BLOCK = 256
# The name of the word table.
WORDS = "word"


def matmul(graph: Graph, name: str, x: str, weight: Tensor, bias: Tensor | None) -> str:
    """Compute x Wᵀ + b: (..., K) -> (..., N), for a weight (N, K)."""
    if graph.quantizes:
        return _int8_matmul(graph, name, x, weight, bias)
    y = graph.add("MatMul", x, graph.weight(f"{name}.weight", weight.T))
    return y if bias is None else graph.add("Add", y, graph.weight(f"{name}.bias", bias))


def _int8_matmul(graph: Graph, name: str, x: str, weight: Tensor, bias: Tensor | None) -> str:
    """The same, as this module's equation has it."""
    steps, weight_scale = quantized(weight, WEIGHT_STEPS)
    minimum = graph.add("ReduceMin", x, axes=(-1,), keepdims=1)
    above = graph.add("Sub", x, minimum)
    input_scale = graph.add("ReduceMax", above, axes=(-1,), keepdims=1)
    input_scale = graph.add("Mul", input_scale, graph.number(1 / INPUT_STEPS))
    input_scale = graph.add("Max", input_scale, graph.number(TINY))
    q = graph.cast(graph.add("Div", above, input_scale), np.uint8)
    y = graph.add("MatMulInteger", q, graph.store(f"{name}.weight", steps.T))
    y = graph.add(
        "Mul", graph.cast(y, np.float32), graph.weight(f"{name}.scale", weight_scale[:, 0])
    )
    y = graph.add("Mul", y, input_scale)
    # two outer products as a MatMul: onnxruntime is slower at (T, 1) * (N,)
    sums = steps.sum(1) * weight_scale[:, 0]
    pair = graph.weight(f"{name}.sum", torch.stack([sums, sums / 2]))
    y = graph.add(
        "Add", y, graph.add("MatMul", graph.add("Concat", minimum, input_scale, axis=-1), pair)
    )
    return y if bias is None else graph.add("Add", y, graph.weight(f"{name}.bias", bias))


def quantized(rows: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Each row as whole steps up to `most` of its own scale: (N, K) int8 and (N, 1) fp64."""
    values = rows.detach().cpu().float()
    low, high = values.aminmax(dim=1, keepdim=True)
    scale = (torch.maximum(high, -low).double() / most).clamp_min(TINY)
    # made before what is freed again, so that memory is not left in pieces
    steps = torch.empty(values.shape, dtype=torch.int8)
    parts = (torch.split(whole, BLOCK) for whole in (steps, values, scale))
    for part, x, s in zip(*parts, strict=True):
        part.copy_((x.double() / s).round())
    return steps, scale


def word_rows(graph: Graph, table: Tensor) -> str:
    """The rows of the input's words: (B, S, H) in the graph's precision."""
    if not graph.quantizes:
        return graph.add("Gather", graph.weight(WORDS, table), "input_ids")
    steps, scale = quantized(table, WORD_STEPS)
    rows = graph.add("Gather", graph.store(WORDS, steps), "input_ids")
    scales = graph.add("Gather", graph.weight(f"{WORDS}.scale", scale), "input_ids")
    return graph.add("Mul", graph.cast(rows, np.float32), scales)


def linear(graph: Graph, name: str, layer: nn.Linear, x: str) -> str:
    """Apply a linear layer."""
    return matmul(graph, name, x, layer.weight, layer.bias)


def layer_norm(graph: Graph, name: str, norm: nn.LayerNorm, x: str) -> str:
    """Apply a LayerNorm with weight and bias to the last dimension."""
    weight, bias = (
        graph.weight(f"{name}.weight", norm.weight),
        graph.weight(f"{name}.bias", norm.bias),
    )
    return graph.add("LayerNormalization", x, weight, bias, axis=-1, epsilon=float(norm.eps))
