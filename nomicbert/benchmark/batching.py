"""Batches for peers that pad: the candidate ways to cut a case, and the search for the fastest.

Every peer gets its texts sorted by length. The batch size is searched for each peer and case,
because it affects speed as much as the choice of the peer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nomicbert.benchmark.workloads import Case

# By device type: candidates for texts per batch and for padded tokens per batch; and a limit of
# padded tokens for batches of more than one text.
COUNTS = {
    "cpu": (1, 4, 8, 16, 32, 64),
    "cuda": (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
}
BUDGETS = {"cpu": (1024, 4096), "cuda": (1024, 4096, 16384, 65536)}
MOST_PADDED = {"cpu": 16384, "cuda": 131072}
# The search ends at a way that is this much slower than the best: batches only get larger.
HOPELESS = 1.25


@dataclass(frozen=True)
class Batching:
    """A way to cut a case.

    Attributes:
        name: in reports, such as "32" or "4096 tokens".
        parts: indices of the texts of each batch, longest texts first.
        count: limit of texts per batch; 0 if the limit is in tokens.
    """

    name: str
    parts: tuple[tuple[int, ...], ...]
    count: int = 0


def by_count(lengths: Sequence[int], count: int) -> Batching:
    """Batches of `count` texts, sorted by length."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    parts = tuple(tuple(order[i : i + count]) for i in range(0, len(order), count))
    return Batching(str(count), parts, count)


def by_tokens(lengths: Sequence[int], budget: int) -> Batching:
    """Batches of at most `budget` padded tokens, sorted by length."""
    parts: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if parts and lengths[parts[-1][0]] * (len(parts[-1]) + 1) <= budget:
            parts[-1].append(index)
        else:
            parts.append([index])
    return Batching(f"{budget} tokens", tuple(map(tuple, parts)))


def ways(case: Case, device: str) -> list[Batching]:
    """All distinct candidates, from small batches to large.

    Args:
        case: the texts.
        device: device type, "cpu" or "cuda".
    """
    lengths = case.lengths
    if case.is_latency:
        return [by_count(lengths, 1)]
    tried = [by_count(lengths, count) for count in COUNTS[device]]
    tried += [by_tokens(lengths, budget) for budget in BUDGETS[device]]
    most = MOST_PADDED[device]
    distinct = {way.parts: way for way in reversed(tried) if _fits(way, lengths, most)}
    return sorted(distinct.values(), key=lambda way: max(map(len, way.parts)))


def fastest(ways: Sequence[Batching], seconds: Callable[[Batching], float]) -> Batching:
    """The fastest way.

    Args:
        ways: from small batches to large.
        seconds: runs one pass over the case and returns its duration.
    """
    best, least = ways[0], float("inf")
    for way in ways:
        # the first pass may compile, plan or allocate for these shapes
        found = min(seconds(way), seconds(way))
        if found < least:
            best, least = way, found
        elif found > HOPELESS * least:
            break
    return best


def padded(ids: Sequence[Sequence[int]], pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mask of a batch, each (texts, longest) int64, padded on the right."""
    rows = np.full((len(ids), max(map(len, ids))), pad, dtype=np.int64)
    mask = np.zeros_like(rows)
    for i, text in enumerate(ids):
        rows[i, : len(text)] = text
        mask[i, : len(text)] = 1
    return rows, mask


def _fits(way: Batching, lengths: Sequence[int], most: int) -> bool:
    return all(len(part) == 1 or len(part) * lengths[part[0]] <= most for part in way.parts)
