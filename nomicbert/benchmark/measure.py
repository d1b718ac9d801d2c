"""Time in turns, and what follows from it: rates, spread, cosine, share of the matrix products."""

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

# Rows of the matrix products that a rate is measured with, at most, and seconds of a measurement.
MATRIX_ROWS = 1024
MATRIX_SECONDS = 0.1
# The least cosine to the reference, of any text, that a dtype's rounding explains.
LEAST_COSINE = {"float32": 0.9999, "float16": 0.99, "bfloat16": 0.99, "int8": 0.9, "fp8": 0.9}
# How far from 1 the ratio of a vector's norm to that of the reference may be.
MOST_STRETCH = {"float32": 0.01, "float16": 0.05, "bfloat16": 0.05, "int8": 0.05, "fp8": 0.05}


def clock() -> float:
    """Seconds, when all that was sent to a GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def in_turns(
    works: Mapping[str, Work], rounds: int, clock: Clock = clock, calls: int = 1
) -> dict[str, list[float]]:
    """Time works A B C, B C A, C A B.

    What disturbs the machine for a while disturbs all of them, and medians drop the rest. Each
    round begins with another work, so that what follows on whom changes. In a round a work is
    called once uncounted where it is called several times, so that what the one before it left in
    the caches, or spinning, is not its own.

    Args:
        works: by name.
        rounds: of all works, in their order.
        clock: seconds.
        calls: of a work in a round that are timed, each by itself.

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
    """Between the quartiles, as a share of the median; 0 for a single value."""
    if len(seconds) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return (high - low) / middle


def flops(config: EncoderConfig, case: Case) -> float:
    """Floating-point operations that the model's definition asks for on a case.

    Two for each weight of the linear layers that a token passes, and 4 L H for each token of a text
    of L tokens in each layer (H hidden numbers): its scores and its mixture. Padding, softmax,
    norms, embeddings, pooling and Dense count nothing. What an implementation may leave out, such
    as the last layer of tokens that pooling does not read, counts as if it were done.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    gated = config.hidden_act == "swiglu"
    mlp = (3 if gated else 2) * hidden * inner
    weights = config.num_hidden_layers * (4 * hidden * hidden + mlp)
    if config.num_experts:
        # every second layer has experts, of which a token passes some, and a router
        mixed = config.num_hidden_layers // 2
        weights += mixed * ((config.moe_top_k - 1) * mlp + hidden * config.num_experts)
    squares = sum(length * length for length in case.lengths)
    return 2.0 * weights * case.tokens + 4.0 * config.num_hidden_layers * hidden * squares


def matrix_work(config: EncoderConfig, dtype: str, device: torch.device, tokens: int) -> Work:
    """A matrix product of the model's MLP shape in a dtype, with weights packed where they can be.

    Its rate is what `matrix_rate` makes of its time.
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
    # the best that the machine does with numbers of this dtype
    kind = compute_dtype(device, getattr(torch, dtype))
    x = torch.randn(rows, hidden, device=device).to(kind)
    weight = torch.randn(inner, hidden, device=device).to(kind)
    if device.type == "cpu" and onednn_packs(kind):
        ops = torch.ops.mkldnn
        packed = ops._reorder_linear_weight(weight)
        return lambda: ops._linear_pointwise(x, packed, None, "none", [], "")
    return lambda: F.linear(x, weight)


def matrix_rows(tokens: int) -> int:
    """Rows of the product: as many as tokens, within reason."""
    return max(16, min(MATRIX_ROWS, tokens))


def matrix_flops(config: EncoderConfig, tokens: int) -> float:
    """Operations of one `matrix_work`."""
    return 2.0 * matrix_rows(tokens) * config.hidden_size * config.intermediate_size


def repeated(work: Work, seconds: float, clock: Clock = clock) -> tuple[Work, int]:
    """A work that is so often repeated that it lasts so long, and how often that is."""
    work()
    started = clock()
    work()
    count = max(1, round(seconds / max(clock() - started, 1e-9)))

    def block() -> None:
        for _ in range(count):
            work()

    return block, count


def gpu_bytes(work: Work) -> int:
    """Bytes of the GPU's memory that a work needs at most, beside what is held before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def cosines(found: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """(mean, least) cosine of each row of (texts, dim) to the same row of the other; or NaN.

    Other shapes are no match: NaN.
    """
    if found.shape != truth.shape:
        return math.nan, math.nan
    a, b = found.astype(np.float64), truth.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        each = (a * b).sum(1) / norms
    return float(each.mean()), float(each.min())


def norm_ratio(found: np.ndarray, truth: np.ndarray) -> float:
    """Norm of a row of (texts, dim) over that of the same row of the other, or NaN.

    Of all rows the ratio that is furthest from 1. Other shapes and rows of zeros are no match: NaN.
    """
    if found.shape != truth.shape:
        return math.nan
    a, b = (np.linalg.norm(rows.astype(np.float64), axis=1) for rows in (found, truth))
    if not (a > 0).all() or not (b > 0).all():
        return math.nan
    return math.exp(max(np.log(a / b), key=abs))


def is_wrong(least: float, ratio: float, dtype: str) -> bool:
    """Whether a cosine, or a ratio of norms, or NaN, says that something else was computed.

    All peers are given the checkpoint's own modules, L2 with them where it has one, and nothing
    after it. So lengths must agree as directions do: one that leaves out L2, or a scale, is wrong.
    """
    return not (least >= LEAST_COSINE[dtype] and abs(ratio - 1) <= MOST_STRETCH[dtype])
