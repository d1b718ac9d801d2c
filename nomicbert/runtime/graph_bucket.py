"""One recorded graph: the buffer that a batch is laid out in, and the vectors that come of it.

What differs between two batches of a bucket lies in one buffer: it is copied to the device at once,
and filled up with texts of one repeated token, which nobody reads, with empty texts and with idle
tiles, so that there are always as many tokens, texts and tiles as the bucket has. A text has the
bits that the same kernels give it in any other batch of as many tokens.
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

# A bucket has room for one text for so many of its tokens.
TOKENS_A_TEXT = 8

# Frames of lone texts that are kept: a few KB each for a query, 250 for the largest bucket.
FRAMES = 128

Work = Callable[[], Tensor]
# Records work: its result, which stays where it is, and what makes it anew of changed inputs.
Record = Callable[[Work], tuple[Tensor, Callable[[], None]]]


class Key(NamedTuple):
    """What a graph serves.

    Attributes:
        tokens: of every batch.
        tile: tokens of a tile at most, which the longest text decides.
        least: tokens of a text that fills up: 1 where its first or last token is read, else 0.
        finish: what becomes of the vectors.
    """

    tokens: int
    tile: int
    least: int
    finish: Finish

    @property
    def texts(self) -> int:
        """Of every batch: those there is room for, and those that can fill up all tokens."""
        return self.tokens // TOKENS_A_TEXT + -(-self.tokens // self.tile)

    def holds(self, tokens: int, texts: int) -> bool:
        """Whether so many texts fit, and leave what those that fill up need."""
        left = self.tokens - tokens
        return texts <= self.tokens // TOKENS_A_TEXT and left >= self.least * (self.texts - texts)


class Bucket:
    """The buffer of one graph, and what is made of it."""

    def __init__(self, model: EmbeddingModel, key: Key, record: Record) -> None:
        """Record on a batch of filling alone."""
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
        # what the graph reads must stay where it is, whatever becomes of the model
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
    """Where in a buffer lie ids, positions, the text of each token, offsets, tiles."""
    tokens = key.tokens
    sizes = (tokens, tokens, tokens, key.texts + 1, 4 * most_tiles(tokens, key.tile))
    # each part begins at a multiple of 16 bytes
    starts = np.cumsum([0, *(-(-size // 4) * 4 for size in sizes)]).tolist()
    return [slice(start, start + size) for start, size in zip(starts, sizes, strict=False)]


def filled_up(key: Key, lengths: Sequence[int]) -> np.ndarray:
    """The lengths of all texts of a bucket's batch: these, and those that fill it up."""
    others, most = key.texts - len(lengths), key.tile - key.least
    left = key.tokens - sum(lengths) - key.least * others
    # what they need each, and what is left over to as few as can take it in a tile each
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
    """All of it that does not depend on the ids: these are zeros."""
    every, parts = filled_up(key, lengths), parts_of(key)
    host = np.zeros(parts[-1].stop, dtype=np.int32)
    _, places, text, offsets, tiles = (host[part] for part in parts)
    places[:] = positions(every)
    text[:] = np.repeat(np.arange(len(every)), every)
    offsets[1:] = np.cumsum(every)
    table = tile_table(every, key.tile)
    tiles[: table.size] = table.ravel()
    return host


# of a lone query, whose latency counts, and whose length is one of a few
frame_of_one = functools.lru_cache(maxsize=FRAMES)(frame)
