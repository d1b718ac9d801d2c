"""Lines of results, and tables."""

import importlib.metadata
import json
import os
import platform
import subprocess
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LIBRARIES = ("numpy", "orjson", "uvloop")
# not in a line: the file itself, a secret, and what belongs to a single run
PRIVATE = {"api_key", "out", "pid"}
Cell = str | float | int | None


def surroundings() -> dict[str, Any]:
    """Machine, versions of the client's libraries, commit, and time."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "load_average": round(os.getloadavg()[0], 2),
        },
        "versions": {"python": platform.python_version(), **{n: _version(n) for n in LIBRARIES}},
        "commit": _commit(),
    }


def flags(options: Namespace) -> dict[str, Any]:
    """The options of a command for a line; of a folder only its name."""
    return {key: _plain(key, value) for key, value in vars(options).items() if key not in PRIVATE}


def _plain(key: str, value: Any) -> Any:
    """A value of an option as JSON has it."""
    if key == "model":
        return [_short(name) for name in value or []]
    if key == "checkpoint":
        return _short(value)
    if isinstance(value, set):
        return sorted(value)
    plain = value is None or isinstance(value, str | int | float | list)
    return value if plain else str(value)


def write(path: Path | None, line: dict[str, Any]) -> None:
    """Append a line of JSON to a file, if there is one."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")


def table(heads: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """An aligned table: words to the left, values to the right, "-" for None."""
    cells = [list(heads), *([shown(cell) for cell in row] for row in rows)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(heads))]
    words = [
        all(isinstance(row[place], str) for row in rows) and bool(rows)
        for place in range(len(heads))
    ]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if word else cell.rjust(width)
            for cell, width, word in zip(row, widths, words, strict=True)
        ).rstrip()
        for row in cells
    )


def shown(value: Cell) -> str:
    """A value in a table: about three digits."""
    if value is None:
        return "-"
    if isinstance(value, float):
        size = abs(value)
        return f"{value:,.0f}" if size >= 1000 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"
    return value if isinstance(value, str) else f"{value:,}"


def times(ratio: float | None) -> str:
    """A ratio in a table."""
    return "-" if ratio is None else f"{ratio:.2f}x"


def _short(name: str) -> str:
    """A repository as it is, of a folder its last part."""
    return Path(name).name if Path(name).is_absolute() or Path(name).is_dir() else name


def _cpu() -> str | None:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout, with "+" if files differ from it."""
    root = Path(__file__).parents[2]

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
