"""One recorded graph: the buffer that a batch is laid out in, and the vectors that come of it.

What differs between two batches of a bucket lies in one buffer: it is copied to the device at once,
and filled up with texts of one repeated token, which nobody reads, so that the number of tokens and
of texts is always the bucket's; and with idle tiles. A text has the bits that the same kernels give
it in any other batch of as many tokens.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nomicbert.model import NomicBert
from nomicbert.packing import PackedBatch, end_to_end, positions
from nomicbert.pooling import Finish, Pooling
from nomicbert_kernels import Plan, Rope
from nomicbert_kernels.tensors import Tiles
from nomicbert_kernels.tiling import most_tiles, tile_table

# A bucket has room for one text for so many of its tokens.
TOKENS_A_TEXT = 8

Work = Callable[[], Tensor]
# Records work: its result, which stays where it is, and what makes it anew of changed inputs.
Record = Callable[[Work], tuple[Tensor, Callable[[], None]]]


class Key(NamedTuple):
    """What a graph serves.

    Attributes:
        tokens: of every batch.
        tile: tokens of a tile at most, which the longest text decides.
        finish: what becomes of the vectors.
    """

    tokens: int
    tile: int
    finish: Finish

    @property
    def texts(self) -> int:
        """Of every batch: those there is room for, and those that can fill up all tokens."""
        return self.tokens // TOKENS_A_TEXT + -(-self.tokens // self.tile)

    def holds(self, lengths: Sequence[int]) -> bool:
        """Whether texts of these lengths fit, and leave a token for each that fills up."""
        room = self.tokens // TOKENS_A_TEXT
        left = self.tokens - sum(lengths)
        return len(lengths) <= room and left >= self.texts - len(lengths)


class Bucket:
    """The buffer of one graph, and what is made of it."""

    def __init__(self, model: NomicBert, pooling: Pooling, key: Key, record: Record) -> None:
        """Record on a batch of filling alone."""
        self.key, self.device = key, model.device
        self.parts = parts_of(key)
        size = self.parts[-1].stop
        self.buffer = torch.empty(size, dtype=torch.int32, device=self.device)
        self._copy(layout(key, []))
        ids, places, text, offsets, table = (self.buffer[part] for part in self.parts)
        rope = None
        if model.rotary is not None:
            cos, sin = model.rotary.plain(key.tokens, self.device)
            rope = Rope(cos, sin, places, model.rotary.dim, model.rotary.interleaved)
        batch = PackedBatch((), (), offsets, places, ids)
        plan = Plan(tiles=Tiles(table.view(-1, 4), text, key.tile))
        ctx = model.planned(batch, plan, rope)
        self.result, self.replay = record(lambda: pooling.vectors(model, ctx, key.finish))
        # what the graph reads must stay where it is, whatever becomes of the model
        self.read = (ctx, model.prepared_weights(), pooling.prepared_weights())

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
    others = key.texts - len(lengths)
    left = key.tokens - sum(lengths) - others
    # one token each, and what is left over to as few as can take it in a tile each
    more = np.clip(left - (key.tile - 1) * np.arange(others), 0, key.tile - 1)
    return np.concatenate((np.asarray(lengths, dtype=np.int64), 1 + more))


def layout(key: Key, texts: Sequence[Sequence[int]]) -> np.ndarray:
    """A bucket's buffer for some texts, int32."""
    lengths = filled_up(key, list(map(len, texts)))
    parts = parts_of(key)
    host = np.zeros(parts[-1].stop, dtype=np.int32)
    ids, places, text, offsets, tiles = (host[part] for part in parts)
    given = end_to_end(texts)
    ids[: len(given)] = given
    places[:] = positions(lengths)
    text[:] = np.repeat(np.arange(len(lengths)), lengths)
    offsets[1:] = np.cumsum(lengths)
    table = tile_table(lengths, key.tile)
    tiles[: table.size] = table.ravel()
    return host
