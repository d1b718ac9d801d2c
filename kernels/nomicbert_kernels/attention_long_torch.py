"""Attention over long texts on a CPU in fp32: torch's fused kernel on copied keys and values.

In `qkv` a head's keys are 3 h d elements apart, which is 4 to 12 KB in the checkpoints. The kernel
reads all keys and values again for every 256 queries. It is faster on a copy in which the keys of a
head are adjacent, and its values too. Making the copy takes one pass over them. The likely reason
is that such distant keys share few sets of the L1 cache: the gain is largest at 12 KB, a multiple
of 4 KB, where they all have the same ones.

Speed compared with no copy, as ratios of CPU time in fp32 on an Intel Xeon with AVX-512:

| heads x size, tokens | 1 thread | 2 threads |
|---|---:|---:|
| 12 x 64, 2048 | 1.09 to 1.12 | 1.02 to 1.04 |
| 12 x 64, 8192 | 1.10 to 1.13 | 1.04 |
| 16 x 64, 2048 | 1.09 to 1.13 | 1.04 |
| 12 x 32, 2048 | 1.06 to 1.10 | 1.04 |

In bf16 with AMX the kernel packs keys and values itself, and a copy gains nothing.

Values and the order of sums are the same as without the copy. The path depends on a text's length
only, so a text keeps its bits in any batch.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

# Fewest tokens at which the copy was faster with all shapes above. At 1024 it was not with 12 x 32.
LONG = 1536
# Maximum bytes of a copy, except that one head of one text is never divided. With 64 MB the gain
# was smaller: glibc maps blocks above 32 MB anew each time, which costs page faults.
SCRATCH = 16 << 20


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
