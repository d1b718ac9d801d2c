"""How a peer that pads cuts a case into batches, and which way suits it best on that case.

Every peer gets its texts sorted by length; how many go into a batch is searched for each peer and
case, since it matters as much as the peer itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nomicbert.benchmark.workloads import Case

# By type of device: texts of a batch, its padded tokens, and those that it has at most unless it is
# a text alone.
COUNTS = {
    "cpu": (1, 4, 8, 16, 32, 64),
    "cuda": (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
}
BUDGETS = {"cpu": (1024, 4096), "cuda": (1024, 4096, 16384, 65536)}
MOST_PADDED = {"cpu": 16384, "cuda": 131072}
# A way this much slower than the best so far ends the search: batches only grow from there.
HOPELESS = 1.25


@dataclass(frozen=True)
class Batching:
    """A way to cut a case.

    Attributes:
        name: as it is reported, such as "32" or "4096 tokens".
        parts: indices of the texts of each batch, longest texts first.
        count: texts of a batch at most; 0 where tokens decide.
    """

    name: str
    parts: tuple[tuple[int, ...], ...]
    count: int = 0


def by_count(lengths: Sequence[int], count: int) -> Batching:
    """So many texts a batch, sorted by length."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    parts = tuple(tuple(order[i : i + count]) for i in range(0, len(order), count))
    return Batching(str(count), parts, count)


def by_tokens(lengths: Sequence[int], budget: int) -> Batching:
    """So many padded tokens a batch at most, sorted by length."""
    parts: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if parts and lengths[parts[-1][0]] * (len(parts[-1]) + 1) <= budget:
            parts[-1].append(index)
        else:
            parts.append([index])
    return Batching(f"{budget} tokens", tuple(map(tuple, parts)))


def ways(case: Case, device: str) -> list[Batching]:
    """All ways that are tried, from small batches to large; no two cut the case alike.

    Args:
        case: what is cut.
        device: its type: "cpu" or "cuda".
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
    """The way that takes least time.

    Args:
        ways: from small batches to large.
        seconds: of one pass over the case in this way.
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
