"""One process that damages and loads folders; `run` starts it, watches it and starts it again.

Each case writes a line when it begins and one for each outcome, so that the watcher knows which
case ended or stopped the process.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import sys
import tempfile
from pathlib import Path

# Of the libraries, which read them when they are imported: no threads, requests and messages.
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "critical",
}

records = sys.stdout
ROOM = 3 * 2**30  # address space that a case may take, in bytes
GROWTH = 2**30  # resident memory that a case may take, in bytes


def main(arguments: list[str]) -> None:
    """Run cases: seed, first, step, end, share to compare, folder of the sound checkpoints."""
    os.environ.update(SETTINGS)
    import torch

    from tests.fuzz.folders import SOUND

    # libraries may print to stdout, also from compiled code
    global records
    records = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    seed, first, step, end = map(int, arguments[:4])
    share, home = float(arguments[4]), Path(arguments[5])
    torch.set_num_threads(1)
    for name, sound in SOUND.items():
        if not (home / name).is_dir():
            (home / f"{name}.new").mkdir(exist_ok=True)
            sound.build(home / f"{name}.new")
            (home / f"{name}.new").rename(home / name)
    # imports and caches are not counted as growth of a case
    _run(seed, None, home, share > 0)
    _limit()
    base = _peak()
    for number in range(first, end, step):
        say(number, "begins", "")
        _run(seed, number, home, random.Random(f"{seed}:{number}:share").random() < share)
        grown = _peak() - base
        if grown > GROWTH:
            say(number, "memory", f"{grown / 2**20:.0f} MiB")
            return  # the peak of a process never falls
        say(number, "ends", f"{max(grown, 0)}")


def case(folder: Path, seed: int, number: int, home: Path) -> tuple[str, str]:
    """Make the folder of a case; returns the checkpoint's name and what was done to it."""
    from tests.fuzz.damage import damage
    from tests.fuzz.folders import SOUND

    rng = random.Random(f"{seed}:{number}")
    name = rng.choice(sorted(SOUND))
    shutil.copytree(home / name, folder, copy_function=os.link)
    return name, damage(folder, rng)


def _run(seed: int, number: int | None, home: Path, compare: bool) -> None:
    from tests.fuzz.folders import SOUND
    from tests.fuzz.outcome import judge

    if number is None:
        for name, sound in SOUND.items():
            judge(home / name, sound, _must_load(name), compare)
        return
    with tempfile.TemporaryDirectory(prefix="damaged-") as place:
        folder = Path(place, f"case-{number}")
        name, done = case(folder, seed, number, home)
        say(number, "damage", f"{name}: {done}")
        judge(folder, SOUND[name], lambda kind, detail: say(number, kind, detail), compare)


def _must_load(name: str):
    def done(kind: str, detail: str) -> None:
        if kind not in ("loads", "equal"):
            raise AssertionError(f"the sound checkpoint {name}: {kind}, {detail}")

    return done


def say(number: int, kind: str, detail: str) -> None:
    """Write one line for the watcher."""
    records.write(f"{number}\t{kind}\t{detail!a}\n")
    records.flush()


def _limit() -> None:
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, taken + ROOM))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main(sys.argv[1:])
