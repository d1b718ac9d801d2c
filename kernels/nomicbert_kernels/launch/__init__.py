"""Launch settings of each Triton kernel per architecture, read from the tables in this folder.

A table is a JSON file named after its architecture: {"proven": true, "by": {...}, "rows": [...]}.
"proven" means that the kernels passed their tests on such a device, in the run that "by" names, so
backend "auto" uses them there; `make gpu-proven` writes both. A row applies to one kernel and one
element size. The first row that fits is used, so specific rows precede general ones:

    {"kernel": "swiglu", "bytes": 2, "up_to": {"rows": 64}, "BLOCK_M": 64, ..., "num_warps": 4}

"up_to" and "exactly" are compared with the sizes that the caller passes. Keys in capitals are
constants of the kernel; num_warps, num_stages and maxnreg are launch options. "library": true
replaces the fused kernel by the vendor's GEMM (cuBLAS, hipBLAS) and a small kernel. "programs": 2
says that a multiprocessor holds two programs at once: `make aot` checks it, and a persistent
kernel, one with FLATTEN, is launched with that many. Rows measured by `nomicbert tune` on this
machine precede the shipped ones. A row with unknown keys, or that asks for more than the
architecture has, is refused when its table is read; see `limits`.

Rows for different numbers of tokens sum in different orders, so a text's last bits depend on the
other texts in its batch. Within `invariant` they do not.
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

from nomicbert_kernels.launch.limits import faults

logger = logging.getLogger(__name__)

TABLES = Path(__file__).parent
# Table for unknown architectures: small tiles, which need at most 64 KiB of shared memory.
SAFE = "safe"
# Architectures that use a relative's table: it has the same units, and no more shared memory.
RELATIVES = {"sm_87": "sm_86", "sm_103": "sm_100", "sm_121": "sm_120"}
# Table for Triton's interpreter, which runs the kernels on CPU tensors.
INTERPRETER = "interpreter"
# Maximum bytes of shared memory per program. Source: CUDA C++ Programming Guide, table
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
# Programmatic dependent launch: a kernel may start while the previous one still runs. Whether this
# process uses it: a variant of the proof run, off until it has been measured. And the lowest sm_
# architecture that has it.
PDL = False
PDL_SINCE = 90
# Number of rows used to look up settings within `invariant`.
ANY_ROWS = 10**9
# What Triton's OutOfResources calls a resource, with its unit.
UNITS = {
    "shared memory": "bytes of shared memory",
    "tensor memory": "columns of tensor memory",
}

_invariant: ContextVar[bool] = ContextVar("invariant", default=False)


class BackendError(RuntimeError):
    """The requested backend cannot run on this device, in this dtype, or with its launch row."""


@dataclass(frozen=True)
class Settings:
    """How one kernel is launched.

    Attributes:
        constants: compile-time arguments of the kernel, by their names in capitals.
        options: num_warps, num_stages, and maxnreg where it is set.
        library: use the vendor's GEMM and a small kernel instead.
        programs: of a persistent kernel, per multiprocessor; 1 for other kernels.
    """

    constants: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, int] = field(default_factory=dict)
    library: bool = False
    programs: int = 1

    def __getitem__(self, name: str) -> Any:
        """One constant."""
        return self.constants[name]

    def keywords(self, device: torch.device) -> dict[str, Any]:
        """All keyword arguments of a launch on this device."""
        return {**self.constants, **self.options, **common(device)}

    @property
    def fields(self) -> dict[str, Any]:
        """The settings as they stand in a table's row."""
        library = {"library": True} if self.library else {}
        programs = {"programs": self.programs} if self.programs > 1 else {}
        return {**library, **self.constants, **self.options, **programs}


@dataclass(frozen=True)
class Row:
    """A row of a table: settings, and the kernel, element size and sizes they apply to.

    Attributes:
        programs: that a multiprocessor has to hold at once.
        place: where the row is stored, for messages.
    """

    kernel: str
    bytes: int
    up_to: Mapping[str, int]
    exactly: Mapping[str, int]
    settings: Settings
    programs: int = field(default=1, compare=False)
    place: str = field(default="", compare=False)

    def fits(self, sizes: Mapping[str, int]) -> bool:
        """Whether the row applies to these sizes."""
        return all(sizes[name] <= most for name, most in self.up_to.items()) and all(
            sizes[name] == wanted for name, wanted in self.exactly.items()
        )


# The row looked up last, for the message of a launch that fails.
_latest: ContextVar[Row | None] = ContextVar("latest", default=None)


@functools.cache
def architecture(device: torch.device) -> str:
    """The name of a device's table: "sm_90", "gfx942", or INTERPRETER for a CPU."""
    if device.type != "cuda":
        return INTERPRETER
    if torch.version.hip:
        return str(torch.cuda.get_device_properties(device).gcnArchName).split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def common(device: torch.device) -> dict[str, bool]:
    """Keyword arguments of every launch on a device.

    enable_fp_fusion: fuse multiply and add, whatever Triton's default is.
    launch_pdl: PDL, where the architecture has it. It is an option of Triton, and also a constant
        of every kernel; see `gemm_triton.after_previous`.
    """
    arch = architecture(device)
    overlaps = PDL and arch.startswith("sm_") and int(arch.removeprefix("sm_")) >= PDL_SINCE
    return {"enable_fp_fusion": True, "launch_pdl": overlaps}


def tuned_folder() -> Path:
    """Folder of the tuned tables: NOMICBERT_LAUNCH, or else within the user's cache folder."""
    given = os.environ.get("NOMICBERT_LAUNCH")
    if given:
        return Path(given)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "nomicbert" / "launch"


def read_row(row: Mapping[str, Any], place: str = "") -> Row:
    """Parse one row of a table, which is stored at `place`."""
    return Row(
        kernel=row["kernel"],
        bytes=row["bytes"],
        up_to=row.get("up_to", {}),
        exactly=row.get("exactly", {}),
        settings=Settings(
            constants={name: value for name, value in row.items() if name.isupper()},
            options={name: row[name] for name in OPTIONS if name in row},
            library=row.get("library", False),
            programs=row.get("programs", 1) if row.get("FLATTEN") else 1,
        ),
        programs=row.get("programs", 1),
        place=place,
    )


def read_table(path: Path) -> list[Row]:
    """Read the rows of a table in order.

    Raises: ValueError: the file is not a table, or the architecture it is named after cannot launch
        one of its rows. The message names the file, the row, what it asks for and what there is.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))["rows"]
        rows = [read_row(row, f"rows[{number}] of {path}") for number, row in enumerate(stored)]
        found = [faults(row, path.stem) for row in stored]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a launch table ({error!r}): delete it") from error
    for row, problems in zip(rows, found, strict=True):
        if problems:
            raise ValueError(
                f"{row.place} ({row.kernel}, {row.bytes} bytes) cannot be launched: "
                f"{'; '.join(problems)}: correct the row or delete it"
            )
    return rows


def shipped(arch: str) -> Path:
    """The shipped table for an architecture: its own, a relative's, or the safe one."""
    path = TABLES / f"{RELATIVES.get(arch, arch)}.json"
    return path if path.is_file() else TABLES / f"{SAFE}.json"


@functools.cache
def table(arch: str) -> dict[tuple[str, int], list[Row]]:
    """Map (kernel, bytes per element) to its rows, those tuned on this machine first."""
    path = shipped(arch)
    if path.stem == SAFE:
        logger.info("no launch table for %s: using settings that are safe everywhere", arch)
    tuned = tuned_folder() / f"{arch}.json"
    rows = read_table(tuned) if tuned.is_file() else []
    found: dict[tuple[str, int], list[Row]] = {}
    for row in rows + read_table(path):
        found.setdefault((row.kernel, row.bytes), []).append(row)
    return found


@functools.cache
def proven(arch: str) -> bool:
    """Whether the kernels passed their tests on this architecture, per `make gpu-proven`."""
    path = TABLES / f"{arch}.json"
    return path.is_file() and bool(json.loads(path.read_text("utf-8")).get("proven", False))


@contextlib.contextmanager
def invariant() -> Iterator[None]:
    """Use launch settings that do not depend on the batch, and no vendor GEMM."""
    token = _invariant.set(True)
    try:
        yield
    finally:
        _invariant.reset(token)


def is_invariant() -> bool:
    """Whether launch settings must not depend on the batch."""
    return _invariant.get()


def settings(kernel: str, device: torch.device, dtype: torch.dtype, **sizes: int) -> Settings:
    """Look up the launch settings of a kernel.

    Args:
        kernel: its name in the tables.
        device: where it runs.
        dtype: of the hidden states.
        sizes: the sizes that rows of this kernel are compared with: rows, n, k, head_dim ...

    Raises: LookupError: no row fits.
    """
    arch, invariant = architecture(device), is_invariant()
    if invariant and "rows" in sizes:
        sizes["rows"] = ANY_ROWS
    for row in table(arch).get((kernel, dtype.itemsize), []):
        if row.fits(sizes):
            _latest.set(row)
            return replace(row.settings, library=False) if invariant else row.settings
    raise LookupError(f"no launch settings for {kernel} in {dtype} with {sizes} on {arch}")


def explain(error: Exception) -> None:
    """Name the launch row if a kernel needs more than the device has; other errors pass.

    Only a launch can find this, because shared memory depends on what the compiler does with a row.
    Triton's own message names neither the kernel nor the row.

    Args:
        error: of a launch. The row looked up last is taken for its own: kernels without a row need
            no more than 16 KB.

    Raises: BackendError: the error is Triton's OutOfResources. That class is compared by name,
        because this module is also used where triton is not installed.
    """
    if type(error).__name__ != "OutOfResources":
        return
    row = _latest.get()
    needed, limit, name = (getattr(error, part) for part in ("required", "limit", "name"))
    where = "" if row is None else f" of {row.kernel}, {row.place or 'which is being tried'}"
    raise BackendError(
        f"a kernel needs {needed:,} {UNITS.get(name, name)}, and this device has {limit:,}: use "
        f"smaller blocks or fewer stages in the launch row{where}"
    ) from error
