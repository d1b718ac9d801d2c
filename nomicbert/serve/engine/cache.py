"""Vectors of earlier requests, in bounded memory.

Where in the flow: `engine.submit` looks here before a text is queued; compute threads add to it. A
text has the same bits in any batch (docs/bits.md), so a cached vector cannot be told from a
computed one. The key is the token ids, after prompt and truncation, so usage and warnings of a
request do not depend on the cache.
"""

import array
import threading
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nomicbert.serve.engine.jobs import Group
from nomicbert.vectors.pooling import Finish

# Memory of an entry besides ids and values: key, finish, objects, and their places in the dict;
# and what the allocator takes for ids and values. Measured with up to 25,000 entries of 64 to 1792
# values and 8 to 8000 ids: resident memory grows by 0.85 to 0.98 of this.
ENTRY_BYTES = 540
SLACK = 1.15


class Key(NamedTuple):
    """What decides a row: the model and its settings, the steps after pooling, the token ids.

    `split`: where the second text of a pair begins, see `Piece`.
    """

    group: Group
    finish: Finish | None
    ids: bytes
    split: int | None = None


def key_of(group: Group, finish: Finish | None, ids: list[int], split: int | None = None) -> Key:
    """The key of a text, or of a pair."""
    return Key(group, finish, array.array("i", ids).tobytes(), split)


class VectorCache:
    """The rows that were used last. Thread-safe."""

    def __init__(self, limit: int) -> None:
        """`limit`: bytes; 0 keeps nothing."""
        self.limit = limit
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        # as bytes: small tensors take twice the memory, and fragment it
        self._rows: OrderedDict[Key, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key) -> Tensor | None:
        """A copy of the row of this key, or None."""
        with self._lock:
            values = self._rows.get(key)
            if values is None:
                self.misses += 1
                return None
            self.hits += 1
            self._rows.move_to_end(key)
        return torch.from_numpy(np.frombuffer(values, np.float32).copy())

    def put(self, key: Key, row: Tensor) -> None:
        """Keep a row (dim,) fp32 on the CPU; the rows used longest ago make room."""
        values = row.numpy().tobytes()
        cost = _cost(key, values)
        if cost > self.limit:
            return
        with self._lock:
            if key in self._rows:
                return
            self._rows[key] = values
            self.bytes += cost
            while self.bytes > self.limit:
                self.bytes -= _cost(*self._rows.popitem(last=False))


def _cost(key: Key, values: bytes) -> int:
    return ENTRY_BYTES + int(SLACK * (len(key.ids) + len(values)))
