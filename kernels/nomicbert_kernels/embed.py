"""The first hidden states: LayerNorm(word[id] + token_type[type] + position[position]).

Source: Devlin et al. 2018, arXiv:1810.04805, figure 2; rotary models leave the position term out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from nomicbert_kernels import checks
from nomicbert_kernels.layer_norm import normalise
from nomicbert_kernels.tensors import EmbeddingTables, accumulator


def check(
    input_ids: Tensor | None,
    token_type_ids: Tensor | None,
    position_ids: Tensor | None,
    tables: EmbeddingTables,
    inputs_embeds: Tensor | None,
) -> None:
    """Refuse arguments that do not fit the tables."""
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("embed needs exactly one of input_ids and inputs_embeds")
    hidden = tables.word.shape[1]
    if inputs_embeds is not None:
        checks.is_matrix("inputs_embeds", inputs_embeds)
        checks.is_like(
            "inputs_embeds", inputs_embeds, (inputs_embeds.shape[0], hidden), tables.word
        )
    total = (inputs_embeds if input_ids is None else input_ids).shape[:1]  # type: ignore[union-attr]
    if tables.position is not None and position_ids is None:
        raise ValueError("a model with learned positions needs position_ids")
    for name, ids, table in (
        ("input_ids", input_ids, tables.word),
        ("token_type_ids", token_type_ids, tables.token_type),
        ("position_ids", position_ids, tables.position),
    ):
        if ids is None or table is None:
            continue
        checks.is_like(name, ids, total, table)
        if checks.readable(ids) and ids.numel():  # on a GPU the gather itself asserts
            low, high = int(ids.min()), int(ids.max())
            if low < 0 or high >= table.shape[0]:
                bad = low if low < 0 else high
                raise ValueError(
                    f"{name} contains {bad}, but the table has {table.shape[0]} rows "
                    f"(0 to {table.shape[0] - 1})"
                )


def embed(
    input_ids: Tensor | None,
    token_type_ids: Tensor | None,
    position_ids: Tensor | None,
    tables: EmbeddingTables,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    inputs_embeds: Tensor | None = None,
) -> Tensor:
    """Gather, add and normalise.

    >>> import torch
    >>> from nomicbert_kernels import EmbeddingTables, select_ops
    >>> ops = select_ops("cpu", torch.float32)
    >>> tables = EmbeddingTables(word=torch.tensor([[0.0, 2.0], [4.0, 0.0]]))
    >>> ids = torch.tensor([1, 0])
    >>> ops.embed(ids, None, None, tables, torch.ones(2), torch.zeros(2), 1e-12)
    tensor([[ 1., -1.],
            [-1.,  1.]])

    Args:
        input_ids: (T,) int, or None when `inputs_embeds` replaces the word embeddings.
        token_type_ids: (T,) int; None means type 0 for every token.
        position_ids: (T,) int, required if `tables.position` is given.
        tables: the three tables, fp32, fp16 or bf16.
        weight: (H,) of the LayerNorm; its dtype is that of the result.
        bias: (H,) of the LayerNorm.
        eps: added to the variance.
        inputs_embeds: (T, H) or None.

    Returns: (T, H), dtype of `weight`; sums and statistics in fp32.
    Raises: ValueError: an id outside its table, shape or device mismatch.
    """
    check(input_ids, token_type_ids, position_ids, tables, inputs_embeds)
    acc = accumulator(weight)
    z = inputs_embeds if input_ids is None else F.embedding(input_ids, tables.word)
    assert z is not None  # guaranteed by check()
    z = z.to(acc)
    if tables.token_type is not None:
        row = (
            torch.zeros_like(z[:, 0], dtype=torch.int64)
            if token_type_ids is None
            else token_type_ids
        )
        z = z + F.embedding(row, tables.token_type).to(acc)
    if tables.position is not None:
        assert position_ids is not None  # guaranteed by check()
        z = z + F.embedding(position_ids, tables.position).to(acc)
    return normalise(z, weight, bias, eps).to(weight.dtype)
