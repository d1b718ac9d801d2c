"""What a comparison has found: rows of numbers with their bounds, and where they were measured."""

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
    """One number and, where it is judged, its bound.

    Attributes:
        check: "tensors", "hidden", "embedding", "matryoshka", "invariance" or "speed".
        dtype: of the model, or None.
        backend: that computed, or None.
        what: what was compared, in words.
        measure: what the number counts, such as "max abs".
        value: the number.
        bound: that it must keep; None for a number that is not judged.
        at_least: the bound is the least that is allowed, not the most.
        layers: the same number of each layer, the embeddings' output first; or empty.
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
        """Whether the bound is kept, which NaN never does; None where there is none."""
        if self.bound is None:
            return None
        return self.value >= self.bound if self.at_least else self.value <= self.bound


@dataclass
class Report:
    """All that was found.

    Attributes:
        model: the checkpoint as it was named.
        against: the folder or repository that the reference read.
        reference: for hidden states.
        embedding_reference: for vectors.
        reason: why the reference is not transformers; empty where it is.
        notes: what was left out or is easily misread, in sentences.
        rows: in the order in which they were measured.
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
        """How many bounds are not kept."""
        return sum(row.holds is False for row in self.rows)

    @property
    def judged(self) -> int:
        """How many bounds there are."""
        return sum(row.holds is not None for row in self.rows)


def versions() -> dict[str, str | None]:
    """Of this package and of those that it is compared with; None for one that is missing."""
    found: dict[str, str | None] = {"nomicbert": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def machine(device: torch.device) -> dict[str, str | int | None]:
    """What the numbers were computed on: processor, its threads, and the GPU if it was one."""
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
