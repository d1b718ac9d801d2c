"""Mark a launch table as proven by the results of a run on such a GPU.

    python -m bench.gpu.proven FOLDER

FOLDER has the results: gpu-ARCH.json of `make gpu`, and proof.jsonl of `make gpu-proof`. The table
of ARCH is marked if all of these hold:

- both ran the present kernels on the same kind of GPU;
- no test failed, and all tests of values, gradients, graphs and models passed (the heaviest may be
  left out);
- every case of the stages smoke and parity is ok;
- every row of the table was in it during the run, or was raced and correct at every size.

Exit code 0: marked. 1: not marked, and the reasons are listed. 2: wrong arguments or files.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.gpu.digests import row_digest, rows, sources
from bench.gpu.place import Place
from bench.gpu.proof import parity, smoke
from bench.gpu.proof.winners import means, measured
from bench.gpu.runner.ledger import OK, Ledger, ends
from nomicbert_kernels import launch

ROOT = Path(__file__).parents[2]
FILES = ("test_values.py", "test_graphs.py", "test_models.py", "test_gradients.py")
# Slow cases, which a run may leave out; if they were run they have to pass.
HEAVY = ("longest", "queries")
DONE, REFUSED, MISTAKE = 0, 1, 2


def objections(arch: str, tests: Mapping[str, Any], ledger: Ledger) -> Iterator[str]:
    """Yield each reason not to mark a table.

    Args:
        arch: whose table.
        tests: gpu-ARCH.json.
        ledger: proof.jsonl.
    """
    done, ran = ends(ledger.lines()), tests["machine"]
    gpu = done.get(("baseline", "machine"), {}).get("machine", {}).get("gpu")
    if not ran.get("gpu"):
        yield "the tests did not run on a GPU"
    if gpu != ran.get("gpu"):
        yield f"the tests ran on {ran.get('gpu')}, the proof on {gpu}"
    if ran.get("sources") != sources():
        yield "the tests ran other kernels than the present ones"
    for name, entry in tests["tests"].items():
        if entry["verdict"] == "failed":
            yield f"failed: {name}: {entry.get('reason', '')}"
    passed = {name for name, entry in tests["tests"].items() if entry["verdict"] == "passed"}
    missing = [name for name in wanted() if name not in passed]
    if missing:
        yield f"{len(missing)} tests have not passed, such as {missing[0]}"
    for key in cases():
        line = done.get(key, {"status": "not run"})
        if line["status"] != OK:
            yield f"stage {key[0]}: {key[1]}: {line['status']}"
        elif line.get("sources") != sources():
            yield f"stage {key[0]}: {key[1]}: it ran other kernels"
    raced = [line for line in done.values() if line.get("sources") == sources()]
    known = {*ran.get("rows", []), *raced_rows(raced)}
    unknown = [row for row in rows(arch) if row not in known]
    if unknown:
        yield f"{len(unknown)} rows of the table were neither in it during the run nor raced"


def cases() -> list[tuple[str, str]]:
    """Stage and name of each case of the proof run that has to be ok."""
    ops = [name for name, _ in smoke.calls(Place.on_paper(dry=False))]
    return [*(("smoke", name) for name in ops), *(("parity", name) for name in parity.CHECKS)]


def raced_rows(entries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Digests of the rows that were correct at every size of their contest in stage variants."""
    groups = measured(entries)
    for name, variants in means(entries).items():
        for variant, row in groups[name][0]["rows"].items():
            if variant in variants:
                yield row_digest(row)


def wanted() -> list[str]:
    """The pytest names of the tests that have to pass."""
    command = [sys.executable, "-m", "pytest", "--import-mode=importlib", "--collect-only", "-q"]
    command += ["-m", "gpu", "-p", "no:cacheprovider", *(f"tests/gpu/{name}" for name in FILES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    names = [line for line in done.stdout.splitlines() if "::" in line]
    if done.returncode or not names:
        raise ValueError(f"the tests cannot be collected: {done.stdout[-300:]}{done.stderr[-300:]}")
    return [name for name in names if not any(word in name for word in HEAVY)]


def mark(arch: str, tests: Mapping[str, Any]) -> Path:
    """Mark the table of an architecture as proven, with the facts of the run."""
    path = launch.TABLES / f"{arch}.json"
    stored = json.loads(path.read_text("utf-8"))["rows"]
    ran = tests["machine"]
    by = {
        "gpu": ran["gpu"],
        "date": tests["date"],
        "commit": ran["commit"],
        "versions": ran["versions"],
        "sources": sources(),
        "rows": [row_digest(row) for row in stored],
    }
    text = ",\n".join(json.dumps(row) for row in stored)
    head = f'{{"proven": true, "by": {json.dumps(by)}, "rows": ['
    path.write_text(f"{head}\n{text}\n]}}\n", encoding="utf-8")
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.proven", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", type=Path, help="with gpu-ARCH.json and proof.jsonl")
    folder = parser.parse_args(arguments).folder
    try:
        path = next(folder.glob("gpu-*.json"), folder / "gpu-ARCH.json")
        arch = path.stem.removeprefix("gpu-")
        tests = json.loads(path.read_text("utf-8"))
        if not (launch.TABLES / f"{arch}.json").is_file():
            raise ValueError(f"{arch} has no launch table of its own")
        found = list(objections(arch, tests, Ledger(folder / "proof.jsonl")))
    except (OSError, ValueError) as error:
        print(f"bench.gpu.proven: {error}", file=sys.stderr)
        return MISTAKE
    if found:
        print(f"{arch} is not proven by {folder}:", *found, sep="\n  ")
        return REFUSED
    print(f"{mark(arch, tests)} is marked as proven, by {tests['machine']['gpu']}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
