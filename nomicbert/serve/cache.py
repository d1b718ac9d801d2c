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

from torch import Tensor

from nomicbert.serve.jobs import Group
from nomicbert.vectors.pooling import Finish

# Memory of an entry besides ids and values: key, tuple, tensor and their places in the dict.
ENTRY_BYTES = 900


class Key(NamedTuple):
    """What decides a row: the model and its settings, the steps after pooling, the token ids."""

    group: Group
    finish: Finish | None
    ids: bytes


def key_of(group: Group, finish: Finish | None, ids: list[int]) -> Key:
    """The key of a text."""
    return Key(group, finish, array.array("i", ids).tobytes())


class VectorCache:
    """The rows that were used last. Thread-safe."""

    def __init__(self, limit: int) -> None:
        """`limit`: bytes; 0 keeps nothing."""
        self.limit = limit
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._rows: OrderedDict[Key, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key) -> Tensor | None:
        """The row of this key, or None."""
        with self._lock:
            row = self._rows.get(key)
            if row is None:
                self.misses += 1
                return None
            self.hits += 1
            self._rows.move_to_end(key)
            return row

    def put(self, key: Key, row: Tensor) -> None:
        """Keep a row (dim,) fp32 on the CPU; the rows used longest ago make room."""
        cost = _cost(key, row)
        if cost > self.limit:
            return
        kept = row.clone()  # a view would keep its whole batch
        with self._lock:
            if key in self._rows:
                return
            self._rows[key] = kept
            self.bytes += cost
            while self.bytes > self.limit:
                old, dropped = self._rows.popitem(last=False)
                self.bytes -= _cost(old, dropped)


def _cost(key: Key, row: Tensor) -> int:
    return ENTRY_BYTES + len(key.ids) + row.numel() * row.element_size()
