"""Peak memory of a peer, loaded and run in a process of its own.

The figure is the peak resident set: Python and its libraries, the weights in all forms during
loading, and the work on the case. Every process also imports torch (about 0.2 GB), even for peers
that do not need it.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from nomicbert.benchmark.batching import by_count
from nomicbert.benchmark.exports import MADE
from nomicbert.benchmark.lines import ABSENT, MEASURED, Line, surroundings
from nomicbert.benchmark.peers import PEERS, AbsentError, choose
from nomicbert.benchmark.plan import Checkpoint, Options
from nomicbert.benchmark.workloads import shortest

CASE = "memory"
# The case, and the texts per batch for peers that pad.
WORKLOAD, BATCH = "passages", 32
STATUS = Path("/proc/self/status")
# Limit of characters of a failed process's error message.
LONGEST_REASON = 160


def measure_memory(checkpoint: Checkpoint, options: Options) -> Iterator[Line]:
    """Yield a line per peer with the field `peak_bytes`, or with the reason why it has none.

    Args:
        checkpoint: the checkpoint to load.
        options: peers, dtypes, tokens, threads, device, and a cache for exported models.

    Raises: ValueError: no cache; a checkpoint whose texts are too short for WORKLOAD.
    """
    if options.cache is None:
        raise ValueError(
            "peak memory needs a cache of exported models: exporting must not count as the peer's "
            "memory"
        )
    case = checkpoint.case(WORKLOAD, options.tokens, options.device)
    if case is None:
        raise ValueError(
            f"peak memory is measured on {WORKLOAD}, which have at least {shortest(WORKLOAD)} "
            f"tokens: this checkpoint's texts have at most {checkpoint.longest}"
        )
    options.cache.mkdir(parents=True, exist_ok=True)
    around = surroundings(options.device)
    around["machine"]["threads"] = options.threads
    for peer in choose(options.families, options.dtypes, options.device, options.slow):
        given = {
            "name": checkpoint.name,
            "folder": str(checkpoint.folder),
            "peer": peer.name,
            "tokens": options.tokens,
            "threads": options.threads,
            "device": str(options.device),
            "cache": str(options.cache),
        }
        found = _alone(given)
        if found.pop("exported", False):
            found = _alone(given)
            found.pop("exported", None)
        status = MEASURED if "peak_bytes" in found else ABSENT
        yield {
            "model": checkpoint.name,
            "case": CASE,
            "group": CASE,
            "peer": peer.family,
            "dtype": peer.dtype,
            "status": status,
            "reason": None,
            "tokens": case.tokens,
            "texts": len(case.texts),
            **found,
            **around,
        }


def peak() -> int:
    """Peak resident set of this process in bytes.

    On Linux it is read from VmHWM, because ru_maxrss also includes the parent's memory at fork.
    """
    if STATUS.is_file():
        line = next(x for x in STATUS.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _alone(given: Mapping[str, Any]) -> dict[str, Any]:
    """Run `main` in a process of its own; returns its result, or the reason if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "nomicbert.benchmark.memory", json.dumps(given)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        # a traceback ends with the error; a process killed by the system leaves no output
        said = done.stderr.strip().splitlines()
        why = said[-1][-LONGEST_REASON:] if said else f"exit code {done.returncode}"
        return {"reason": f"failed: {why}"}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main(given: Mapping[str, Any]) -> dict[str, Any]:
    """Load and run one peer; returns its peak memory, and whether that includes an export."""
    peer = next(peer for peer in PEERS if peer.name == given["peer"])
    torch.set_num_threads(given["threads"])
    checkpoint = Checkpoint.of(given["name"], Path(given["folder"]))
    device = torch.device(given["device"])
    case = checkpoint.case(WORKLOAD, given["tokens"], device)
    assert case is not None
    # the same inputs of exports as in `run`, so that its cached exports are found
    options = Options((WORKLOAD,), threads=given["threads"], device=device)
    setting = checkpoint.setting(options, Path(given["cache"]))
    with setting.closing:
        try:
            runner = peer.load(setting)
        except AbsentError as error:
            return {"reason": str(error)}
        ways = runner.ways(case)
        runner.vectors(case, ways[0] if len(ways) == 1 else by_count(case.lengths, BATCH))
    return {"peak_bytes": peak(), "exported": setting.loaded.get(MADE, False)}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))  # noqa: T201
