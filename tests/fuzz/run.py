"""Run many cases in processes that may hang or die, and count the outcomes."""

from __future__ import annotations

import ast
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.outcome import BAD

BATCH = (sys.executable, "-m", "tests.fuzz.batch")
PATIENCE = 15.0  # seconds that a case may take
START = 300.0  # seconds until a process has begun its first case


@dataclass
class Case:
    """What became of one case."""

    number: int
    damage: str = ""
    outcome: str = ""
    detail: str = ""
    seconds: float = 0.0
    growth: int = 0


@dataclass
class Totals:
    """Counts, and the cases that need a look."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[Case] = field(default_factory=list)
    slowest: Case = field(default_factory=lambda: Case(-1))
    largest: Case = field(default_factory=lambda: Case(-1))

    def add(self, found: Case) -> None:
        self.counts[found.outcome] += 1
        if found.outcome in BAD:
            self.failures.append(found)
        self.slowest = max(self.slowest, found, key=lambda case: case.seconds)
        self.largest = max(self.largest, found, key=lambda case: case.growth)


def run(
    seed: int, cases: range, jobs: int, compare: float, command: Sequence[str] = BATCH
) -> Iterator[Case]:
    """Run cases and yield them as they end.

    Args:
        seed: with a case's number it decides everything.
        cases: their numbers.
        jobs: processes at a time.
        compare: share of the loaded models to compare with the other libraries.
        command: starts a process that runs cases.
    """
    with tempfile.TemporaryDirectory(prefix="fuzz-") as home:
        found: queue.Queue[Case | RuntimeError | None] = queue.Queue()
        parts = [part for i in range(jobs) if (part := cases[i::jobs])]

        def work(part: range, place: Path) -> None:
            try:
                for case in _watch([*command, str(seed)], part, compare, place):
                    found.put(case)
                found.put(None)
            except RuntimeError as error:
                found.put(error)

        for number, part in enumerate(parts):
            place = Path(home, str(number))
            place.mkdir()
            threading.Thread(target=work, args=(part, place), daemon=True).start()
        left = len(parts)
        while left:
            case = found.get()
            if isinstance(case, RuntimeError):
                raise case
            if case is None:
                left -= 1
            else:
                yield case


def _watch(command: list[str], part: range, compare: float, home: Path) -> Iterator[Case]:
    """Run one part, with a new process after each case that ended or stopped one."""
    left = part
    while left:
        for found in _one_process(command, left, compare, home):
            yield found
            left = range(found.number + left.step, left.stop, left.step)


def _one_process(command: list[str], part: range, compare: float, home: Path) -> Iterator[Case]:
    """Yield the cases of one process, the last of which may have ended it."""
    root = Path(__file__).parents[2]
    numbers = map(str, (part.start, part.step, part.stop, compare))
    process = subprocess.Popen(
        [*command, *numbers, str(home)],
        stdout=subprocess.PIPE,
        stderr=None if os.environ.get("FUZZ_STDERR") else subprocess.DEVNULL,
        cwd=root,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(root / "kernels")])},
        text=True,
    )
    found, begun, silent = None, time.monotonic(), False
    lines: queue.Queue[str | None] = queue.Queue()
    reader = threading.Thread(target=_read, args=(process, lines), daemon=True)
    reader.start()
    while True:
        try:
            line = lines.get(timeout=PATIENCE if found else START)
        except queue.Empty:
            silent = True
            break
        if line is None:
            break
        number, kind, detail = line.split("\t", 2)
        text = str(ast.literal_eval(detail))
        if kind == "begins":
            found, begun = Case(int(number)), time.monotonic()
            continue
        assert found is not None
        if kind == "damage":
            found.damage = text
        elif kind == "ends":
            found.growth, found.seconds = int(text), time.monotonic() - begun
            yield found
            found = None
        else:
            found.outcome, found.detail = kind, text
    if silent:
        process.kill()
    code = process.wait()
    reader.join()
    if found is not None:
        found.seconds = time.monotonic() - begun
        # a case that has loaded is in the other library, which may fail in any way
        if silent and found.outcome != "loads":
            found.outcome, found.detail = "hang", f"over {PATIENCE:.0f} s"
        elif not found.outcome:
            name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            found.outcome, found.detail = "abort", name
        yield found
    elif silent or code:
        raise RuntimeError(f"a process ended with {code} between cases; FUZZ_STDERR=1 shows why")


def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    """Pass on the process's lines as they come, then None."""
    assert process.stdout is not None
    with process.stdout as stream:
        for line in stream:
            lines.put(line)
    lines.put(None)
