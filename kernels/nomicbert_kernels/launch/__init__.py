"""How each Triton kernel is launched on each architecture: data, read from the tables beside this.

A table is a JSON file named after its architecture: {"proven": true, "by": {...}, "rows": [...]}.
proven means that the kernels have passed their tests on such a device, by which run, and "auto"
takes them there; `make gpu-proven` writes it. A row serves
one kernel and one size of element; the first row that fits is taken, so narrow rows stand before
wide ones:

    {"kernel": "swiglu", "bytes": 2, "up_to": {"rows": 64}, "BLOCK_M": 64, ..., "num_warps": 4}

up_to and exactly compare the sizes that the caller names. Keys in capitals are constants of the
kernel, num_warps, num_stages and maxnreg options of its launch. "library": true says that the
library's matrix product, followed by a small kernel, is to be taken instead of the fused one.
What `nomicbert tune` has measured on this machine stands before the shipped rows.

Rows of a table that differ by the number of tokens sum up in another order, so a text's last bits
hang on the batch around it. Within `invariant` they do not.
"""

import contextlib
import functools
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)

TABLES = Path(__file__).parent
# For an architecture without a table: small tiles, which need 64 KiB of shared memory at most.
SAFE = "safe"
# Others of a family that has a table: the same units, as much shared memory or more.
RELATIVES = {"sm_87": "sm_86", "sm_103": "sm_100", "sm_121": "sm_120"}
# What runs the kernels on CPU tensors.
INTERPRETER = "interpreter"
# Bytes of shared memory that one program may use. Source: CUDA C++ Programming Guide, table
# "Technical specifications per compute capability"; AMD CDNA3 ISA guide, LDS per workgroup.
SHARED_MEMORY = {
    "sm_80": 166_912,
    "sm_86": 101_376,
    "sm_89": 101_376,
    "sm_90": 232_448,
    "sm_100": 232_448,
    "sm_120": 101_376,
    "gfx942": 65_536,
}
OPTIONS = ("num_warps", "num_stages", "maxnreg")
# For every launch: products and sums become fused multiply-adds, whatever triton's default is.
COMMON = {"enable_fp_fusion": True}
# Stands for every number of rows.
ANY_ROWS = 10**9

_invariant: ContextVar[bool] = ContextVar("invariant", default=False)


@dataclass(frozen=True)
class Settings:
    """How one kernel is launched.

    Attributes:
        constants: compile-time arguments of the kernel, by their names in capitals.
        options: num_warps, num_stages, and maxnreg where it is set.
        library: take the library's matrix product and a small kernel instead.
    """

    constants: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, int] = field(default_factory=dict)
    library: bool = False

    def __getitem__(self, name: str) -> Any:
        """One constant."""
        return self.constants[name]

    @property
    def keywords(self) -> dict[str, Any]:
        """All that the launch takes by name."""
        return {**self.constants, **self.options, **COMMON}


@dataclass(frozen=True)
class Row:
    """A row of a table: settings, and what they serve."""

    kernel: str
    bytes: int
    up_to: Mapping[str, int]
    exactly: Mapping[str, int]
    settings: Settings

    def fits(self, sizes: Mapping[str, int]) -> bool:
        """Whether the row serves these sizes."""
        return all(sizes[name] <= most for name, most in self.up_to.items()) and all(
            sizes[name] == wanted for name, wanted in self.exactly.items()
        )


@functools.cache
def architecture(device: torch.device) -> str:
    """The name of a device's table: "sm_90", "gfx942"; the interpreter's for a CPU."""
    if device.type != "cuda":
        return INTERPRETER
    if torch.version.hip:
        return str(torch.cuda.get_device_properties(device).gcnArchName).split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def tuned_folder() -> Path:
    """Where `nomicbert tune` keeps its tables: NOMICBERT_LAUNCH, else the user's cache folder."""
    given = os.environ.get("NOMICBERT_LAUNCH")
    if given:
        return Path(given)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "nomicbert" / "launch"


def read_row(row: Mapping[str, Any]) -> Row:
    """One row of a table as it is stored."""
    return Row(
        kernel=row["kernel"],
        bytes=row["bytes"],
        up_to=row.get("up_to", {}),
        exactly=row.get("exactly", {}),
        settings=Settings(
            constants={name: value for name, value in row.items() if name.isupper()},
            options={name: row[name] for name in OPTIONS if name in row},
            library=row.get("library", False),
        ),
    )


def read_table(path: Path) -> list[Row]:
    """The rows of a table, in its order; a ValueError names a file that holds none."""
    try:
        return [read_row(row) for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no launch table ({error!r}): delete it") from error


def shipped(arch: str) -> Path:
    """The table that comes with the package: its own, a relative's, or the safe one."""
    path = TABLES / f"{RELATIVES.get(arch, arch)}.json"
    return path if path.is_file() else TABLES / f"{SAFE}.json"


@functools.cache
def table(arch: str) -> dict[tuple[str, int], list[Row]]:
    """(kernel, bytes of an element) -> the rows for it, those measured on this machine first."""
    path = shipped(arch)
    if path.stem == SAFE:
        logger.info("no launch table for %s: taking rows that are safe everywhere", arch)
    tuned = tuned_folder() / f"{arch}.json"
    rows = read_table(tuned) if tuned.is_file() else []
    found: dict[tuple[str, int], list[Row]] = {}
    for row in rows + read_table(path):
        found.setdefault((row.kernel, row.bytes), []).append(row)
    return found


@functools.cache
def proven(arch: str) -> bool:
    """Whether the kernels have passed their tests there, as `make gpu-proven` has recorded."""
    path = TABLES / f"{arch}.json"
    return path.is_file() and bool(json.loads(path.read_text("utf-8")).get("proven", False))


@contextlib.contextmanager
def invariant() -> Iterator[None]:
    """Launch alike whatever the batch: no settings that hang on it, no product of the library."""
    token = _invariant.set(True)
    try:
        yield
    finally:
        _invariant.reset(token)


def is_invariant() -> bool:
    """Whether launches are to be alike whatever the batch."""
    return _invariant.get()


def settings(kernel: str, device: torch.device, dtype: torch.dtype, **sizes: int) -> Settings:
    """How to launch a kernel.

    Args:
        kernel: its name in the tables.
        device: where it runs.
        dtype: of the hidden states.
        sizes: what the rows of this kernel compare: rows, n, k, head_dim ...

    Raises: LookupError: no row fits.
    """
    arch, alike = architecture(device), is_invariant()
    if alike and "rows" in sizes:
        sizes["rows"] = ANY_ROWS
    for row in table(arch).get((kernel, dtype.itemsize), []):
        if row.fits(sizes):
            return replace(row.settings, library=False) if alike else row.settings
    raise LookupError(f"no launch settings for {kernel} in {dtype} with {sizes} on {arch}")
