"""How many tokens a batch should have on a CPU: measured when the server starts.

A larger batch delays the requests that come while it is computed. From some size on it is no faster
per token either. The budget is the smallest size whose rate is within `NEAR` of the best.
"""

import time
from collections.abc import Callable, Sequence

import torch

SIZES = (64, 128, 256, 512, 1024, 2048, 4096)
NEAR = 0.98
# Larger sizes are left out once a batch takes this many seconds.
LONGEST = 1.0
# All sizes are measured in turn until this many seconds have passed, and at least twice. The best
# time of each counts: others may have had the machine meanwhile.
SECONDS = 3.0
ROUNDS = range(2, 12)

# Computes a batch of texts.
Encode = Callable[[Sequence[Sequence[int]]], object]


def measure_budget(encode: Encode, ids: Sequence[int]) -> tuple[int, float]:
    """Find the tokens per batch.

    Args:
        encode: computes a batch of texts.
        ids: token ids of one text; the others are prefixes of it.

    Returns: the budget, and its rate in tokens per second.
    """
    best: dict[int, float] = {}
    began = time.perf_counter()
    with torch.inference_mode():
        for size in SIZES:
            best[size] = _seconds(encode, ids, size)
            if best[size] > LONGEST:
                break
        for done in range(1, ROUNDS.stop):
            if done >= ROUNDS.start and time.perf_counter() - began > SECONDS:
                break
            for size in best:
                best[size] = min(best[size], _seconds(encode, ids, size))
    return choose({size: size / seconds for size, seconds in best.items()})


def choose(rates: dict[int, float]) -> tuple[int, float]:
    """The smallest size whose rate is near the best one: (size, rate)."""
    best = max(rates.values())
    return next((size, rate) for size, rate in sorted(rates.items()) if rate >= NEAR * best)


def _seconds(encode: Encode, ids: Sequence[int], size: int) -> float:
    """Seconds for a batch of `size` tokens, computed from one of about as many."""
    texts = _batch(ids, size)
    began = time.perf_counter()
    encode(texts)
    return (time.perf_counter() - began) * size / sum(map(len, texts))


def _batch(ids: Sequence[int], size: int) -> list[Sequence[int]]:
    """Texts of `size` tokens or a few more, of several lengths, as those of requests are.

    With one length attention would be one matmul for all of them, and small batches look too good.
    """
    texts: list[Sequence[int]] = []
    tokens = 0
    while tokens < size:
        length = max(1, len(ids) * (8 - len(texts) % 5) // 8)
        texts.append(ids[: min(length, size - tokens) or 1])
        tokens += len(texts[-1])
    return texts
