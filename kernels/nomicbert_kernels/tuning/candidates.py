"""The settings to try: a small grid, without those that cannot fit the device.

Tiles are those used by published GEMM and attention kernels. Of the pipeline depths, the two
deepest that fit into shared memory are tried. A constant that the kernel's shipped row lacks is
left out, and constants that the grid does not name keep their shipped values.

Source: the limits of shared memory are `launch.SHARED_MEMORY`'s.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from nomicbert_kernels import launch
from nomicbert_kernels.launch import Row, Settings
from nomicbert_kernels.tuning.problems import Problem

# Shared memory in bytes assumed for an architecture whose limit is unknown.
LEAST_SHARED = 49_152
# Maximum accumulator elements per thread, by bytes per element: half of its registers, or a quarter
# in fp32, where every multiply-add is an instruction of its own.
SUMS = {2: 128, 4: 64}
THREADS_OF_WARP = 32

# (BLOCK_M, BLOCK_N, BLOCK_K for elements of 2 bytes, warps) for many rows, and for few.
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
    (32, 64, 128, 4),
    (32, 64, 64, 4),
    (32, 128, 64, 4),
    (64, 32, 128, 4),
    (64, 64, 128, 4),
    (64, 64, 64, 4),
    (64, 128, 64, 4),
)
FEW_ROWS = 64
STAGES = (2, 3, 4, 5)
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
# Kernels with a vendor GEMM alternative; attention and experts have none.
WITH_LIBRARY = ("qkv_rotary", "swiglu", "gelu", "linear")


def has_descriptors(arch: str) -> bool:
    """Whether to try tensor descriptors: below sm_90 they are only a slow form of pointers."""
    return arch == launch.INTERPRETER or (arch.startswith("sm_") and int(arch[3:]) >= 90)


def flags(template: Settings, arch: str, quick: bool) -> list[dict[str, bool]]:
    """Every combination of the template's switches; only its own if quick."""
    if quick:
        return [{}]
    choices = {
        "DESCRIPTORS": (True, False) if has_descriptors(arch) else (False,),
        "FLATTEN": (True, False),
    }
    names = [name for name in choices if name in template.constants]
    combinations = itertools.product(*(choices[name] for name in names))
    return [dict(zip(names, values, strict=True)) for values in combinations]


def matrix_grid(problem: Problem, size: int, shared: int) -> Iterator[dict[str, int]]:
    """Yield tiles, warps and stages of a GEMM that fit, deepest pipeline first."""
    weights = 2 if problem.kernel == "swiglu" else 1
    # an expert gets only a part of the rows, so every limited count uses the narrow tiles
    limit = FEW_ROWS if problem.kernel != "experts" else math.inf
    few = problem.up_to is not None and problem.up_to <= limit
    for m, n, k, warps in NARROW if few else WIDE:
        if m * n * weights > SUMS[size] * warps * THREADS_OF_WARP:
            continue
        # fp32 runs without tensor cores: deep blocks gain nothing there and are unrolled
        k = k if size == 2 else k // 4
        depths = [s for s in STAGES if s * (m + weights * n) * k * size <= shared]
        for stages in depths[:-3:-1]:
            yield {
                "BLOCK_M": m,
                "BLOCK_N": n,
                "BLOCK_K": k,
                "num_warps": warps,
                "num_stages": stages,
            }


def attention_grid(problem: Problem, size: int, shared: int) -> Iterator[dict[str, int]]:
    """Yield tiles of attention that fit: one tile of queries and `stages` of keys and values."""
    head = problem.exactly["head_dim"]
    for m, n, warps in ATTENTION[problem.kernel]:
        if m * (n + head) > SUMS[size] * warps * THREADS_OF_WARP:
            continue
        depths = [s for s in ATTENTION_STAGES if (m + 2 * s * n) * head * size <= shared]
        for stages in depths[:-3:-1]:
            yield {"BLOCK_M": m, "BLOCK_N": n, "num_warps": warps, "num_stages": stages}


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


def allowed(problem: Problem, grid: Mapping[str, int], shipped: Sequence[Row]) -> bool:
    """Whether the launcher would use a candidate unchanged."""
    if problem.kernel == "attention_short":
        return grid["BLOCK_M"] < least_long_tile(problem, shipped)
    if problem.kernel == "attention_long":
        return grid["BLOCK_M"] >= least_long_tile(problem, shipped)
    return grid["BLOCK_N"] % problem.whole == 0


def candidates(
    problem: Problem, shipped: Sequence[Row], arch: str, size: int, quick: bool = False
) -> list[Settings]:
    """List the settings to try, without the shipped ones.

    Args:
        problem: the problem.
        shipped: rows of the shipped table for elements of this size.
        arch: architecture of the device.
        size: bytes per element.
        quick: try only the deepest pipeline of each tile, and the shipped row's switches.

    Raises: LookupError: the shipped table has no row for it.
    """
    template = template_of(problem, shipped)
    shared = launch.SHARED_MEMORY.get(arch, LEAST_SHARED)
    grid = attention_grid if problem.kernel in ATTENTION else matrix_grid
    found: list[Settings] = []
    if problem.kernel in WITH_LIBRARY:
        found.append(replace(template, library=True))
    seen: set[tuple[int, ...]] = set()
    for chosen in grid(problem, size, shared):
        tile = tuple(value for name, value in chosen.items() if name != "num_stages")
        if not allowed(problem, chosen, shipped) or (quick and tile in seen):
            continue
        seen.add(tile)
        options = {name: chosen.pop(name) for name in ("num_warps", "num_stages")}
        for switches in flags(template, arch, quick):
            constants = {**template.constants, **chosen, **switches}
            found.append(Settings(constants, options))
    return [settings for settings in found if settings != template]
