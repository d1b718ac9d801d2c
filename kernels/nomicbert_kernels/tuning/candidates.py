"""The settings to try: a small grid, without those that cannot fit the device.

Tiles are those used by published GEMM and attention kernels. Three pipeline depths are tried: the
deepest that fits a multiprocessor, the deepest with which two programs fit, and two stages. While
one of two programs is in its epilogue, the other one can use the tensor cores. A cap on registers
is tried only where it may let more programs fit. A constant that the kernel's shipped row lacks is
left out, and constants that the grid does not name keep their shipped values.
`occupancy` has the arithmetic.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from nomicbert_kernels.launch import Row, Settings
from nomicbert_kernels.launch.limits import REGISTERS
from nomicbert_kernels.tensors import GROUP
from nomicbert_kernels.tuning.occupancy import (
    BARRIER,
    LEAST_OTHERS,
    Device,
    Shape,
    cap_of,
    depths_of,
)
from nomicbert_kernels.tuning.problems import Problem

# Maximum accumulator elements per thread, by bytes per element: half of its registers, or a quarter
# in fp32, where every multiply-add is an instruction of its own.
SUMS = {1: 128, 2: 128, 4: 64}
# (BLOCK_M, BLOCK_N, BLOCK_K for elements of 2 bytes, warps) for many rows, and for few. Few rows
# read the weight once, so narrow tiles, which occupy more multiprocessors, are faster.
WIDE = (
    (128, 256, 64, 8),
    (128, 128, 64, 8),
    (128, 128, 64, 4),
    (128, 128, 32, 8),
    (128, 64, 64, 8),
    (128, 64, 64, 4),
    (64, 256, 64, 8),
    (64, 128, 64, 4),
    (64, 64, 64, 4),
)
NARROW = (
    (16, 64, 128, 4),
    (16, 128, 64, 4),
    (32, 32, 128, 4),
    (32, 64, 128, 4),
    (32, 64, 64, 4),
    (32, 128, 64, 4),
    (64, 32, 64, 4),
    (64, 32, 128, 4),
    (64, 64, 128, 4),
    (64, 64, 64, 4),
    (64, 128, 64, 4),
)
FEW_ROWS = 64
# Few rows are bound by the latency of memory: a deeper pipeline keeps more bytes in flight.
STAGES = (2, 3, 4, 5)
STAGES_FEW = (2, 3, 4, 5, 6)
# The same for attention: (BLOCK_M, BLOCK_N, warps).
ATTENTION = {
    "attention_short": (
        (16, 16, 4),
        (32, 32, 4),
        (32, 64, 4),
        (64, 32, 4),
        (64, 64, 4),
        (64, 64, 8),
    ),
    "attention_long": (
        (64, 32, 8),
        (64, 64, 4),
        (128, 32, 4),
        (128, 32, 8),
        (128, 64, 4),
        (128, 64, 8),
        (128, 128, 8),
    ),
    "attention_rows": ((16, 16, 4), (16, 32, 4), (16, 64, 2), (16, 64, 4), (16, 128, 4)),
}
ATTENTION_STAGES = (1, 2, 3, 4)
# Kernels with a vendor GEMM alternative; attention and experts have none, nor has e4m3.
WITH_LIBRARY = ("qkv_rotary", "swiglu", "gelu", "linear")
# Kernels whose result in e4m3 has one scale per row and tile, so that a tile is a group.
ROUNDING = ("swiglu", "gelu")


# Constants, options, and programs per multiprocessor.
Form = tuple[dict[str, Any], dict[str, int], int]


def products(problem: Problem, template: Settings, device: Device, size: int) -> Iterator[Form]:
    """Yield the forms of a GEMM that fit."""
    weights = 2 if problem.kernel == "swiglu" else 1
    # an expert gets only a part of the rows, so every limited count uses the narrow tiles
    limit = FEW_ROWS if problem.kernel != "experts" else math.inf
    few = problem.up_to is not None and problem.up_to <= limit
    # results in e4m3 are half as wide as those in 16 bits
    out = 1 if size == 1 and problem.kernel in ROUNDING else max(size, 2)
    for m, n, k, warps in NARROW if few else WIDE:
        shape = Shape(m, n, block_of(k, size), warps)
        sums = m * n * weights // shape.threads
        if sums > SUMS[size]:
            continue
        # with scales, and in fp32, a thread holds more than its accumulators
        others = LEAST_OTHERS if size == 2 else 2 * LEAST_OTHERS
        roomy = sums + others <= REGISTERS // (2 * shape.threads)
        ways = device.descriptors(template)
        for descriptors in ways:
            step = (m + weights * n) * shape.k * size
            # a descriptor also stores the result from shared memory
            beside, barrier = (m * n * out, BARRIER) if descriptors else (0, 0)
            memory = {s: s * (step + barrier) + beside for s in (STAGES_FEW if few else STAGES)}
            blocks = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": shape.k, "DESCRIPTORS": descriptors}
            if few:
                # every program has one tile, so that none is persistent
                for s in [s for s in memory if device.holds(memory[s])][:-3:-1]:
                    options = {"num_warps": warps, "num_stages": s}
                    yield {**blocks, "FLATTEN": False}, options, 1
                continue
            ways_to_run = [False, True] if "FLATTEN" in template.constants else [False]
            for flat in ways_to_run:
                # the next tile is loaded meanwhile, so the epilogue cannot reuse the pipeline
                more = scratch_of(problem.kernel, shape) if flat else 0
                used = {s: bytes_ + more for s, bytes_ in memory.items()}
                depths = depths_of(used, device, roomy)
                for s in depths if descriptors == ways[0] else depths[:1]:
                    options = {"num_warps": warps, "num_stages": s}
                    pair = roomy and device.holds(used[s], 2)
                    if pair and (cap := cap_of(shape, sums, used[s], device, size)):
                        options["maxnreg"] = cap
                    if not flat or pair or s == depths[0]:
                        yield {**blocks, "FLATTEN": flat}, options, 2 if flat and pair else 1


def scratch_of(kernel: str, shape: Shape) -> int:
    """Bytes that a persistent kernel's epilogue needs, as seen in compiled kernels for sm_90."""
    # linear reads the residual through shared memory; qkv_rotary moves a head's pairs together
    return {"linear": 2 * shape.m * shape.n, "qkv_rotary": 128 * shape.m}.get(kernel, 0)


def block_of(k: int, size: int) -> int:
    """BLOCK_K for elements of `size` bytes, from that for 2 bytes."""
    # fp32 runs without tensor cores: deep blocks gain nothing there and are unrolled
    return {1: min(2 * k, GROUP), 2: k, 4: k // 4}[size]


def attention(problem: Problem, template: Settings, device: Device, size: int) -> Iterator[Form]:
    """Yield the forms of attention that fit: `stages` of keys and values for a tile of queries."""
    head = problem.exactly["head_dim"]
    for m, n, warps in ATTENTION[problem.kernel]:
        shape = Shape(m, n, 0, warps)
        sums = m * (n + head) // shape.threads
        if sums > SUMS[size]:
            continue
        memory = {s: (m + 2 * s * n) * head * size + BARRIER * s for s in ATTENTION_STAGES}
        depths = depths_of(memory, device, pairs=True, shipped=template.options.get("num_stages"))
        ways = device.descriptors(template)
        for descriptors in ways:
            blocks = {"BLOCK_M": m, "BLOCK_N": n, "DESCRIPTORS": descriptors}
            for s in depths if descriptors == ways[0] else depths[:1]:
                options = {"num_warps": warps, "num_stages": s}
                yield blocks, options, 1
                if cap := cap_of(shape, sums, memory[s], device, size):
                    yield blocks, {**options, "maxnreg": cap}, 1


def settings_for(kernel: str, sizes: Mapping[str, int], shipped: Sequence[Row]) -> Settings:
    """Look up the shipped settings of a kernel for these sizes.

    Raises: LookupError: no row fits.
    """
    for row in shipped:
        if row.kernel == kernel and row.fits(sizes):
            return row.settings
    raise LookupError(f"the shipped table has no row for {kernel} with {sizes}")


def template_of(problem: Problem, shipped: Sequence[Row]) -> Settings:
    """Look up the shipped settings for a problem.

    Raises: LookupError: no row fits.
    """
    return settings_for(problem.kernel, problem.sizes, shipped)


def least_long_tile(problem: Problem, shipped: Sequence[Row]) -> int:
    """Smallest tile tried for long texts; tiles for short texts are smaller.

    `tiling.settings_of` uses the short settings for every tile up to their size. This boundary lets
    either of the two rows be replaced without the other.
    """
    short, long = (
        settings_for(f"attention_{kind}", problem.sizes, shipped)["BLOCK_M"]
        for kind in ("short", "long")
    )
    return int(max(long, short + 1))


def allowed(problem: Problem, tile: Mapping[str, int], shipped: Sequence[Row], size: int) -> bool:
    """Whether the launcher would use a candidate unchanged."""
    if problem.kernel == "attention_short":
        return tile["BLOCK_M"] < least_long_tile(problem, shipped)
    if problem.kernel == "attention_long":
        return tile["BLOCK_M"] >= least_long_tile(problem, shipped)
    if size == 1 and problem.kernel in ROUNDING:
        return tile["BLOCK_N"] == GROUP
    if problem.kernel == "qkv_rotary":
        return tile["BLOCK_N"] % problem.exactly["head_dim"] == 0
    return True


def candidates(
    problem: Problem, shipped: Sequence[Row], arch: str, size: int, quick: bool = False
) -> list[Settings]:
    """List the settings to try, without the shipped ones.

    Args:
        problem: the problem.
        shipped: rows of the shipped table for elements of this size.
        arch: architecture of the device.
        size: bytes per element.
        quick: try each tile once: as much like the shipped row as possible.

    Raises: LookupError: the shipped table has no row for it.
    """
    template = template_of(problem, shipped)
    device = Device(arch)
    grid = attention if problem.kernel in ATTENTION else products
    found: list[Settings] = []
    for constants, options, programs in grid(problem, template, device, size):
        if not allowed(problem, constants, shipped, size):
            continue
        own = {name: value for name, value in constants.items() if name in template.constants}
        settings = Settings({**template.constants, **own}, options, programs=programs)
        if settings != template and settings not in found:
            found.append(settings)
    if quick:
        found = one_each(found, template)
    if problem.kernel in WITH_LIBRARY and size > 1 and not template.library:
        found.insert(0, replace(template, library=True, programs=1))
    return found


def one_each(found: Sequence[Settings], template: Settings) -> list[Settings]:
    """The first candidate of each tile, of those most like the template."""

    def differences(settings: Settings) -> int:
        """Number of switches that differ."""
        switches = ("DESCRIPTORS", "FLATTEN")
        constants = (s.constants for s in (settings, template))
        mine, its = ([known.get(name) for name in switches] for known in constants)
        capped = "maxnreg" in settings.options
        return sum(map(bool.__ne__, map(bool, mine), map(bool, its))) + settings.programs + capped

    first: dict[tuple[Any, ...], Settings] = {}
    for settings in sorted(found, key=differences):
        blocks = (value for name, value in settings.constants.items() if name.startswith("BLOCK"))
        first.setdefault((*blocks, settings.options["num_warps"]), settings)
    return list(first.values())
