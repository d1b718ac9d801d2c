"""A job dies at every step that changes its folder, loses what was not safe, and is resumed.

    python -m tests.bulk.job.exhaust                  all points, three outcomes each
    python -m tests.bulk.job.exhaust --quick          every step once, with one of the outcomes
    python -m tests.bulk.job.exhaust --sample 7       every seventh point

Each point is a child process that dies there (see `faults`); then the same job runs to its end in
this process, and the folder is compared with the truth, row by row and bit by bit. Run as a program
of its own: a fork needs a process without other threads.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nomicbert.bulk.job import cutter, folder
from nomicbert.bulk.job import resume as resuming
from tests.bulk.job.faults import DEAD, KILLED, OUTCOMES, Disk, dies
from tests.bulk.job.standin import Hashes, embed
from tests.bulk.job.truth import Truth, build, wrong

OPTIONS: dict[str, Any] = {"part_rows": 10, "on_error": "skip"}


def encoder(window: int = 4, model: str = "hashes") -> Hashes:
    return Hashes(window, model, truncate="error")


class Trial:
    """A job in a temporary folder, run again and again.

    Attributes:
        output: its folder.
        failures: what was wrong after a resume, with the point.
    """

    def __init__(self, home: Path) -> None:
        self.truth: Truth = build(home / "in")
        self.output, self.shadow, self.log = home / "out", home / "shadow", home / "log"
        self.failures: list[str] = []
        self.died = 0

    def run(self, tasks: int = 1, **more: Any) -> None:
        """The job to its end, by another window, so that parts are not cut alike by chance."""
        for index in range(tasks):
            task = (index + 1, tasks) if tasks > 1 else None
            embed(self.truth.inputs, self.output, encoder(7), task=task, **{**OPTIONS, **more})

    def steps(self, work: Callable[[], object], start: Callable[[], object]) -> list[str]:
        """The steps of `work` in a folder that `start` has prepared."""
        self._clean(start)
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(self.output, self.shadow)
            disk.install(patch)
            work()
        return disk.steps

    def die(
        self,
        work: Callable[[], object],
        at: int,
        outcome: str,
        start: Callable[[], object],
    ) -> bool:
        """Let a child die at a step of `work`: whether it did."""
        self._clean(start)

        def child() -> None:
            disk = Disk(self.output, self.shadow, at, outcome)
            with pytest.MonkeyPatch.context() as patch:
                disk.install(patch)
                work()

        self.log.unlink(missing_ok=True)
        if (status := dies(child, self.log)) == DEAD:
            self.died += 1
            return True
        said = self.log.read_text() if self.log.exists() else ""
        self.failures.append(f"step {at}, {outcome}: did not die, but ended with {status} {said}")
        return False

    def check(self, point: str, work: Callable[[], object], tasks: int = 1) -> None:
        """Resume, and compare."""
        try:
            work()
            found = wrong(self.output, self.truth, tasks)
        except Exception as error:  # any error of a resume is a finding
            found = [repr(error)]
        self.failures += [f"{point}: {one}" for one in found]

    def _clean(self, start: Callable[[], object]) -> None:
        for path in (self.output, self.shadow):
            shutil.rmtree(path, ignore_errors=True)
        self.shadow.mkdir()
        start()


def points(steps: list[str], every: int, quick: bool) -> list[tuple[int, str]]:
    """Steps to die at, with an outcome.

    What a power failure leaves of a file that is being written does not depend on the write.

    Args:
        steps: their names.
        every: one of so many points.
        quick: one outcome per step, drawn, and one write of each file.
    """
    found = []
    draw = random.Random(1)
    writes = 0
    for at, step in enumerate(steps):
        if "write" in step:
            writes += 1
            if not quick or (step == "in write" and writes == 5):
                found.append((at, KILLED))
        else:
            writes = 0
            found += [(at, one) for one in ([draw.choice(OUTCOMES)] if quick else OUTCOMES)]
    return found[::every]


def one_job(trial: Trial, every: int, quick: bool) -> int:
    """A job dies at each point, from an empty folder."""
    first = lambda: embed(trial.truth.inputs, trial.output, encoder(), **OPTIONS)  # noqa: E731
    steps = trial.steps(first, lambda: None)
    for at, outcome in points(steps, every, quick):
        if trial.die(first, at, outcome, lambda: None):
            trial.check(f"step {at}, {steps[at]}, {outcome}", trial.run)
    return len(steps)


def a_hole(trial: Trial, every: int, quick: bool) -> int:
    """Two parts in the middle and the last one were deleted; the job that fills them dies."""

    def start() -> None:
        trial.run()
        for number in (2, 3, 8):
            (trial.output / f"part-00000-{number:06d}.parquet").unlink()

    small = {**OPTIONS, "part_rows": 3}
    work = lambda: embed(trial.truth.inputs, trial.output, encoder(), **small)  # noqa: E731
    steps = trial.steps(work, start)
    for at, outcome in points(steps, every, quick):
        if trial.die(work, at, outcome, start):
            trial.check(f"hole, step {at}, {steps[at]}, {outcome}", trial.run)
    return len(steps)


def restarting(trial: Trial, every: int, quick: bool) -> int:
    """`restart` of a finished job with another model dies; then either job goes on, never both."""
    new = encoder(model="other")

    def work() -> None:
        embed(trial.truth.inputs, trial.output, new, restart=True, **OPTIONS)

    steps = trial.steps(work, trial.run)
    for at, outcome in points(steps, every, quick):
        if not trial.die(work, at, outcome, trial.run):
            continue
        point = f"restart, step {at}, {steps[at]}, {outcome}"
        went_on = 0
        for one in (encoder(), new):
            with contextlib.suppress(ValueError):
                embed(trial.truth.inputs, trial.output, one, **OPTIONS)
                went_on += 1
        if went_on != 1:
            trial.failures.append(f"{point}: {went_on} jobs went on")
        trial.check(point, work)
    return len(steps)


def two_tasks(trial: Trial, every: int, quick: bool) -> int:
    """The task that writes the manifest dies; the other one runs, then it is resumed."""

    def work() -> None:
        embed(trial.truth.inputs, trial.output, encoder(), task=(1, 2), **OPTIONS)

    def both() -> None:
        embed(trial.truth.inputs, trial.output, encoder(), task=(2, 2), **OPTIONS)
        work()

    steps = trial.steps(work, lambda: None)
    for at, outcome in points(steps, every, quick):
        if trial.die(work, at, outcome, lambda: None):
            trial.check(f"task 1/2, step {at}, {steps[at]}, {outcome}", both, tasks=2)
    return len(steps)


@contextlib.contextmanager
def planted(fault: str) -> Iterator[None]:
    """The package with a fault that the points must find."""
    with pytest.MonkeyPatch.context() as patch:
        if fault == "rename first":

            @contextlib.contextmanager
            def write(self: Any, name: str) -> Iterator[Any]:
                path = self._path / f".{name}.tmp"
                with path.open("wb") as file:
                    yield file
                    file.flush()
                    os.replace(path, self._path / name)
                    os.fsync(file.fileno())
                folder.sync_folder(self._path)

            patch.setattr(folder.LocalFolder, "write", write)
        elif fault == "no folder sync":
            patch.setattr(folder, "sync_folder", lambda path: None)
        elif fault == "one row twice":
            found = resuming.find_gaps

            def gaps(*args: Any) -> Any:
                return [
                    gap._replace(
                        start=gap.start._replace(row=max(0, gap.start.row - 1), offset=None)
                    )
                    for gap in found(*args)
                ]

            patch.setattr(resuming, "find_gaps", gaps)
        elif fault == "order":  # right counts, and each row has its own vector
            flush = cutter.Part._flush

            def reversed_flush(self: Any) -> None:
                if self.footer.number == 5:
                    for rows in (self._rows, self._vectors, self._tokens, self._cut):
                        rows.reverse()
                flush(self)

            patch.setattr(cutter.Part, "_flush", reversed_flush)
        elif fault == "rejects last":
            patch.setattr(cutter.Part, "commit", _rejects_last)
        yield


def _rejects_last(part: Any, after: Any, rest: Any = None, end: bool = False) -> Any:
    rejects, part._reject_files = part._reject_files, contextlib.ExitStack()
    footer = _COMMIT(part, after, rest, end)
    rejects.close()
    part._reject_files.close()
    return footer


_COMMIT = cutter.Part.commit
PLANTED = ("rename first", "no folder sync", "one row twice", "order", "rejects last")
PARTS = {"job": one_job, "hole": a_hole, "restart": restarting, "tasks": two_tasks}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sample", type=int, default=1, metavar="N", help="every Nth point only")
    parser.add_argument("--quick", action="store_true", help="one outcome per step, few writes")
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--planted", choices=PLANTED, default="", help="a fault to be found")
    given = parser.parse_args()
    counts = {}
    os.fsync = lambda handle: None  # which bytes are safe is known here, without waiting for a disk
    with tempfile.TemporaryDirectory() as home, planted(given.planted):
        trial = Trial(Path(home))
        trial.run()
        if found := wrong(trial.output, trial.truth):
            trial.failures.append(f"without a fault: {found}")
        for name in given.only or PARTS:
            before = trial.died
            steps = PARTS[name](trial, given.sample, given.quick)
            counts[name] = [steps, trial.died - before]
    said = {"counts": counts, "died": trial.died, "failures": trial.failures}
    sys.stdout.write(json.dumps(said) + "\n")
    return bool(trial.failures)


if __name__ == "__main__":
    sys.exit(main())
