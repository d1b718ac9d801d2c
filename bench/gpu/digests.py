"""Digests of the kernels' sources and of launch rows, stored with results."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nomicbert_kernels import launch

FOLDER = Path(launch.__file__).parents[1]
# The sources that a kernel's result depends on; launch rows are compared one by one.
PATTERNS = (
    "*_triton.py",
    "tiling.py",
    "tensors.py",
    "fp8.py",
    "custom_ops.py",
    "launch/__init__.py",
)


def sources() -> str:
    """A digest of the present kernel sources."""
    found = hashlib.sha256()
    for pattern in PATTERNS:
        for path in sorted(FOLDER.glob(pattern)):
            found.update(path.name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


def row_digest(row: Mapping[str, Any]) -> str:
    """A digest of a launch row's kernel and settings, without the sizes it applies to."""
    launched = {
        "kernel": row["kernel"],
        "bytes": row["bytes"],
        **launch.read_row(row).settings.fields,
    }
    return hashlib.sha256(json.dumps(launched, sort_keys=True).encode()).hexdigest()[:16]


def rows(arch: str) -> list[str]:
    """Digests of the shipped rows of an architecture."""
    stored = json.loads(launch.shipped(arch).read_text("utf-8"))["rows"]
    return [row_digest(row) for row in stored]
