"""JSON lines that record how cases began and ended, and survive a crash of their writer.

Each line is one append, flushed to the disk: {"stage", "case", "status", "at", ...}. Several
processes may append at a time. A line that a crash has cut short is skipped.
"""

import hashlib
import json
import math
import os
import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Line = dict[str, Any]
Key = tuple[str, str]

PLANNED, BEGUN = "planned", "begun"
OK, WRONG, FAILED, TIMEOUT = "ok", "wrong", "failed", "timeout"
ENDS = (OK, WRONG, FAILED, TIMEOUT)
FAULTS = (WRONG, FAILED, TIMEOUT)
# The case name under which the failure of a stage itself is recorded.
START = "start"
# Options that only set locations.
PLACES = ("out", "ledger", "scratch")


class Ledger:
    """The lines of a file.

    Attributes:
        path: of the file, which need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        """Nothing is read yet."""
        self.path = path
        self._lines: list[Line] = []
        self._seen = 0
        self._lock = threading.Lock()

    def add(self, stage: str, case: str, status: str, **facts: Any) -> None:
        """Append a line; NaN and infinities become strings."""
        line = {
            "stage": stage,
            "case": case,
            "status": status,
            "at": round(time.time(), 3),
            **facts,
        }
        text = json.dumps(plain(line), allow_nan=False) + "\n"
        with self.path.open("ab+") as file:
            # end the fragment that a killed process has left, so that nothing but it is lost
            if file.tell() and _last_byte(file) != b"\n":
                text = "\n" + text
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())

    def lines(self) -> Sequence[Line]:
        """All complete lines of the file as it is now."""
        with self._lock:
            if self.path.is_file():
                with self.path.open("rb") as file:
                    file.seek(self._seen)
                    whole, end, _ = file.read().rpartition(b"\n")
                self._seen += len(whole) + len(end)
                self._lines += filter(None, map(_parsed, whole.splitlines()))
            return tuple(self._lines)

    def forget(self, statuses: Collection[str]) -> None:
        """Remove the lines with these statuses from the file, so that their cases run again."""
        kept = [line for line in self.lines() if line["status"] not in statuses]
        part = self.path.with_name(f"{self.path.name}.part")
        part.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        part.replace(self.path)
        self._lines, self._seen = [], 0

    def check(self) -> None:
        """Raises: ValueError: the file has content, but no line of a ledger."""
        if self.path.is_file() and self.path.stat().st_size and not self.lines():
            raise ValueError(f"{self.path} holds no lines of a run: choose another file")


def ends(lines: Iterable[Line]) -> dict[Key, Line]:
    """(stage, case) -> its last line that ends it.

    The failed start of a stage no longer counts once the stage has started.
    """
    found: dict[Key, Line] = {}
    for line in lines:
        if line["status"] in ENDS:
            found[key_of(line)] = line
        elif line["status"] == PLANNED:
            found.pop((line["stage"], START), None)
    return found


def planned(lines: Iterable[Line], asked: str | None = None) -> dict[str, list[str]]:
    """Stage -> names of its cases, as its latest child has listed them.

    Args:
        lines: of a ledger.
        asked: only listings for options with this `digest`; None for any.
    """
    return {
        line["stage"]: line["cases"]
        for line in lines
        if line["status"] == PLANNED and asked in (None, line.get("options"))
    }


def digest(options: Mapping[str, Any]) -> str:
    """A short hash that identifies a run's options."""
    what = {name: value for name, value in options.items() if name not in PLACES}
    text = json.dumps(what, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def unfinished(lines: Iterable[Line]) -> dict[Key, Line]:
    """(stage, case) -> its "begun" line, for cases that have no end."""
    found: dict[Key, Line] = {}
    for line in lines:
        if line["status"] == BEGUN:
            found[key_of(line)] = line
        elif line["status"] in ENDS:
            found.pop(key_of(line), None)
    return found


def key_of(line: Line) -> Key:
    """Stage and case."""
    return line["stage"], line["case"]


def plain(value: Any) -> Any:
    """The same for strict JSON: NaN and infinities become strings."""
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _last_byte(file: Any) -> bytes:
    file.seek(-1, os.SEEK_END)
    return bytes(file.read(1))


def _parsed(text: bytes) -> Line | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    known = isinstance(line, dict) and {"stage", "case", "status"} <= set(line)
    return line if known else None
