"""Rotary angles in the graph, and the rotation of queries and keys.

    angle = position * theta^(-2j / d);  (a, b) -> (a cos - b sin, b cos + a sin)
    theta' = theta * (alpha L / M - (alpha - 1))^(d / (d - 2)),  L = max(tokens of the text, M)

With dynamic NTK scaling each row of a batch gets the theta of its own length, as in
`modeling.rope`. Angles are float32 in every precision: float16 has no room for positions.
Pairs are half-split here; `row_order` angle an interleaved checkpoint's into such.
Source: Su et al. 2021, arXiv:2104.09864, eq. 34; dynamic NTK as in `modeling.rope`.
"""

import numpy as np
import torch
from torch import Tensor

from nomicbert.config import EncoderConfig
from nomicbert.export.graph import Graph


def angles(graph: Graph, config: EncoderConfig, positions: str, mask: str) -> tuple[str, str]:
    """Cos and sin of every token's angles.

    Args:
        graph: to add nodes to.
        config: of the encoder.
        positions: (S,) int64.
        mask: (B, S) float32.

    Reangle: two values (B or 1, S, 1, d / 2) in the graph's precision.
    """
    width, factor = config.rotary_dim, config.rotary_scaling_factor
    exponents = torch.arange(0, width, 2).float() / width
    columns = graph.add(
        "Unsqueeze", graph.cast(positions, np.float32), graph.ints(0, 2, 3)
    )  # (1, S, 1, 1)
    if factor is None or width <= 2:
        frequencies = graph.floats((1.0 / config.rope_theta**exponents).tolist())
    else:
        # rounded where `modeling.rope` rounds: thousands of positions multiply a last bit
        trained = config.max_trained_positions
        length = graph.cast(graph.add("ReduceSum", mask, graph.ints(1), keepdims=1), np.float64)
        length = graph.add("Max", length, graph.double(trained))  # (B, 1)
        stretch = graph.add("Mul", length, graph.double(factor))
        stretch = graph.add("Div", stretch, graph.double(trained))
        stretch = graph.add("Sub", stretch, graph.double(factor - 1))
        stretch = graph.add("Pow", stretch, graph.double(width / (width - 2)))
        theta = graph.cast(graph.add("Mul", stretch, graph.double(config.rope_theta)), np.float32)
        powers = graph.add("Pow", theta, graph.floats(exponents.tolist()))  # (B, d / 2)
        frequencies = graph.add("Div", graph.floats(1.0), powers)
        frequencies = graph.add("Unsqueeze", frequencies, graph.ints(1, 2))
    angle = graph.add("Mul", columns, frequencies)
    return graph.narrow(graph.add("Cos", angle)), graph.narrow(graph.add("Sin", angle))


def rotated(graph: Graph, x: str, config: EncoderConfig, cos: str, sin: str) -> str:
    """Rotate (B, S, heads, head size) by the angles; dimensions beyond `rotary_dim` stay."""
    half, rest = config.rotary_dim // 2, config.head_dim - config.rotary_dim
    sizes = (half, half, rest) if rest else (half, half)
    a, b, *others = graph.add("Split", x, graph.ints(*sizes), outputs=len(sizes), axis=-1)
    first = graph.add("Sub", graph.add("Mul", a, cos), graph.add("Mul", b, sin))
    second = graph.add("Add", graph.add("Mul", b, cos), graph.add("Mul", a, sin))
    return graph.add("Concat", first, second, *others, axis=-1)


def row_order(config: EncoderConfig) -> Tensor:
    """Order of a query's or key's dimensions in which its pairs are half-split: (H,) int64.

    Applied to queries and keys alike, it leaves their products as they are.
    """
    order = torch.arange(config.head_dim)
    if config.rotary_interleaved:
        turning = order[: config.rotary_dim]
        order = torch.cat([turning[0::2], turning[1::2], order[config.rotary_dim :]])
    heads = torch.arange(config.num_attention_heads)[:, None] * config.head_dim
    return (heads + order).flatten()
