"""`kill -9` at random times: one job many times, and eight tasks, two at a time.

python -m tests.bulk.job.kills --kills 100 --seed 7
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa

from tests.bulk.job.standin import Hashes, embed, parts_of
from tests.bulk.job.truth import Truth, build, wrong

ROOT = Path(__file__).parents[3]
ROWS = 23  # of a part
WINDOW = 7
TASKS = 8
# Seconds at most between the end of a process's imports and its kill.
LATEST = 0.5


def start(output: Path, truth: Truth, delay: float, task: str = "") -> subprocess.Popen[str]:
    """The job, or a task of it, as a process."""
    command = [sys.executable, "-m", "tests.bulk.job.kills", "--child", str(output), str(delay)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    return subprocess.Popen(
        [*command, task, *truth.inputs],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill(process: subprocess.Popen[str], draw: random.Random) -> bool:
    """Kill a process at a random time: whether it was still running."""
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(draw.uniform(0, LATEST))
    running = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return running


def finish(process: subprocess.Popen[str]) -> list[str]:
    """Wait for the end: what went wrong."""
    said, _ = process.communicate()
    return [f"ended with {process.returncode}: {said[-500:]}"] if process.returncode else []


def in_parts(output: Path) -> bool:
    """Whether a part is being written."""
    return any(output.glob(".part-*.tmp"))


def one_job(home: Path, kills: int, draw: random.Random) -> tuple[int, int, list[str]]:
    """Kill a job at random until it has died `kills` times, then let it end."""
    truth = build(home / "in", scale=10)
    output = home / "out"
    # the work of all processes that are killed
    delay = kills * LATEST / 2 / (len(truth.rows) / WINDOW)
    killed = inside = 0
    while killed < kills:
        killed += kill(start(output, truth, delay), draw)
        inside += in_parts(output)
        if len(parts_of(output)) * ROWS > len(truth.rows) and killed < kills:
            # nearly done too early: some parts are lost
            for path in draw.sample(parts_of(output), 10):
                path.unlink()
    failures = finish(start(output, truth, 0.0))
    return killed, inside, failures + wrong(output, truth)


def eight_tasks(home: Path, draw: random.Random) -> tuple[int, list[str]]:
    """Two tasks at a time, each killed once and begun again."""
    truth = build(home / "in", scale=5)
    output = home / "out"
    killed, failures = 0, []
    for first in range(1, TASKS, 2):
        names = [f"{first}/{TASKS}", f"{first + 1}/{TASKS}"]
        running = [start(output, truth, 0.2, name) for name in names]
        for index, name in enumerate(names):
            killed += kill(running[index], draw)
            running[index] = start(output, truth, 0.001, name)
        for process in running:
            failures += finish(process)
    return killed, failures + wrong(output, truth, TASKS)


def child(output: str, delay: str, task: str, *inputs: str) -> None:
    pa.array(["text"])  # imports pandas, if there is one, which takes longer than all the rest
    sys.stdout.write("imported\n")
    sys.stdout.flush()
    index, _, count = task.partition("/")
    embed(
        list(inputs),
        Path(output),
        Hashes(WINDOW, truncate="error", delay=float(delay)),
        task=(int(index), int(count)) if task else None,
        part_rows=ROWS,
        on_error="skip",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    draw = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as home:
        Path(home, "one").mkdir()
        Path(home, "eight").mkdir()
        killed, inside, failures = one_job(Path(home, "one"), given.kills, draw)
        tasks_killed, tasks_failures = eight_tasks(Path(home, "eight"), draw)
    right = "every row once, in order, with its own vector"
    sys.stdout.write(
        f"one job killed {killed} times, {inside} of them inside a part: {failures or right}\n"
        f"{TASKS} tasks killed {tasks_killed} times: {tasks_failures or right}\n"
    )
    return bool(failures or tasks_failures)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        sys.exit(main())
