"""3,000 damaged checkpoints: each loads as in the other libraries, or is refused by its name.

`make fuzz` runs 100,000. `python -m tests.fuzz --seed 20241 --only 77` replays case 77.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from nomicbert import ConfigError, Embedder, TextError
from tests.fuzz import outcome, run
from tests.fuzz.batch import case
from tests.fuzz.damage import damage
from tests.fuzz.folders import SOUND
from tests.fuzz.run import Case, Totals

# first case, number of cases, share of the loaded models to compare
PARTS = [(0, 1450, 0.0), (1450, 1450, 0.0), (2900, 100, 1.0)]


@pytest.mark.slow
@pytest.mark.parametrize(("first", "count", "compare"), PARTS)
def test_damaged_checkpoints(first: int, count: int, compare: float, seed: int) -> None:
    totals = Totals()
    for found in run.run(seed, range(first, first + count), 1, compare):
        totals.add(found)
    assert not totals.failures
    assert sum(totals.counts.values()) == count
    # neither all are harmless nor all are fatal
    assert totals.counts["refused"] > count / 4
    assert totals.counts["equal" if compare else "loads"] > count / 8


def test_a_number_replays_a_case(tmp_path: Path) -> None:
    for name, sound in SOUND.items():
        (tmp_path / "home" / name).mkdir(parents=True)
        sound.build(tmp_path / "home" / name)
    twice = [case(tmp_path / f"{i}-{n}", 5, n, tmp_path / "home") for i in "ab" for n in range(30)]
    assert twice[:30] == twice[30:]
    assert len(set(twice)) > 25


def test_damage_leaves_the_sound_folder_alone(tmp_path: Path) -> None:
    """The files of a case are links to those of the sound folder."""
    home = tmp_path / "home"
    for name in ("conan-bin", "shards"):
        (home / name).mkdir(parents=True)
        SOUND[name].build(home / name)
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    for number in range(150):
        rng = random.Random(number)
        name = rng.choice(["conan-bin", "shards"])
        folder = tmp_path / str(number)
        shutil.copytree(home / name, folder, copy_function=os.link)
        damage(folder, rng)
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before


BATCHES = {
    "hang": "say(3, 'begins'); import time; time.sleep(60)",
    "abort": "say(3, 'begins'); import os; os.abort()",
    "raw": "say(3, 'begins'); say(3, 'raw'); say(3, 'ends', '5')",
    "memory": "say(3, 'begins'); say(3, 'memory', '2 GiB')",
    # the other library, after a load
    "loads": "say(3, 'begins'); say(3, 'loads'); import os; os.abort()",
    "equal": "say(3, 'begins'); say(3, 'loads'); say(3, 'equal'); say(3, 'ends', '0')",
}
SAY = """
import sys
def say(number, kind, detail=''):
    print(number, kind, ascii(detail), sep='\\t', flush=True)
if sys.argv[2] == '2':
    say(2, 'begins'); say(2, 'refused'); say(2, 'ends', '0')
    {}
elif sys.argv[2] == '4':
    say(4, 'begins'); say(4, 'equal'); say(4, 'ends', '0')
else:
    say(int(sys.argv[2]), 'begins')
"""


@pytest.mark.parametrize("kind", BATCHES)
def test_the_watcher(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on behind a case that ended or stopped its process."""
    monkeypatch.setattr(run, "PATIENCE", 1.0)
    script = tmp_path / "batch.py"
    script.write_text(SAY.format(BATCHES[kind]))
    cases = range(2, 5)
    if kind in ("raw", "equal"):  # the process lives on
        more = "say(4, 'begins'); say(4, 'equal'); say(4, 'ends', '0')"
        script.write_text(SAY.format(f"{BATCHES[kind]}; {more}"))
    found = list(run.run(1, cases, 1, 0.0, (sys.executable, str(script))))
    assert [(each.number, each.outcome) for each in found] == [
        (2, "refused"),
        (3, kind),
        (4, "equal"),
    ]


def test_a_process_that_fails_between_cases_is_no_success(tmp_path: Path) -> None:
    script = tmp_path / "batch.py"
    script.write_text("raise SystemExit(1)")
    with pytest.raises(RuntimeError, match="a process ended with 1 between cases"):
        list(run.run(1, range(3), 1, 0.0, (sys.executable, str(script))))


class Panic(BaseException):
    pass


def test_judgements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of failure, planted."""
    folder = tmp_path / "case-1"
    SOUND["bge"].build(folder)

    def judged(fail: object, compare: bool = False) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []

        def encode(self: Embedder, texts: list[str]) -> np.ndarray:
            if isinstance(fail, BaseException):
                raise fail
            return fail(sound(self, texts))

        sound = Embedder.encode
        monkeypatch.setattr(Embedder, "encode", encode)
        outcome.judge(folder, SOUND["bge"], lambda *each: found.append(each), compare)
        monkeypatch.undo()
        return found

    assert judged(lambda x: x, compare=True) == [("loads", ""), ("equal", "")]
    assert judged(ConfigError(f"{folder}/config.json: no"))[0][0] == "refused"
    assert judged(ConfigError("config.json: no"))[0][0] == "unnamed"
    advice = f"{folder}: re-run with weights_only=False"
    assert judged(ConfigError(advice))[0][0] == "unnamed"
    assert judged(ValueError(f"{folder}: no"))[0][0] == "raw"
    assert judged(Panic("range end index"))[0] == ("raw", "Panic: range end index")
    assert judged(TextError(0, f"{folder}"))[0][0] == "refused"
    assert judged(lambda x: x * np.nan)[0][0] == "not finite"
    assert judged(lambda x: x * 1.01, compare=True)[1][0] == "differs"
    assert judged(lambda x: x[:, :5], compare=True)[1][0] == "differs"
    monkeypatch.setattr(outcome, "describe", lambda f, **k: (_ for _ in ()).throw(ConfigError(f)))
    assert judged(lambda x: x)[0][0] == "disagrees"


def test_totals() -> None:
    totals = Totals()
    for found in (Case(1, outcome="refused", growth=7), Case(2, outcome="hang", seconds=15.0)):
        totals.add(found)
    assert totals.counts == {"refused": 1, "hang": 1}
    assert [each.number for each in totals.failures] == [2]
    assert (totals.slowest.number, totals.largest.number) == (2, 1)
