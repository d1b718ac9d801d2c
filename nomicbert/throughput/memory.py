"""How much memory a peer takes: it is loaded and run in a process of its own.

What is reported is the most that was resident at any time: Python and its libraries,
the weights in all forms that loading passes through, and the work on the case. Every process also
imports torch, which a peer without it would save: about 0.2 GB.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from nomicbert.throughput.batching import by_count
from nomicbert.throughput.lines import ABSENT, MEASURED, Line, surroundings
from nomicbert.throughput.peers import PEERS, AbsentError, Setting, choose
from nomicbert.throughput.plan import Checkpoint, Options

CASE = "memory"
# The texts, and how many of them a peer that pads gets at once.
WORKLOAD, BATCH = "passages", 32
STATUS = Path("/proc/self/status")


def measure_memory(checkpoint: Checkpoint, options: Options) -> Iterator[Line]:
    """A line for each peer: its field `peak_bytes`, or the reason why it has none.

    Args:
        checkpoint: what is loaded.
        options: the cache, which must hold what was exported; peers, dtypes, tokens, threads.
    """
    around = surroundings(options.device)
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
        done = subprocess.run(
            [sys.executable, "-m", "nomicbert.throughput.memory", json.dumps(given)],
            capture_output=True,
            text=True,
            check=False,
        )
        last = (done.stdout.strip().splitlines() or [""])[-1]
        found = json.loads(last) if done.returncode == 0 else {"reason": done.stderr.strip()[-160:]}
        status = MEASURED if "peak_bytes" in found else ABSENT
        yield {
            "model": checkpoint.name,
            "case": CASE,
            "group": CASE,
            "peer": peer.family,
            "dtype": peer.dtype,
            "status": status,
            "reason": None,
            **found,
            **around,
        }


def peak() -> int:
    """Bytes of this process that were resident at most.

    Linux counts towards ru_maxrss what the parent of a process had, towards VmHWM its own alone.
    """
    if STATUS.is_file():
        line = next(x for x in STATUS.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main(given: dict[str, Any]) -> dict[str, Any]:
    """Load one peer, run it, and say how much was resident."""
    peer = next(peer for peer in PEERS if peer.name == given["peer"])
    torch.set_num_threads(given["threads"])
    checkpoint = Checkpoint.of(given["name"], Path(given["folder"]))
    device = torch.device(given["device"])
    case = checkpoint.case(WORKLOAD, given["tokens"], device)
    assert case is not None
    setting = Setting(
        checkpoint.folder,
        checkpoint.encoder,
        device,
        given["threads"],
        Path(given["cache"]),
        case.ids,
    )
    try:
        runner = peer.load(setting)
    except AbsentError as error:
        return {"reason": str(error)}
    ways = runner.ways(case)
    runner.vectors(case, ways[0] if len(ways) == 1 else by_count(case.lengths, BATCH))
    return {
        "peak_bytes": peak(),
        "tokens": case.tokens,
        "texts": len(case.texts),
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))  # noqa: T201
