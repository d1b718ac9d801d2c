"""A job whose inputs and parts are in S3 dies at each step that changes the store, and is resumed.

python -m tests.bulk.job.store_deaths --every 1
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.fs as fs

from nomicbert.bulk import stores
from nomicbert.bulk.job import remote_lock
from tests.bulk.job.standin import Hashes, embed
from tests.bulk.job.truth import Truth, build, wrong
from tests.support.s3 import ENVIRONMENT, S3Server, running_s3

ROOT = Path(__file__).parents[3]
ROWS = 10  # of a part
DEAD = 9


class Steps:
    """Counts the steps of this process, and dies at one of them as by kill -9."""

    def __init__(self, die_at: int) -> None:
        self.count = 0
        self._die_at = die_at

    def step(self) -> None:
        if self.count == self._die_at:
            os._exit(DEAD)
        self.count += 1


class Stream:
    """pyarrow's stream, with a step before, between and behind its two halves."""

    def __init__(self, stream: Any, steps: Steps) -> None:
        self._stream, self._steps = stream, steps

    def write(self, data: bytes) -> None:
        middle = len(data) // 2
        self._stream.write(data[:middle])
        self._stream.flush()
        self._steps.step()
        self._stream.write(data[middle:])

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._steps.step()
        self._stream.close()
        self._steps.step()


class System:
    """pyarrow's file system, with steps around all changes."""

    def __init__(self, system: Any, steps: Steps) -> None:
        self._system, self._steps = system, steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._system, name)

    def open_output_stream(self, path: str) -> Stream:
        self._steps.step()
        return Stream(self._system.open_output_stream(path), self._steps)

    def delete_file(self, path: str) -> None:
        self._steps.step()
        self._system.delete_file(path)
        self._steps.step()


def child(output: str, die_at: str, *inputs: str) -> None:
    steps = Steps(int(die_at))
    by_pyarrow = stores._by_pyarrow

    def dying(*arguments: str) -> tuple[Any, str]:
        system, base = by_pyarrow(*arguments)
        return System(system, steps), base

    stores._by_pyarrow = dying
    remote_lock.PAUSE = 0
    encoder = Hashes(truncate="error")
    embed(list(inputs), output, encoder, part_rows=ROWS, on_error="skip")
    sys.stdout.write(f"{steps.count}\n")


class Stored:
    """A job in a bucket of its own."""

    def __init__(self, server: S3Server, home: Path) -> None:
        """`home`: an empty folder for the inputs and what is read back."""
        self._server, self._home = server, home
        self.bucket = server.bucket()
        local = build(home / "in")
        named = {path: f"s3://{self.bucket}/in/{Path(path).name}" for path in local.inputs}
        for path, url in named.items():
            server.put(url.removeprefix("s3://"), Path(path).read_bytes())
        self.truth = Truth(
            list(named.values()),
            [(named[source], row, text) for source, row, text in local.rows],
            [(named[source], row) for source, row in local.rejected],
            local.skipped,
        )

    def run(self, output: str, die_at: int = -1) -> subprocess.CompletedProcess[str]:
        """The job in a process of its own; it prints the number of its steps."""
        command = [sys.executable, "-m", "tests.bulk.job.store_deaths", "--child"]
        environment = {
            **os.environ,
            **ENVIRONMENT,
            "AWS_ENDPOINT_URL": f"http://{self._server.address}",
            "AWS_REGION": "us-east-1",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}",
        }
        return subprocess.run(
            [*command, self.url(output), str(die_at), *self.truth.inputs],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def url(self, output: str) -> str:
        return f"s3://{self.bucket}/{output}/"

    def wrong(self, output: str) -> list[str]:
        """What is wrong with a complete job."""
        system = fs.FileSystem.from_uri(self._server.url(self.bucket))[0]
        copy = self._home / output
        copy.mkdir()
        fs.copy_files(f"{self.bucket}/{output}", str(copy), source_filesystem=system)
        return wrong(copy, self.truth)


def die(job: Stored, at: int) -> list[str]:
    """Die at a step, resume: what is wrong."""
    output = f"out-{at}"
    ended = job.run(output, at)
    if ended.returncode != DEAD:
        return [f"step {at}: not reached: {ended.returncode} {ended.stderr[-500:]}"]
    ended = job.run(output)
    if ended.returncode:
        return [f"step {at}: cannot go on: {ended.stderr[-500:]}"]
    return [f"step {at}: {problem}" for problem in job.wrong(output)]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--every", type=int, default=1)
    given = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    with running_s3() as server, tempfile.TemporaryDirectory() as home:
        job = Stored(server, Path(home))
        undisturbed = job.run("out")
        steps = int(undisturbed.stdout)
        failures = job.wrong("out")
        points = range(0, steps, given.every)
        for at in points:
            failures += die(job, at)
    sys.stdout.write(f"{len(points)} of {steps} steps: {failures or 'all resumed'}\n")
    return bool(failures)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        sys.exit(main())
