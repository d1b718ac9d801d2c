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
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.gpu.runner.child import AGAIN, DONE
from bench.gpu.runner.ledger import (
    ENDS,
    FAILED,
    FAULTS,
    PLANNED,
    START,
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
# Seconds that a child may take until its first line, at least; and to die of SIGKILL.
FIRST, STUCK = 90.0, 10.0
# Exit codes of a run.
ALL_RIGHT, FAULTY, MISTAKE, LEFT = 0, 1, 2, 3
UP = "time was up"
# Output is not held back, and no library looks for a network that is not there.
ENVIRONMENT = {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Stage:
    """A list of cases that run in one process.

    Attributes:
        name: unique.
        cases: "module:function", called in the child with the stage's name and the options.
        box: seconds after which no further case begins; the rest waits for the end of the run.
        limit: seconds after which a case is killed.
        background: runs concurrently with the stages after it, in every run anew.
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
        limit: float | None,
        summarise: Callable[[Sequence[Line]], None] = lambda lines: None,
    ) -> None:
        """Nothing is started yet.

        Args:
            ledger: cases that have an end in it are skipped, except those of background stages,
                which prepare this machine for the others.
            stages: in order.
            options: passed to each stage's function; has to be JSON.
            limit: minutes of the run, after which running cases are killed; None for no limit.
            summarise: called with all lines after each stage.
        """
        self.ledger, self.stages, self.options = ledger, stages, dict(options)
        self.summarise, self.asked = summarise, digest(options)
        self.began = time.time()
        self.until = self.began + (1e9 if limit is None else 60 * limit)
        self._lock = threading.Lock()

    def run(self) -> int:
        """Run all stages, then their remaining cases; return the exit code."""
        threads: list[threading.Thread] = []
        try:
            for again in (False, True):
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
        except BaseException:
            self.until = 0.0  # ends the background stages too
            raise
        finally:
            for thread in threads:
                thread.join()
            self._summarise()
        lines, names = self.ledger.lines(), {stage.name for stage in self.stages}
        faults = [x for x in ends(lines).values() if x["stage"] in names and x["status"] in FAULTS]
        # a stage that cannot start has no cases to run, even with time left
        broken = {line["stage"] for line in faults if line["case"] == START}
        if set(left(self.stages, lines, self.asked)) - broken:
            return LEFT
        return FAULTY if faults else ALL_RIGHT

    def _stage(self, stage: Stage, again: bool) -> None:
        """Start children for one stage until no case is left, or no time."""
        started = time.time()
        until = self.until if again else min(started + stage.box, self.until)
        if not self._waits(stage, again) or started >= until:
            return
        repeat = stage.background and not again
        while self._child(stage, again, until, repeat) == AGAIN and time.time() < until:
            repeat = False
        self._summarise()

    def _summarise(self) -> None:
        """Rewrite the summary. A fault in it must not end the run."""
        with self._lock:
            try:
                self.summarise(self.ledger.lines())
            except Exception:  # the lines are there; the traceback goes to the screen
                traceback.print_exc()

    def _waits(self, stage: Stage, again: bool) -> bool:
        """Whether a stage has cases to run, or has not listed them; `again`: begun ones count."""
        if stage.background and not again:
            return True
        lines = self.ledger.lines()
        cases, begun = left([stage], lines, self.asked).get(stage.name, []), unfinished(lines)
        return (again and bool(cases)) or any((stage.name, case) not in begun for case in cases)

    def _child(self, stage: Stage, again: bool, until: float, repeat: bool) -> int:
        """Run one child, and record an end for the case that it leaves open.

        Args:
            stage: whose cases it runs.
            again: run those too that were begun and never ended.
            until: begin none that would end later.
            repeat: run all, whether they have an end or not.

        Returns: AGAIN if another child has to continue.
        """
        spec = {
            "stage": stage.name,
            "cases": stage.cases,
            "ledger": str(self.ledger.path),
            "options": self.options,
            "until": until,
            "again": again,
            "repeat": repeat,
        }
        said = len(self._lines_of(stage))
        # outputs of concurrent stages go to files of their own
        suffix = f".{stage.name}.log" if stage.background else ".log"
        log = self.ledger.path.with_suffix(suffix)
        with log.open("ab+") as output:
            start = output.tell()
            process = subprocess.Popen(
                [sys.executable, "-m", "bench.gpu.runner.child", json.dumps(spec)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**ENVIRONMENT, **os.environ, **stage.env},
            )
            try:
                why = self._watch(process, stage, said)
            finally:
                code = _kill(process)
            output.seek(start)
            text = output.read().decode(errors="replace")
        if not log.stat().st_size:
            log.unlink()
        return self._end(stage, process.pid, code, why, text)

    def _watch(self, process: "subprocess.Popen[bytes]", stage: Stage, said: int) -> str:
        """Wait for a child and print its lines; the reason to kill it, or empty."""
        since, limit = time.time(), max(stage.limit, FIRST)
        while True:
            gone = process.poll() is not None
            lines = self._lines_of(stage)
            for line in lines[said:]:
                self._say(line)
                since, limit = time.time(), stage.limit
            said = len(lines)
            if gone:
                return ""
            if time.time() > self.until:
                return UP
            if time.time() - since > limit:
                return f"not done after {limit:g} s"
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

    def _say(self, line: Line) -> None:
        """Print a ledger line for people."""
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
    stages: Sequence[Stage], lines: Sequence[Line], asked: str | None = None
) -> dict[str, list[str]]:
    """Stage -> names of its cases without an end; ["all"] if it has not listed them.

    Args:
        stages: to look at.
        lines: of the ledger.
        asked: see `ledger.planned`.
    """
    plans, done = planned(lines, asked), ends(lines)
    found: dict[str, list[str]] = {}
    for stage in stages:
        names = ["all"]
        if stage.name in plans:
            names = [case for case in plans[stage.name] if (stage.name, case) not in done]
        if names:
            found[stage.name] = names
    return found


def _kill(process: "subprocess.Popen[bytes]") -> int:
    """Kill a child with its process group; its exit code."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # the group has ended
    if process.stdin is not None:
        process.stdin.close()
    try:
        return process.wait(STUCK)
    except subprocess.TimeoutExpired:
        return -signal.SIGKILL  # stuck in the driver: nothing more can be done about it


def _how(code: int, text: str) -> str:
    """How a child ended, and its last line of output."""
    ended = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    last = [line.strip() for line in text.splitlines() if line.strip()][-1:]
    return f"{ended}{': ' + last[0][:200] if last else ''}"


def minutes(seconds: float) -> str:
    """A duration for people."""
    return f"{seconds:.0f} s" if abs(seconds) < 90 else f"{seconds / 60:.1f} min"
