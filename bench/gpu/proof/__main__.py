"""Check and measure the kernels on this machine's GPU in a few minutes.

    python -m bench.gpu.proof --out FOLDER/proof.jsonl --minutes 8

Nothing is installed, and the network is not used. FOLDER gets these files: proof.jsonl, a line for
each begin and end of a case; summary.txt, rewritten after each stage; proof.log, the output of the
stages; launch/ARCH.json, the winning launch settings. The same call continues where the last one
stopped. Exit code 0: all cases are ok. 1: a case is wrong, failed or hung. 2: wrong arguments, or
no GPU. 3: time is up, and cases are left.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.gpu.machine import Parser, open_ledger
from bench.gpu.proof.stages import budget, stages
from bench.gpu.proof.summary import write
from bench.gpu.runner.supervise import MISTAKE, Supervisor

DRY_MINUTES = 30.0


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    names = [stage.name for stage in stages(False)]
    parser = Parser("bench.gpu.proof", __doc__)
    parser.add_argument("--minutes", type=float, metavar="N",
                        help="end after N minutes; default 8, in a dry run 30")  # fmt: skip
    parser.add_argument("--stage", nargs="+", choices=names, default=names, metavar="NAME",
                        help=f"only these: {', '.join(names)}")  # fmt: skip
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    try:
        ledger = open_ledger(args.out, args.dry, args.retry)
    except (OSError, ValueError) as error:
        print(f"bench.gpu.proof: {error}", file=sys.stderr)
        return MISTAKE
    chosen = [stage for stage in stages(args.dry) if stage.name in args.stage]
    minutes = args.minutes or (DRY_MINUTES if args.dry else budget(stages(False)) / 60)
    prepare(args.scratch)
    options = {
        "dry": args.dry,
        "match": args.match,
        "scratch": str(args.scratch),
        "out": str(args.out.parent.resolve()),
        "ledger": str(args.out.resolve()),
        "arch": architecture(),
    }
    summary = args.out.parent / "summary.txt"
    supervisor = Supervisor(
        ledger, chosen, options, minutes, lambda lines: write(summary, lines, chosen)
    )
    code = supervisor.run()
    print(summary.read_text("utf-8"), end="")
    return code


def prepare(scratch: Path) -> None:
    """Set the children's environment: persistent caches, and no tuned launch table."""
    folder = scratch.resolve()
    os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))
    os.environ["NOMICBERT_LAUNCH"] = str(folder / "no-launch-table")
    os.environ.pop("TRITON_INTERPRET", None)


def architecture() -> str:
    """The architecture to compile for, found without a CUDA context; Hopper if no GPU is seen."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return "sm_90"
    return f"sm_{done.stdout.split()[0].replace('.', '')}"


if __name__ == "__main__":
    sys.exit(main())
