"""Interleaved timing, and metrics: FLOPs, spread, memory, cosine, norms, matmul rate."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from nomicbert.benchmark.workloads import Case
from nomicbert.config import EncoderConfig
from nomicbert_kernels import compute_dtype
from nomicbert_kernels.linear_torch import onednn_packs

Work = Callable[[], object]
Clock = Callable[[], float]

# For the matmul rate: limit of rows, and seconds per measurement.
MATRIX_ROWS = 1024
MATRIX_SECONDS = 0.1
# The minimum cosine of a text to the reference that a dtype's rounding can explain.
LEAST_COSINE = {"float32": 0.9999, "float16": 0.99, "bfloat16": 0.99, "int8": 0.9, "fp8": 0.9}
# The maximum deviation from 1 of the ratio of a vector's norm to the reference's.
MOST_STRETCH = {"float32": 0.01, "float16": 0.05, "bfloat16": 0.05, "int8": 0.05, "fp8": 0.05}


def clock() -> float:
    """Current time in seconds, after waiting for the GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def in_turns(
    works: Mapping[str, Work], rounds: int, clock: Clock = clock, calls: int = 1
) -> dict[str, list[float]]:
    """Time works interleaved: A B C, B C A, C A B.

    A disturbance that lasts affects all works, and medians drop short ones. Each round starts with
    a different work, so that no work always follows the same one. With several calls per round,
    each work first makes one untimed call, so that caches and spinning threads left by the previous
    work do not count.

    Args:
        works: by name.
        rounds: number of rounds over all works.
        clock: returns seconds.
        calls: timed calls per work and round, each timed separately.

    Returns: name -> seconds of each timed call.
    """
    found: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    for number in range(rounds):
        first = number % max(1, len(names))
        for name in names[first:] + names[:first]:
            work = works[name]
            if calls > 1:
                work()
            for _ in range(calls):
                started = clock()
                work()
                found[name].append(clock() - started)
    return found


def spread(seconds: Sequence[float]) -> float:
    """Interquartile range relative to the median; 0 for a single value."""
    if len(seconds) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return (high - low) / middle


def flops(config: EncoderConfig, case: Case) -> float:
    """Floating-point operations of a case by the model's definition.

    Per token: 2 for each weight of the linear layers it passes, and in each layer 4 L H for the
    attention scores and their product with V (text of L tokens, hidden size H). Padding, softmax,
    norms, embeddings, pooling and Dense do not count. Work that an implementation may skip, such as
    the last layer for tokens that pooling does not read, counts in full.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    gated = config.hidden_act == "swiglu"
    mlp = (3 if gated else 2) * hidden * inner
    weights = config.num_hidden_layers * (4 * hidden * hidden + mlp)
    if config.num_experts:
        # every second layer has a router and experts, and a token passes moe_top_k of them
        mixed = config.num_hidden_layers // 2
        weights += mixed * ((config.moe_top_k - 1) * mlp + hidden * config.num_experts)
    squares = sum(length * length for length in case.lengths)
    return 2.0 * weights * case.tokens + 4.0 * config.num_hidden_layers * hidden * squares


def matrix_work(config: EncoderConfig, dtype: str, device: torch.device, tokens: int) -> Work:
    """A GEMM of the model's MLP shape in a dtype, with oneDNN-packed weights if available.

    `matrix_flops` gives its number of operations.
    """
    rows = matrix_rows(tokens)
    hidden, inner = config.hidden_size, config.intermediate_size
    if dtype == "int8":
        left = torch.randint(-127, 127, (rows, hidden), dtype=torch.int8, device=device)
        right = torch.randint(-127, 127, (hidden, inner), dtype=torch.int8, device=device)
        return lambda: torch._int_mm(left, right)
    if dtype == "fp8":
        narrow = torch.float8_e4m3fn
        x, weight = (torch.randn(n, hidden, device=device).to(narrow) for n in (rows, inner))
        one = torch.ones((), device=device)
        return lambda: torch._scaled_mm(x, weight.T, one, one, out_dtype=torch.bfloat16)
    # the fastest dtype of arithmetic that the machine has for this storage dtype
    kind = compute_dtype(device, getattr(torch, dtype))
    x = torch.randn(rows, hidden, device=device).to(kind)
    weight = torch.randn(inner, hidden, device=device).to(kind)
    if device.type == "cpu" and onednn_packs(kind):
        ops = torch.ops.mkldnn
        packed = ops._reorder_linear_weight(weight)
        return lambda: ops._linear_pointwise(x, packed, None, "none", [], "")
    return lambda: F.linear(x, weight)


def matrix_rows(tokens: int) -> int:
    """Rows of `matrix_work`: the number of tokens, clipped to 16 .. MATRIX_ROWS."""
    return max(16, min(MATRIX_ROWS, tokens))


def matrix_flops(config: EncoderConfig, tokens: int) -> float:
    """Operations of one `matrix_work`."""
    return 2.0 * matrix_rows(tokens) * config.hidden_size * config.intermediate_size


def repeated(work: Work, seconds: float, clock: Clock = clock) -> tuple[Work, int]:
    """Repeat a work so that one call takes about `seconds`; also returns the number of repeats."""
    work()
    started = clock()
    work()
    count = max(1, round(seconds / max(clock() - started, 1e-9)))

    def block() -> None:
        for _ in range(count):
            work()

    return block, count


def gpu_bytes(work: Work) -> int:
    """Peak GPU memory of a work in bytes, in addition to what was allocated before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def cosines(found: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """(mean, least) cosine between the rows of two matrices (texts, dim); NaN if shapes differ."""
    if found.shape != truth.shape:
        return math.nan, math.nan
    a, b = found.astype(np.float64), truth.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        each = (a * b).sum(1) / norms
    return float(each.mean()), float(each.min())


def norm_ratio(found: np.ndarray, truth: np.ndarray) -> float:
    """Ratio of row norms of two matrices (texts, dim): the one furthest from 1 over all rows.

    NaN if the shapes differ or a row is zero.
    """
    if found.shape != truth.shape:
        return math.nan
    a, b = (np.linalg.norm(rows.astype(np.float64), axis=1) for rows in (found, truth))
    if not (a > 0).all() or not (b > 0).all():
        return math.nan
    return math.exp(max(np.log(a / b), key=abs))


def is_wrong(least: float, ratio: float, dtype: str) -> bool:
    """Whether the cosine or the ratio of norms is out of bounds (or NaN) for a dtype.

    All peers apply the checkpoint's own modules, including L2 if it has one, and nothing else. So
    norms must agree as well as directions: a peer that omits L2 or a scale is wrong.
    """
    return not (least >= LEAST_COSINE[dtype] and abs(ratio - 1) <= MOST_STRETCH[dtype])
