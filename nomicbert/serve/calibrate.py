"""How many tokens a batch should have on a CPU: measured when the server starts.

A larger batch delays the requests that come while it is computed. From some size on it is no faster
per token either. The budget is the smallest size whose rate is within `NEAR` of the best.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

SIZES = (64, 128, 256, 512, 1024, 2048, 4096)
NEAR = 0.97
# Each size is measured this often, and the best time counts: others had the machine meanwhile.
TIMES = 3
# No larger size is tried once a batch takes this many seconds.
LONGEST = 1.0


def measure_budget(
    encode: Callable[[Sequence[Sequence[int]]], object], ids: Sequence[int]
) -> tuple[int, float]:
    """Find the tokens per batch.

    Args:
        encode: computes a batch of texts.
        ids: token ids of one text.

    Returns: the budget, and its rate in tokens per second.
    """
    rates: dict[int, float] = {}
    with torch.inference_mode():
        for size in SIZES:
            texts = [ids] * max(1, size // len(ids))
            seconds = min(_seconds(partial(encode, texts)) for _ in range(TIMES))
            rates[size] = len(texts) * len(ids) / seconds
            if seconds > LONGEST:
                break
    return choose(rates)


def choose(rates: dict[int, float]) -> tuple[int, float]:
    """The smallest size whose rate is near the best one: (size, rate)."""
    best = max(rates.values())
    return next((size, rate) for size, rate in sorted(rates.items()) if rate >= NEAR * best)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
