"""Run sentence-transformers' own tests, with its classes and with ours: how far we are a drop-in.

    python -m tests.public_suites --source ~/sentence-transformers

SOURCE is a checkout of that library: its tests are run from there, with the library of the same
checkout, and nothing of it is copied. The checkpoints that they load are served on loopback; a
folder with packages that they need and this environment has not (pillow) may be in PYTHONPATH.
Prints, per suite, how many tests pass with their class, and how many of those pass with ours.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.public_suites.stand_ins import fill
from tests.support.fake_hub import FakeHub

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SUITES = {
    "model": "tests/sentence_transformer/test_model.py",
    "multi-process": "tests/sentence_transformer/test_multi_process.py",
    "evaluation": "tests/sentence_transformer/evaluation",
    "cross-encoder": "tests/cross_encoder/test_model.py",
    "cross-encoder-multi-process": "tests/cross_encoder/test_multi_process.py",
    "cross-encoder-evaluation": "tests/cross_encoder/evaluation",
    "hard-negatives": "tests/util/test_hard_negatives.py",
}
Outcomes = dict[str, str]


def main() -> None:
    """Run the suites, print a table and the failures."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--source", type=Path, required=True, help="checkout of that library")
    parser.add_argument("--suite", choices=SUITES, action="append", help="default: all")
    parser.add_argument("--tests", default="", help="pytest's -k")
    parser.add_argument("--why", action="store_true", help="print the tracebacks of our failures")
    parser.add_argument("--out", type=Path, help="write all outcomes to this JSON file")
    given = parser.parse_args()
    hub, kept = FakeHub(), {}
    fill(hub)
    hub.start()
    try:
        with tempfile.TemporaryDirectory() as cache:
            for suite in given.suite or SUITES:
                theirs, ours = (
                    _run(given, suite, classes, hub.endpoint, Path(cache))
                    for classes in ("theirs", "ours")
                )
                kept[suite] = {"theirs": theirs, "ours": ours}
                _report(suite, theirs, ours)
    finally:
        hub.stop()
    if given.out:
        given.out.write_text(json.dumps(kept, indent=1), "utf-8")


def _run(
    given: argparse.Namespace, suite: str, classes: str, endpoint: str, cache: Path
) -> Outcomes:
    """Outcome per test of one suite."""
    source, found = given.source.resolve(), cache / "outcomes.json"
    path = [source, HERE / "plugin", ROOT, ROOT / "kernels", os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "PUBLIC_SUITES_CLASSES": classes,
        "PUBLIC_SUITES_OUTCOMES": str(found),
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(cache / "hub"),
        "HF_HUB_DISABLE_XET": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    options = ["-c", HERE / "plugin" / "pytest.ini", f"--rootdir={source}", "-q", "-p"]
    options += ["replace_classes", "-p", "no:cacheprovider", "-p", "no:benchmark"]
    options += ["-k", given.tests] if given.tests else []
    traced = given.why and classes == "ours"
    options += ["--tb=short" if traced else "--tb=no"]
    command = [sys.executable, "-m", "pytest", *map(str, options), SUITES[suite]]
    found.write_text("{}", "utf-8")
    done = subprocess.run(
        command, cwd=source, env=environment, capture_output=True, text=True, check=False
    )
    if traced or done.returncode not in (0, 1):
        put(done.stdout + done.stderr)
    outcomes: Outcomes = json.loads(found.read_text("utf-8"))
    return outcomes


def _report(suite: str, theirs: Outcomes, ours: Outcomes) -> None:
    passed = [test for test, outcome in theirs.items() if outcome == "passed"]
    failed = [test for test in passed if ours.get(test) != "passed"]
    put(f"{suite}: {len(passed)} pass with their class, {len(passed) - len(failed)} with ours")
    for test in failed:
        put(f"    {ours.get(test, 'not run')}: {test.partition('::')[2]}")


def put(line: str) -> None:
    """Write a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
