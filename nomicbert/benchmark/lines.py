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
from typing import Any, NamedTuple

import torch

from nomicbert import __version__
from nomicbert.verify.report import machine

Line = dict[str, Any]

MEASURED, ABSENT, WRONG = "measured", "absent", "wrong"
LIBRARIES = (
    "torch", "transformers", "sentence-transformers", "tokenizers", "onnxruntime", "onnx",
    "openvino", "nncf", "ctranslate2", "light-embed", "infinity-emb", "numpy",
)  # fmt: skip
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_bf16", "amx_int8")
OURS = "ours"
NAIVE = "transformers-32"
# A peer in int8 is as exact as ours if its least cosine is at most this much lower.
INT8_MARGIN = 0.002


class Comparison(NamedTuple):
    """A line of ours against the peers with the same dtype and kind of input.

    Attributes:
        best: line of the fastest peer; in int8 of the fastest that is as exact as ours.
        over_best: our rate relative to it.
        over_naive: our rate relative to transformers in fp32 with batches of 32.
        less_exact: line of the fastest peer, if it is in int8 and not as exact as ours.
    """

    best: Line | None
    over_best: float | None
    over_naive: float | None
    less_exact: Line | None


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


def compare(lines: Sequence[Line], ours: Line) -> Comparison:
    """Compare a line of ours with the lines that were measured interleaved with it.

    Args:
        lines: of one or several runs; if a peer was measured again, its last line counts.
        ours: one of them.
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
    fastest = max(rivals, key=_rate, default=None)
    if ours["dtype"] == "int8":
        least = ours["cosine_min"] - INT8_MARGIN
        rivals = [line for line in rivals if line["cosine_min"] >= least]
    best = max(rivals, key=_rate, default=None)
    naive = turns.get((NAIVE, "float32"))
    return Comparison(
        best,
        _rate(ours) / _rate(best) if best else None,
        _rate(ours) / _rate(naive) if naive else None,
        None if fastest is best else fastest,
    )


def texts_per_core_hour(line: Line) -> float | None:
    """Texts that one CPU thread embeds in an hour, by the median of a measured line.

    None for a latency case, which leaves threads idle, and on a GPU.
    """
    if "p50" in line or line["machine"]["gpu"]:
        return None
    return float(line["texts_per_second"]) * 3600 / int(line["machine"]["threads"])


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
