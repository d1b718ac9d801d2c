"""Gather, add and normalise with torch's own kernels, in the dtype of the LayerNorm.

Tables may be stored in a narrower dtype: only the gathered rows are cast, never a whole table.
"""

import torch.nn.functional as F
from torch import Tensor

from nomicbert_kernels import embed as reference
from nomicbert_kernels.tensors import EmbeddingTables


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
    """See `nomicbert_kernels.embed`."""
    reference.check(input_ids, token_type_ids, position_ids, tables, inputs_embeds)
    z = inputs_embeds if input_ids is None else F.embedding(input_ids, tables.word)
    assert z is not None  # guaranteed by check()
    z = z.to(weight.dtype)  # so that the sums below are in this dtype
    if tables.token_type is not None:
        table = tables.token_type
        z = z + (table[0] if token_type_ids is None else F.embedding(token_type_ids, table))
    if tables.position is not None:
        assert position_ids is not None  # guaranteed by check()
        z = z + F.embedding(position_ids, tables.position)
    return F.layer_norm(z, z.shape[1:], weight, bias, eps)
