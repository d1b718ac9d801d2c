"""Linear layers and LayerNorm as nodes."""

from torch import Tensor, nn

from nomicbert.export.graph import Graph


def matmul(graph: Graph, name: str, x: str, weight: Tensor, bias: Tensor | None) -> str:
    """x Wᵀ + b: (..., K) -> (..., N), for a weight (N, K)."""
    y = graph.add("MatMul", x, graph.weight(f"{name}.weight", weight.T))
    return y if bias is None else graph.add("Add", y, graph.weight(f"{name}.bias", bias))


def linear(graph: Graph, name: str, layer: nn.Linear, x: str) -> str:
    """Apply a linear layer."""
    return matmul(graph, name, x, layer.weight, layer.bias)


def layer_norm(graph: Graph, name: str, norm: nn.LayerNorm, x: str) -> str:
    """Apply a LayerNorm with weight and bias to the last dimension."""
    weight, bias = graph.weight(f"{name}.weight", norm.weight), graph.weight(f"{name}.bias", norm.bias)
    return graph.add("LayerNormalization", x, weight, bias, axis=-1, epsilon=float(norm.eps))
