"""Results of the GPU tests: one JSON file per architecture, and a table at the end.

The file is written after every test, so that a hang or a crash loses nothing. Results of earlier
runs of the same commit on the same machine are kept, so the tests can run in parts.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import math
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from bench.gpu import digests

ROOT = Path(__file__).parents[2]
PACKAGES = ("torch", "triton", "transformers", "sentence-transformers", "numpy")
Result = dict[str, Any]


def results_folder() -> Path | None:
    """NOMICBERT_RESULTS, else bench/results; on a CPU only NOMICBERT_RESULTS."""
    if os.environ.get("NOMICBERT_RESULTS"):
        return Path(os.environ["NOMICBERT_RESULTS"])
    return ROOT / "bench/results" if torch.cuda.is_available() else None


def commit() -> str:
    """NOMICBERT_COMMIT, else git's commit, with a + if files have changed since."""
    if os.environ.get("NOMICBERT_COMMIT"):
        return os.environ["NOMICBERT_COMMIT"]
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine(architecture: str) -> Result:
    """Machine, versions and sources that the results are for."""
    found: Result = {"architecture": architecture, "commit": commit()}
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        found["gpu"] = device.name
        found["capability"] = f"{device.major}.{device.minor}"
        found["memory_gib"] = round(device.total_memory / 2**30, 1)
        found["cuda"] = torch.version.cuda or torch.version.hip
    found["sources"], found["rows"] = digests.sources(), digests.rows(architecture)
    found["python"] = platform.python_version()
    found["versions"] = {package: version(package) for package in PACKAGES}
    return found


def worst(records: list[Result]) -> list[Result]:
    """The record with the largest share of its bound, for each op, dtype and check."""
    groups: dict[tuple[str, ...], list[Result]] = {}
    for record in records:
        key = tuple(str(record.get(name)) for name in ("op", "dtype", "check"))
        used = usage(record["error"], record["bound"])
        groups.setdefault(key, []).append({**record, "used": used})
    return [
        {**max(group, key=lambda record: record["used"]), "cases": len(group)}
        for group in groups.values()
    ]


def plain_json(value: Any) -> Any:
    """The same for strict JSON, which has no NaN and no infinity."""
    if isinstance(value, dict):
        return {key: plain_json(part) for key, part in value.items()}
    if isinstance(value, list):
        return [plain_json(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def usage(error: float, bound: float) -> float:
    """Error over bound."""
    if error == 0:
        return 0.0
    return error / bound if bound and not math.isnan(error) else math.inf


class Report:
    """Results by test."""

    def __init__(self, architecture: str, folder: Path | None) -> None:
        self.path = folder and folder / f"gpu-{architecture}.json"
        self.machine = machine(architecture)
        self.tests: dict[str, Result] = {}
        self.here: set[str] = set()
        if self.path and self.path.is_file():
            before = json.loads(self.path.read_text("utf-8"))
            if before["machine"] == self.machine:
                self.tests = before["tests"]

    def add(self, name: str, verdict: str, records: list[Result], reason: str = "") -> None:
        """Add one phase of a test; a later phase that passes does not undo a failure."""
        entry = self.tests[name] if name in self.here else {"verdict": verdict, "records": []}
        if verdict != "passed":
            entry["verdict"] = verdict
        if reason:
            entry["reason"] = reason
        entry["records"] += worst(records)
        self.here.add(name)
        self.tests[name] = entry
        self.write()

    def counts(self) -> Result:
        verdicts = [entry["verdict"] for entry in self.tests.values()]
        return {verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))}

    def write(self) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "machine": self.machine,
            "counts": self.counts(),
            "tests": dict(sorted(self.tests.items())),
        }
        # replaced atomically, in case the run is killed now
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(plain_json(content), indent=1) + "\n", "utf-8")
        part.replace(self.path)

    def lines(self) -> list[str]:
        """The table: the worst result of each check, op and dtype, then the tests that failed."""
        records = [r for name in self.here for r in self.tests[name]["records"]]
        rows = sorted(
            (str(r.get("check", "")), str(r.get("op", "")), str(r.get("dtype", "")), r)
            for r in worst(records)
        ) if records else []  # fmt: skip
        out = [f"{'check':<22}{'op':<34}{'dtype':<10}{'error':>10}{'bound':>10}{'used':>7}"]
        for check, op, dtype, record in rows:
            figures = f"{record['error']:10.2e}{record['bound']:10.2e}{record['used']:7.0%}"
            out.append(f"{check:<22}{op:<34}{dtype:<10}{figures}")
        for name in sorted(self.here):
            entry = self.tests[name]
            if entry["verdict"] != "passed":
                out.append(f"{entry['verdict'].upper()} {name}: {entry.get('reason', '')}")
        out.append(f"{self.counts()}" + (f", written to {self.path}" if self.path else ""))
        return out
