"""Attention over long texts on a CPU in fp32: torch's fused kernel on copied keys and values.

In `qkv` the keys of one head are 3 h d elements apart, 9 to 12 KB in the usual models: a page or
more, and close to a multiple of the distance at which addresses share a set of the L1 cache. The
kernel reads all keys and values again for each block of 64 or 256 queries. So it is faster on a
copy in which a head's keys lie next to each other, and so do its values. The copy costs one pass.

Measured on an Intel Xeon with AVX-512, 1 thread, fp32, heads x size: 1.08 to 1.12 times the speed
for 12 x 64 and 16 x 64 at 2048 tokens, 1.2 for 16 x 64 at 512. In bf16 the kernel packs keys and
values itself. There a copy gains nothing.

The values and the order of the sums are the same as without the copy. The path depends on a text's
length only, so a text keeps its bits in any batch.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

# Fewest tokens for which the copy was not slower with any shape of the checkpoints.
LONG = 1024
# Most bytes of copied keys and values. One head of one text may exceed it, from 128K tokens on.
SCRATCH = 64 << 20


def is_long(dtype: torch.dtype, length: int) -> bool:
    """Whether to compute texts of this length with `attend`."""
    return dtype == torch.float32 and length >= LONG


def parts(texts: int, heads: int, per_head: int) -> Iterator[tuple[slice, slice]]:
    """Divide a run into parts whose copies fit into SCRATCH.

    Args:
        texts: number of texts.
        heads: number of heads.
        per_head: bytes of the keys and values of one head of one text.

    Yields: texts and heads of each part: several whole texts, or some heads of one text. How many
        heads does not depend on the number of texts.
    """
    heads_at_once = min(heads, max(1, SCRATCH // per_head))
    texts_at_once = max(1, SCRATCH // (per_head * heads))
    for text in range(0, texts, texts_at_once):
        for head in range(0, heads, heads_at_once):
            yield slice(text, text + texts_at_once), slice(head, head + heads_at_once)


def attend(qkv: Tensor, out: Tensor, scale: float) -> None:
    """Attend within each text of a run, without gradients.

    Args:
        qkv: (texts, length, 3, h, d), d a multiple of 16 elements, aligned to 64 bytes.
        out: (texts, length, h, d or less) receives the result.
        scale: factor of the logits.
    """
    texts, length, _, heads, size = qkv.shape
    per_head = 2 * length * size * qkv.element_size()
    for some, group in parts(texts, heads, per_head):
        q, kv = qkv[some, :, 0, group].transpose(1, 2), qkv[some, :, 1:, group]
        k, v = kv.permute(2, 0, 3, 1, 4).contiguous()  # each (some texts, some heads, length, d)
        o = F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)
        out[some, :, group].copy_(o[..., : out.shape[3]])
