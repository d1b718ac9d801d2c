"""The encoder as nodes: token ids -> last hidden state, padded.

The same equations as `modeling`, written a second time: texts are padded here, and `check` holds
the result to the model. Queries are scaled by their weights, so no node scales the logits.
Source: Devlin et al. 2018, arXiv:1810.04805; Nussbaum et al. 2024, arXiv:2402.01613.
"""

import numpy as np
import torch
from torch import Tensor

from nomicbert.config import EncoderConfig
from nomicbert.export.graph import Graph
from nomicbert.export.layers import layer_norm, linear, matmul, word_rows
from nomicbert.export.mlp import mlp
from nomicbert.export.rotary import angles, rotated, row_order
from nomicbert.modeling.attention import SelfAttention
from nomicbert.modeling.layer import Layer
from nomicbert.modeling.model import NomicBert

# Added to the logits of padding: exp gives 0. float16 ends at 65504.
MASKED = {"fp32": -1e30, "fp16": -1e4, "q8": -1e30}


def hidden_states(graph: Graph, model: NomicBert, mask: str) -> str:
    """Add the nodes of an encoder.

    Args:
        graph: with the inputs input_ids, attention_mask and token_type_ids, (B, S) int64.
        model: plain, with float parameters of any dtype.
        mask: attention_mask as (B, S) float32.

    Returns: the last hidden state, (B, S, H) in the graph's precision.
    """
    config = model.config
    length = graph.add("Gather", graph.add("Shape", "input_ids"), graph.scalar(1))
    positions = graph.add("Range", graph.scalar(0), length, graph.scalar(1))
    x = _embedded(graph, model, positions)
    cos_sin = None if model.rotary is None else angles(graph, config, positions, mask)
    dropped = graph.add("Sub", graph.floats(1.0), mask)
    bias = graph.add("Mul", dropped, graph.floats(MASKED[graph.precision]))
    bias = graph.narrow(graph.add("Unsqueeze", bias, graph.ints(1, 2)))  # (B, 1, 1, S)
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, Layer)
        name = f"layers.{index}"
        attended = _attention(graph, f"{name}.attention", layer.attention, config, x, bias, cos_sin)
        x = graph.add("Add", attended, x)
        x = layer_norm(graph, f"{name}.attention_norm", layer.attention_norm, x)
        x = graph.add("Add", mlp(graph, f"{name}.mlp", layer.mlp, x), x)
        x = layer_norm(graph, f"{name}.mlp_norm", layer.mlp_norm, x)
    return x


def _embedded(graph: Graph, model: NomicBert, positions: str) -> str:
    tables = model.embeddings
    x = word_rows(graph, tables.word.weight)
    types = graph.weight("token_type", tables.token_type.weight)
    x = graph.add("Add", x, graph.add("Gather", types, "token_type_ids"))
    if tables.position is not None:
        learned = graph.weight("position", tables.position.weight)
        x = graph.add("Add", x, graph.add("Gather", learned, positions))
    return layer_norm(graph, "norm", tables.norm, x)


def _attention(
    graph: Graph,
    name: str,
    module: SelfAttention,
    config: EncoderConfig,
    x: str,
    bias: str,
    cos_sin: tuple[str, str] | None,
) -> str:
    """Self-attention with its output projection: (B, S, H) -> (B, S, H)."""
    heads, size, width = config.num_attention_heads, config.head_dim, config.hidden_size
    qkv = matmul(graph, f"{name}.qkv", x, *_scaled(module, config))
    shape = graph.ints(0, 0, heads, size)
    if cos_sin is None:
        parts = graph.add("Split", qkv, graph.ints(width, width, width), outputs=3, axis=-1)
        q, k, v = (graph.add("Reshape", part, shape) for part in parts)
    else:
        # queries and keys are rotated as one tensor
        both, v = graph.add("Split", qkv, graph.ints(2 * width, width), outputs=2, axis=-1)
        both = graph.add("Reshape", both, graph.ints(0, 0, 2 * heads, size))
        both = rotated(graph, both, config, *cos_sin)
        q, k = graph.add("Split", both, graph.ints(heads, heads), outputs=2, axis=2)
        v = graph.add("Reshape", v, shape)
    q, v = (graph.add("Transpose", part, perm=(0, 2, 1, 3)) for part in (q, v))
    k = graph.add("Transpose", k, perm=(0, 2, 3, 1))
    logits = graph.add("Add", graph.add("MatMul", q, k), bias)
    found = graph.add("MatMul", graph.add("Softmax", logits, axis=-1), v)
    found = graph.add("Transpose", found, perm=(0, 2, 1, 3))
    found = graph.add("Reshape", found, graph.ints(0, 0, width))
    return linear(graph, f"{name}.out", module.out, found)


def _scaled(module: SelfAttention, config: EncoderConfig) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of Wqkv, with the scale of the logits in the queries', pairs half-split."""
    width = config.hidden_size
    order = torch.arange(3 * width)
    if config.rotary_dim:
        rows = row_order(config)
        order[:width], order[width : 2 * width] = rows, width + rows
    scale = torch.ones(3 * width, dtype=torch.float64)
    scale[:width] = module.scale

    def prepared(values: Tensor) -> Tensor:
        wide = values.detach().cpu().double()[order]
        return (wide * scale.view(-1, *[1] * (wide.dim() - 1))).float()

    bias = module.qkv.bias
    return prepared(module.qkv.weight), None if bias is None else prepared(bias)


def mask_of(graph: Graph) -> str:
    """attention_mask as (B, S) float32."""
    return graph.cast("attention_mask", np.float32)
