"""Results of the benchmark: one line per case and peer, and the ratios between lines.

A line is a dict that is written to JSON unchanged; docs/bench.md describes the fields.
"""

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from nomicbert import __version__
from nomicbert.verify.report import machine

Line = dict[str, Any]

MEASURED, ABSENT, WRONG = "measured", "absent", "wrong"
LIBRARIES = (
    "torch", "transformers", "sentence-transformers", "tokenizers", "onnxruntime", "onnx",
    "openvino", "nncf", "ctranslate2", "numpy",
)  # fmt: skip
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_bf16", "amx_int8")
OURS = "ours"
NAIVE = "transformers-32"


def surroundings(device: torch.device) -> Line:
    """Versions of all libraries, the machine, and the commit if known."""
    versions: dict[str, str | None] = {
        "nomicbert": __version__,
        "python": platform.python_version(),
    }
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {
        "versions": versions,
        "machine": {**machine(device), "instructions": _instructions()},
        "commit": _commit(),
    }


def as_json(lines: Iterable[Line]) -> str:
    """The lines as JSONL."""
    return "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)


def put(lines: Sequence[Line], path: Path) -> None:
    """Write a case's lines into a file; they replace existing lines of the same case.

    The file is written to a temporary file and renamed, so it never holds part of a case.
    """
    known = read(path) if path.is_file() else []
    new = {block_of(line) for line in lines}
    old = [place for place, line in enumerate(known) if block_of(line) in new]
    first = old[0] if old else len(known)
    after = [line for line in known[first:] if block_of(line) not in new]
    part = path.with_name(f"{path.name}.part")
    part.write_text(as_json([*known[:first], *lines, *after]), encoding="utf-8")
    part.replace(path)


def block_of(line: Line) -> tuple[str, str, str]:
    """Model, case and group: lines with the same key were measured interleaved."""
    return line["model"], line["case"], line["group"]


def read(path: Path) -> list[Line]:
    """Read the lines of a file.

    Raises: ValueError: a line is not JSON or not a result of this benchmark.
    """
    found = []
    for number, text in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
            known = {"model", "case", "group", "peer", "dtype", "status"} <= set(line)
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is not JSON") from error
        if not known:
            raise ValueError(f"{path}, line {number} is not a result of this benchmark")
        found.append(line)
    return found


def ratios(lines: Sequence[Line], ours: Line) -> tuple[Line | None, float | None, float | None]:
    """Compare a line of ours with the lines that were measured interleaved with it.

    Args:
        lines: of one or several runs; if a peer was measured again, its last line counts.
        ours: one of them.

    Returns: the fastest correct peer with the same dtype and kind of input; our rate relative to
        it; our rate relative to transformers in fp32 with batches of 32; each None if missing.
    """
    turns = {
        (line["peer"], line["dtype"]): line
        for line in lines
        if line["status"] == MEASURED
        and all(line[key] == ours[key] for key in ("model", "case", "group"))
    }
    rivals = [
        line
        for (peer, dtype), line in turns.items()
        if dtype == ours["dtype"] and not is_ours(peer) and line["from_texts"] == ours["from_texts"]
    ]
    best = max(rivals, key=_rate, default=None)
    naive = turns.get((NAIVE, "float32"))
    return (
        best,
        _rate(ours) / _rate(best) if best else None,
        _rate(ours) / _rate(naive) if naive else None,
    )


def is_ours(peer: str) -> bool:
    """Whether a line's peer is this package."""
    return peer in (OURS, f"{OURS}-texts")


def _rate(line: Line) -> float:
    return float(line["tokens_per_second"])


def _instructions() -> list[str]:
    path = Path("/proc/cpuinfo")
    text = path.read_text("utf-8", "replace") if path.is_file() else ""
    flags = set(next((x for x in text.splitlines() if x.startswith("flags")), "").split())
    return [name for name in INSTRUCTIONS if name in flags]


def _commit() -> str | None:
    """Git commit of the source tree of this file, or None."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", os.fspath(root), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
