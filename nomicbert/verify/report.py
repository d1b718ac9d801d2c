"""The report of a comparison: measured values with their bounds, and the machine."""

import os
import platform
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from nomicbert import __version__

LIBRARIES = ("torch", "transformers", "sentence-transformers")


@dataclass(frozen=True)
class Row:
    """One measured value and, if it is judged, its bound.

    Attributes:
        check: "tensors", "hidden", "embedding", "matryoshka", "invariance" or "speed".
        dtype: of the model, or None.
        backend: of the model, or None.
        what: description of the compared data.
        measure: kind of value, such as "max abs".
        value: the measured value.
        bound: limit of the value; None if it is not judged.
        at_least: the bound is a minimum, not a maximum.
        layers: the value of each layer, the embeddings' output first; or empty.
    """

    check: str
    dtype: str | None
    backend: str | None
    what: str
    measure: str
    value: float
    bound: float | None = None
    at_least: bool = False
    layers: tuple[float, ...] = ()

    @property
    def holds(self) -> bool | None:
        """Whether the bound is kept (NaN never keeps it); None without a bound."""
        if self.bound is None:
            return None
        return self.value >= self.bound if self.at_least else self.value <= self.bound


@dataclass
class Report:
    """The complete result.

    Attributes:
        model: path or repository id given by the caller.
        against: folder or repository that the reference read.
        reference: name of the reference for hidden states.
        embedding_reference: name of the reference for vectors.
        reason: why the reference is not transformers; empty if it is.
        notes: sentences on omissions and on values that are easily misread.
        rows: in the order of measurement.
    """

    model: str
    against: str
    reference: str
    embedding_reference: str
    reason: str
    notes: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    @property
    def broken(self) -> int:
        """Number of broken bounds."""
        return sum(row.holds is False for row in self.rows)

    @property
    def judged(self) -> int:
        """Number of bounds."""
        return sum(row.holds is not None for row in self.rows)


def versions() -> dict[str, str | None]:
    """Versions of this package, Python and LIBRARIES; None for a missing library."""
    found: dict[str, str | None] = {"nomicbert": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def machine(device: torch.device) -> dict[str, str | int | None]:
    """The machine of the measurement: processor, threads, and the GPU if `device` is one."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "cpu": _processor(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": gpu,
        "system": platform.system(),
        "cores": os.cpu_count(),
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text("utf-8", "replace").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
