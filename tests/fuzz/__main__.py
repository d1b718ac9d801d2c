"""Damage many checkpoints and load them: `python -m tests.fuzz --cases 100000`.

Prints how often each outcome occurred, and every failure with what was done to the files. A failure
is replayed by its number: `python -m tests.fuzz --seed 1 --only 1234` keeps the damaged folder.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.outcome import BAD, GOOD, judge
from tests.fuzz.run import Totals, run


def main() -> int:
    """Run, print a table, return 1 if there was a failure."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=None, help="default: a new one")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument(
        "--compare", type=float, default=1.0, help="share of the loaded models to compare"
    )
    parser.add_argument("--only", type=int, help="replay one case in this process")
    given = parser.parse_args()
    seed = secrets.randbelow(10**6) if given.seed is None else given.seed
    if given.only is not None:
        return _replay(seed, given.only)
    totals, began = Totals(), time.monotonic()
    cases = range(given.first, given.first + given.cases)
    for number, found in enumerate(run(seed, cases, given.jobs, given.compare), start=1):
        totals.add(found)
        if found.outcome in BAD:
            put(f"{found.outcome}\tcase {found.number}: {found.damage}\n\t{found.detail}")
        if number % 1000 == 0:
            sys.stderr.write(f"{number} cases, {time.monotonic() - began:.0f} s\n")
    put(f"\nseed {seed}, {given.cases} cases, {time.monotonic() - began:.0f} s")
    for kind in (*GOOD, *BAD):
        put(f"  {kind:<14}{totals.counts[kind]:>8}")
    slow, large = totals.slowest, totals.largest
    put(f"  largest {large.growth / 2**20:.0f} MiB: case {large.number}, {large.damage}")
    put(f"  slowest {slow.seconds:.2f} s: case {slow.number}, {slow.damage}")
    return 1 if totals.failures else 0


def put(line: str) -> None:
    """Write a line, with what no terminal shows escaped."""
    sys.stdout.write(line.encode("ascii", "backslashreplace").decode() + "\n")
    sys.stdout.flush()


def _replay(seed: int, number: int) -> int:
    from tests.fuzz.batch import case
    from tests.fuzz.folders import SOUND

    home, place = Path(tempfile.mkdtemp(prefix="sound-")), Path(tempfile.mkdtemp(prefix="damaged-"))
    for name, sound in SOUND.items():
        (home / name).mkdir()
        sound.build(home / name)
    folder = place / f"case-{number}"
    name, done = case(folder, seed, number, home)
    put(f"{folder}\n{name}: {done}")
    judge(folder, SOUND[name], lambda *found: put(" ".join(found)), compare=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
