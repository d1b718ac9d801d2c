"""Compare kernels and whole models on a GPU with their peers; results are lines of JSON.

    python -m bench.gpu --part gemm --out build/gpu.jsonl --minutes 9

Cases that the file has, measured or failed, are skipped, so the same call continues where the last
one stopped. --retry repeats failed cases; use another file to measure everything again. Exit code
0: all cases are measured. 1: a case failed, or ours is wrong. 2: wrong arguments, or no GPU. 3:
time is up, and cases are left.
"""

import argparse
import sys
from collections.abc import Sequence

from bench.gpu.machine import Parser, open_ledger
from bench.gpu.plan import SECONDS
from bench.gpu.runner.supervise import MISTAKE, Stage, Supervisor
from bench.throughput import MODELS

PARTS = tuple(SECONDS)
# Seconds until a case counts as hung; the first case of whole models builds a checkpoint and
# compiles.
LIMIT = 400.0
FOREVER = 1e9


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser("bench.gpu", __doc__)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS, metavar="NAME",
                        help=f"only these: {', '.join(PARTS)}")  # fmt: skip
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME",
                        help="for models, latency, stream: as in bench.throughput")  # fmt: skip
    parser.add_argument("--minutes", type=float, metavar="N", help="end after N minutes")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--slow", action="store_true",
                        help="add torch.compile's max-autotune; takes minutes")  # fmt: skip
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    try:
        ledger = open_ledger(args.out, args.dry, args.retry)
    except (OSError, ValueError) as error:
        print(f"bench.gpu: {error}", file=sys.stderr)
        return MISTAKE
    options = {
        "dry": args.dry,
        "match": args.match,
        "models": [*args.models],
        "scratch": str(args.scratch),
        "compile": not args.no_compile,
        "slow": args.slow,
    }
    stages = [Stage(part, "bench.gpu.plan:cases", FOREVER, LIMIT) for part in args.part]
    return Supervisor(ledger, stages, options, args.minutes).run()


if __name__ == "__main__":
    sys.exit(main())
