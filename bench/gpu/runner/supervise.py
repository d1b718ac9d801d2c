"""The parent process: starts a child per stage, enforces deadlines, survives every outcome.

A case that exceeds its limit is killed with the child's whole process group and recorded as a
timeout; a new child continues with the remaining cases. Cases that an earlier run has begun but
not ended come last, after all stages.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.gpu.runner.child import AGAIN, DONE
from bench.gpu.runner.ledger import (
    ENDS,
    FAILED,
    FAULTS,
    PLANNED,
    TIMEOUT,
    Ledger,
    Line,
    digest,
    ends,
    planned,
    unfinished,
)

# Seconds between polls of a child; columns of a line on the screen.
POLL, WIDTH = 0.1, 160
# Exit codes of a run.
ALL_RIGHT, FAULTY, MISTAKE, LEFT = 0, 1, 2, 3
# The case name under which the failure of a stage itself is recorded.
START = "start"
UP = "time was up"


@dataclass(frozen=True)
class Stage:
    """A list of cases that run in one process.

    Attributes:
        name: unique.
        cases: "module:function", called in the child with the stage's name and the options.
        box: seconds after which no further case begins; the rest waits for the end of the run.
        limit: seconds after which a case, or a child that begins none, is killed.
        background: runs concurrently with the stages after it.
        exclusive: waits until the background stages have ended.
        env: environment variables of the child.
    """

    name: str
    cases: str
    box: float
    limit: float
    background: bool = False
    exclusive: bool = False
    env: Mapping[str, str] = field(default_factory=dict)


class Supervisor:
    """One run over some stages."""

    def __init__(
        self,
        ledger: Ledger,
        stages: Sequence[Stage],
        options: Mapping[str, Any],
        minutes: float | None,
        summarise: Callable[[Sequence[Line]], None] = lambda lines: None,
    ) -> None:
        """Nothing is started yet.

        Args:
            ledger: cases that have an end in it are skipped.
            stages: in order.
            options: passed to each stage's function; has to be JSON.
            minutes: of the run, after which running cases are killed; None for no limit.
            summarise: called with all lines after each stage.
        """
        self.ledger, self.stages, self.options = ledger, stages, dict(options)
        self.summarise, self.of = summarise, digest(options)
        self.began = time.time()
        self.until = self.began + (1e9 if minutes is None else 60 * minutes)
        self.log = ledger.path.with_suffix(".log")
        self._lock = threading.Lock()

    def run(self) -> int:
        """Run all stages, then whatever is left of them; the exit code."""
        try:
            for again in (False, True):
                threads: list[threading.Thread] = []
                for stage in self.stages:
                    for thread in threads if stage.exclusive else ():
                        thread.join()
                    if stage.background:
                        threads.append(threading.Thread(target=self._stage, args=(stage, again)))
                        threads[-1].start()
                    else:
                        self._stage(stage, again)
                for thread in threads:
                    thread.join()
        finally:
            self.summarise(self.ledger.lines())
        lines = self.ledger.lines()
        if left(self.stages, lines, self.of):
            return LEFT
        names = {stage.name for stage in self.stages}
        found = {line["status"] for line in ends(lines).values() if line["stage"] in names}
        return FAULTY if found & {*FAULTS} else ALL_RIGHT

    def _stage(self, stage: Stage, again: bool) -> None:
        """Start children for one stage until no case is left, or no time."""
        started = time.time()
        until = self.until if again else min(started + stage.box, self.until)
        if not self._waits(stage, again) or started >= until:
            return
        while self._child(stage, again, until) == AGAIN and time.time() < until:
            pass
        with self._lock:
            self.summarise(self.ledger.lines())

    def _waits(self, stage: Stage, again: bool) -> bool:
        """Whether a stage has cases to run, or has never listed them."""
        lines = self.ledger.lines()
        return bool(left([stage], lines, self.of)) if again else self._has_fresh(stage)

    def _has_fresh(self, stage: Stage) -> bool:
        """Whether a stage has cases that were never begun, or has never listed its cases."""
        lines = self.ledger.lines()
        begun, cases = unfinished(lines), left([stage], lines, self.of).get(stage.name, [])
        known = stage.name in planned(lines, self.of)
        return not known or any((stage.name, case) not in begun for case in cases)

    def _child(self, stage: Stage, again: bool, until: float) -> int:
        """Run one child, and record an end for the case that it leaves open.

        Returns: AGAIN if another child has to continue.
        """
        spec = {
            "stage": stage.name,
            "cases": stage.cases,
            "ledger": str(self.ledger.path),
            "options": self.options,
            "until": until,
            "again": again,
        }
        said = len(self._lines_of(stage))
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "bench.gpu.runner.child", json.dumps(spec)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **stage.env},
            )
            try:
                why = self._watch(process, stage, said)
            finally:
                _kill(process)
            code = process.wait()
            output.seek(0)
            text = output.read().decode(errors="replace")
        with self._lock:
            self._keep(stage, code, text)
        return self._end(stage, process.pid, code, why, text)

    def _watch(self, process: "subprocess.Popen[bytes]", stage: Stage, said: int) -> str:
        """Wait for a child and print its lines; the reason to kill it, or empty."""
        since = time.time()
        while True:
            gone = process.poll() is not None
            lines = self._lines_of(stage)
            for line in lines[said:]:
                self._say(line)
                since = time.time()
            said = len(lines)
            if gone:
                return ""
            if time.time() > self.until:
                return UP
            if time.time() - since > stage.limit:
                return f"not done after {stage.limit:g} s"
            time.sleep(POLL)

    def _end(self, stage: Stage, pid: int, code: int, why: str, text: str) -> int:
        """Record how the child's open case ended; AGAIN if another child has to continue."""
        if why == UP:
            return DONE  # the open case stays unfinished, and the next run tries it last
        opened = [x for x in unfinished(self._lines_of(stage)).values() if x["pid"] == pid]
        if not opened and not why and code in (DONE, AGAIN):
            return code
        # without an open case a second child would end in the same way
        case = opened[0]["case"] if opened else START
        reason = why or _how(code, text)
        self.ledger.add(stage.name, case, TIMEOUT if why else FAILED, reason=reason)
        self._say(self._lines_of(stage)[-1])
        return AGAIN if opened else DONE

    def _lines_of(self, stage: Stage) -> list[Line]:
        return [line for line in self.ledger.lines() if line["stage"] == stage.name]

    def _keep(self, stage: Stage, code: int, text: str) -> None:
        """Append the output of a child to the log."""
        if text.strip():
            with self.log.open("a", encoding="utf-8") as file:
                file.write(f"--- {stage.name}, exit code {code}\n{text.rstrip()}\n")

    def _say(self, line: Line) -> None:
        """Print what a line means."""
        if line["status"] == PLANNED:
            said = f"{line['waiting']} of {len(line['cases'])} cases wait"
            said += f", about {minutes(line['seconds'])}" if line["seconds"] else ""
        elif line["status"] in ENDS:
            said = f"{line['case']}: {line['status']}"
            said += f" in {line['seconds']:.1f} s" if "seconds" in line else ""
            said += f": {why}" if (why := line.get("reason") or line.get("said")) else ""
        else:
            return
        at = f"[{line['at'] - self.began:4.0f} s] {line['stage']}"
        # a single write, because background stages print too
        sys.stdout.write(f"{at}: {said}"[:WIDTH] + "\n")
        sys.stdout.flush()


def left(
    stages: Sequence[Stage], lines: Sequence[Line], of: str | None = None
) -> dict[str, list[str]]:
    """Stage -> names of its cases without an end; ["all"] if it has not listed them.

    Args:
        stages: to look at.
        lines: of the ledger.
        of: see `ledger.planned`.
    """
    plans, done = planned(lines, of), ends(lines)
    found: dict[str, list[str]] = {}
    for stage in stages:
        if stage.name in plans:
            names = [case for case in plans[stage.name] if (stage.name, case) not in done]
        else:
            names = [] if (stage.name, START) in done else ["all"]
        if names:
            found[stage.name] = names
    return found


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill a child with its process group."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # the group has ended
    if process.stdin is not None:
        process.stdin.close()


def _how(code: int, text: str) -> str:
    """How a child ended, and its last line of output."""
    ended = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    last = [line.strip() for line in text.splitlines() if line.strip()][-1:]
    return f"{ended}{': ' + last[0][:200] if last else ''}"


def minutes(seconds: float) -> str:
    """A duration for people."""
    return f"{seconds:.0f} s" if abs(seconds) < 90 else f"{seconds / 60:.1f} min"
