"""A bucket: one recorded CUDA graph, its input buffer and its output vectors.

All inputs that differ between two batches of a bucket lie in one buffer, which takes a single copy
to the device. The batch is padded to the bucket's fixed numbers of tokens, texts and tiles: with
filler texts whose vectors are ignored, with empty texts and with idle tiles. A text gets
bit-identical vectors from the same kernels in any batch of that number of tokens.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nomicbert.modeling.packing import PackedBatch, end_to_end, positions
from nomicbert.vectors.embedding_model import EmbeddingModel
from nomicbert.vectors.pooling import Finish
from nomicbert_kernels import Plan, Rope
from nomicbert_kernels.tensors import Tiles
from nomicbert_kernels.tiling import most_tiles, tile_table

# A bucket has room for one text per this number of tokens.
TOKENS_A_TEXT = 8

# Size of the cache of single-text frames: a few KB each for a query, 250 KB in the largest bucket.
FRAMES = 128

Work = Callable[[], Tensor]
# Records work. Returns its output, whose address is fixed, and a function that recomputes it.
Record = Callable[[Work], tuple[Tensor, Callable[[], None]]]


class Key(NamedTuple):
    """The properties that a recorded graph is specific to.

    Attributes:
        tokens: of every batch, fillers included.
        tile: limit of tokens per tile, which depends on the longest text.
        least: minimum tokens of a filler text: 1 if pooling reads its first or last token, else 0.
        finish: steps after pooling.
    """

    tokens: int
    tile: int
    least: int
    finish: Finish

    @property
    def texts(self) -> int:
        """Texts of every batch: room for real ones, plus enough fillers for all tokens."""
        return self.tokens // TOKENS_A_TEXT + -(-self.tokens // self.tile)

    def holds(self, tokens: int, texts: int) -> bool:
        """Whether this many tokens and texts fit, with enough tokens left for the fillers."""
        left = self.tokens - tokens
        return texts <= self.tokens // TOKENS_A_TEXT and left >= self.least * (self.texts - texts)


class Bucket:
    """The input buffer and the output of one graph."""

    def __init__(self, model: EmbeddingModel, key: Key, record: Record) -> None:
        """Record with a batch that consists of fillers only."""
        encoder = model.encoder
        self.key, self.device = key, encoder.device
        self.parts = parts_of(key)
        size = self.parts[-1].stop
        self.buffer = torch.empty(size, dtype=torch.int32, device=self.device)
        self._copy(layout(key, []))
        ids, places, text, offsets, table = (self.buffer[part] for part in self.parts)
        rope = None
        if encoder.rotary is not None:
            cos, sin = encoder.rotary.plain(key.tokens, self.device)
            rope = Rope(cos, sin, places, encoder.rotary.dim, encoder.rotary.interleaved)
        batch = PackedBatch((), (), offsets, places, ids)
        plan = Plan(tiles=Tiles(table.view(-1, 4), text, key.tile))
        ctx = encoder.planned(batch, plan, rope)
        self.result, self.replay = record(lambda: model.vectors(ctx, key.finish))
        # references that keep the tensors the graph reads alive, even if the model changes
        self.read = (ctx, model.prepared_weights())

    def _copy(self, host: np.ndarray) -> None:
        tensor = torch.from_numpy(host)
        if self.buffer.is_cuda:
            tensor = tensor.pin_memory()
        self.buffer.copy_(tensor, non_blocking=True)

    def __call__(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """The texts' vectors, (len(texts), dim) fp32."""
        self._copy(layout(self.key, texts))
        self.replay()
        return self.result[: len(texts)].clone()


def parts_of(key: Key) -> list[slice]:
    """Slices of a buffer: ids, positions, text index of each token, offsets, tiles."""
    tokens = key.tokens
    sizes = (tokens, tokens, tokens, key.texts + 1, 4 * most_tiles(tokens, key.tile))
    # each part is aligned to 16 bytes
    starts = np.cumsum([0, *(-(-size // 4) * 4 for size in sizes)]).tolist()
    return [slice(start, start + size) for start, size in zip(starts, sizes, strict=False)]


def filled_up(key: Key, lengths: Sequence[int]) -> np.ndarray:
    """The given lengths, followed by those of the fillers."""
    others, most = key.texts - len(lengths), key.tile - key.least
    left = key.tokens - sum(lengths) - key.least * others
    # each filler has key.least tokens; the rest goes to as few fillers as possible, a tile each
    more = np.clip(left - most * np.arange(others), 0, most)
    return np.concatenate((np.asarray(lengths, dtype=np.int64), key.least + more))


def layout(key: Key, texts: Sequence[Sequence[int]]) -> np.ndarray:
    """A bucket's buffer for some texts, the longest first: int32."""
    lengths = tuple(map(len, texts))
    host = frame_of_one(key, lengths).copy() if len(texts) == 1 else frame(key, lengths)
    ids = end_to_end(texts)
    host[: len(ids)] = ids
    return host


def frame(key: Key, lengths: Sequence[int]) -> np.ndarray:
    """The whole buffer except the token ids, which are left zero."""
    every, parts = filled_up(key, lengths), parts_of(key)
    host = np.zeros(parts[-1].stop, dtype=np.int32)
    _, places, text, offsets, tiles = (host[part] for part in parts)
    places[:] = positions(every)
    text[:] = np.repeat(np.arange(len(every)), every)
    offsets[1:] = np.cumsum(every)
    table = tile_table(every, key.tile)
    tiles[: table.size] = table.ravel()
    return host


# cached for single queries: latency matters there, and few lengths occur
frame_of_one = functools.lru_cache(maxsize=FRAMES)(frame)
