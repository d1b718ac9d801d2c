"""The parent: starts a child for each stage, watches its clock, and goes on whatever happens to it.

Stages come in their order, those that run `beside` the others in a thread of their own. A case has
a limit of its own; beyond it the child's whole process group is killed, the case ends as a timeout,
and a new child goes on with the rest. What an earlier run has begun and never ended comes last.
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
from pathlib import Path
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

# Seconds between two looks at a child; and characters of a line on the screen.
POLL, WIDTH = 0.1, 160
# How a run ended, as an exit code.
ALL_RIGHT, FAULTY, MISTAKE, LEFT = 0, 1, 2, 3
# Stands for a stage itself, where no case of it had begun.
START = "start"
UP = "time was up"


@dataclass(frozen=True)
class Stage:
    """Cases that one child runs.

    Attributes:
        name: unique.
        cases: "module:function" that a child calls with the stage's name and the options.
        box: seconds after which no more of them is begun; the rest waits for what time is left.
        limit: seconds of a case, and of a child's start, beyond which it is killed.
        beside: it runs while those after it do.
        alone: it waits until all that run beside are done.
        env: variables of its child.
    """

    name: str
    cases: str
    box: float
    limit: float
    beside: bool = False
    alone: bool = False
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
            ledger: what earlier runs have ended is not done again.
            stages: in their order.
            options: what each stage's function is called with; JSON.
            minutes: after which all that runs is killed; None for never.
            summarise: called after each stage with all lines.
        """
        self.ledger, self.stages, self.options = ledger, stages, dict(options)
        self.summarise, self.of = summarise, digest(options)
        self.began = time.time()
        self.until = self.began + (1e9 if minutes is None else 60 * minutes)
        self.log = ledger.path.with_suffix(".log")
        self._lock = threading.Lock()

    def run(self) -> int:
        """All stages: what nobody has begun first, then what is left; an exit code."""
        known = len(self.ledger.lines())
        try:
            for again in (False, True):
                threads: list[threading.Thread] = []
                for stage in self.stages:
                    for thread in threads if stage.alone else ():
                        thread.join()
                    if stage.beside:
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
        faults = [line for line in lines[known:] if line["status"] in FAULTS]
        return FAULTY if faults else ALL_RIGHT

    def _stage(self, stage: Stage, again: bool) -> None:
        """Children of one stage until none of its cases waits, or its time is up."""
        started = time.time()
        until = self.until if again else min(started + stage.box, self.until)
        if not self._waits(stage, again) or started >= until:
            return
        while self._child(stage, again, until) == AGAIN and time.time() < until:
            pass
        with self._lock:
            self.summarise(self.ledger.lines())

    def _waits(self, stage: Stage, again: bool) -> bool:
        """Whether a case of a stage has no end yet, as far as anybody knows its cases."""
        lines = self.ledger.lines()
        return bool(left([stage], lines, self.of)) if again else self._has_fresh(stage)

    def _has_fresh(self, stage: Stage) -> bool:
        """Whether nobody has begun some case of a stage, as far as anybody knows its cases."""
        lines = self.ledger.lines()
        begun, cases = unfinished(lines), left([stage], lines, self.of).get(stage.name, [])
        known = stage.name in planned(lines, self.of)
        return not known or any((stage.name, case) not in begun for case in cases)

    def _child(self, stage: Stage, again: bool, until: float) -> int:
        """One child; what it has begun and not ended is ended here.

        Returns: AGAIN if another child has to go on.
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
        """Wait for a child, and tell of its lines after so many; why it has to go, or empty."""
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
        """Note how the case that the child had open ended; whether another child has to go on."""
        if why == UP:
            return DONE  # the case stays begun: the next run tries it last
        opened = [x for x in unfinished(self._lines_of(stage)).values() if x["pid"] == pid]
        if not opened and not why and code in (DONE, AGAIN):
            return code
        # where no case can be blamed, a second child would end alike
        case = opened[0]["case"] if opened else START
        reason = why or _how(code, text)
        self.ledger.add(stage.name, case, TIMEOUT if why else FAILED, reason=reason)
        self._say(self._lines_of(stage)[-1])
        return AGAIN if opened else DONE

    def _lines_of(self, stage: Stage) -> list[Line]:
        return [line for line in self.ledger.lines() if line["stage"] == stage.name]

    def _keep(self, stage: Stage, code: int, text: str) -> None:
        """What a child has printed, behind what the others have."""
        if text.strip():
            with self.log.open("a", encoding="utf-8") as file:
                file.write(f"--- {stage.name}, exit code {code}\n{text.rstrip()}\n")

    def _say(self, line: Line) -> None:
        """What a line means, on the screen."""
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
        # one write: stages that run beside each other share the screen
        sys.stdout.write(f"{at}: {said}"[:WIDTH] + "\n")
        sys.stdout.flush()


def left(
    stages: Sequence[Stage], lines: Sequence[Line], of: str | None = None
) -> dict[str, list[str]]:
    """Stage -> its cases without an end; of one that nobody has planned, "all".

    Args:
        stages: that are asked for.
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
    """The child, and whatever it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # all of them are gone
    if process.stdin is not None:
        process.stdin.close()


def _how(code: int, text: str) -> str:
    """How a child died, and the last that it said."""
    ended = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    last = [line.strip() for line in text.splitlines() if line.strip()][-1:]
    return f"{ended}{': ' + last[0][:200] if last else ''}"


def minutes(seconds: float) -> str:
    """A time in words."""
    return f"{seconds:.0f} s" if abs(seconds) < 90 else f"{seconds / 60:.1f} min"


def out_file(path: Path) -> None:
    """Make a file's folder, and see that it can be written.

    Raises: OSError: it cannot.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab"):
        pass
