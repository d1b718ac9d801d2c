"""What is wrong with a row of a launch table, found when the table is read.

Only shared memory cannot be checked here: how much a kernel needs is known once it is compiled. A
launch that needs too much is reported by `launch.explain`.

Source of the limits: CUDA C++ Programming Guide, table "Technical specifications per compute
capability"; AMD CDNA3 ISA guide, size of a workgroup.
"""

from collections.abc import Iterator, Mapping
from typing import Any

# Threads of a warp and of a program, registers of a thread and of a multiprocessor, and bytes of
# shared memory that CUDA takes per program.
WARP = 32
THREADS = 1024
THREAD_REGISTERS = 255
REGISTERS = 65_536
RESERVED = 1024

NUMBERS = (
    "num_warps",
    "num_stages",
    "maxnreg",
    "programs",
    "GROUP",
    "BLOCK_M",
    "BLOCK_N",
    "BLOCK_K",
)
POWERS = ("num_warps", "BLOCK_M", "BLOCK_N", "BLOCK_K")
FLAGS = ("library", "DESCRIPTORS", "FLATTEN", "STACKED", "TANH")
# Source: `input_precision` of triton.language.dot.
PRECISIONS = ("ieee", "tf32", "tf32x3", "bf16x3", "bf16x6")
CONDITIONS = ("up_to", "exactly")
SIZES = ("rows", "n", "k", "head_dim")
# What `nomicbert tune` stores in addition.
MEASURED = ("us", "shipped_us", "triton")
KEYS = {"kernel", "bytes", "PRECISION", *NUMBERS, *FLAGS, *CONDITIONS, *MEASURED}


def listed(names: set[str]) -> str:
    """Names in a fixed order."""
    return ", ".join(sorted(names))


def ill_formed(row: Mapping[str, Any]) -> Iterator[str]:
    """One message for each key or value that no row has."""
    if unknown := {*row} - KEYS:
        yield f"unknown keys {listed(unknown)}: the known ones are {listed(KEYS)}"
    if row["bytes"] not in (1, 2, 4):
        yield f"bytes is {row['bytes']!r}, not 1, 2 or 4"
    for name in NUMBERS:
        value = row.get(name, 1)
        if type(value) is not int or value < 1:
            yield f"{name} is {value!r}, not a positive whole number"
        elif name in POWERS and value & (value - 1):
            yield f"{name} is {value}, not a power of two"
    for name in FLAGS:
        if not isinstance(row.get(name, False), bool):
            yield f"{name} is {row[name]!r}, not true or false"
    if row.get("PRECISION", "ieee") not in PRECISIONS:
        yield f"PRECISION is {row['PRECISION']!r}, not one of {', '.join(PRECISIONS)}"
    for name in CONDITIONS:
        if unknown := {*row.get(name, {})} - {*SIZES}:
            known = listed({*SIZES})
            yield f"{name} has unknown sizes {listed(unknown)}: the known ones are {known}"


def too_large(row: Mapping[str, Any], arch: str) -> Iterator[str]:
    """One message for each limit of the architecture that a well-formed row exceeds."""
    amd = arch.startswith("gfx")
    lanes = 64 if arch.startswith("gfx9") else WARP
    threads = row.get("num_warps", 1) * lanes
    if threads > THREADS:
        yield (
            f"num_warps {row['num_warps']} is {threads:,} threads, more than the {THREADS:,} that "
            f"{arch} has for a program"
        )
    if amd:
        if "maxnreg" in row:
            yield f"maxnreg exists on NVIDIA's architectures only, not on {arch}"
        return
    registers = row.get("maxnreg", 1)
    if registers > THREAD_REGISTERS:
        yield (
            f"maxnreg is {registers}, more than the {THREAD_REGISTERS} registers that {arch} has "
            "for a thread"
        )
    elif threads * registers > REGISTERS:
        yield (
            f"maxnreg {registers} with num_warps {row.get('num_warps', 1)} is "
            f"{threads * registers:,} registers, more than the {REGISTERS:,} that {arch} has"
        )


def faults(row: Mapping[str, Any], arch: str) -> list[str]:
    """Why a row cannot be used on an architecture; empty if nothing is known against it.

    Args:
        row: as stored in the table.
        arch: name of the table.
    """
    return [*ill_formed(row)] or [*too_large(row, arch)]
