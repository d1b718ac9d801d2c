"""Whole models in turns with other libraries: all cases of several checkpoints, into one file.

    python -m bench.throughput --out bench/results/throughput-cpu.jsonl --models nomic-v1.5 minilm

A model is a row of tests/variants.py, built in full size with random weights, or `minilm`, whose
real weights come with a package, or a folder. What the file has already is not measured again, so a
run that was stopped goes on where it was; remove lines to measure them anew.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from nomicbert.cli.demo import packaged_weights
from nomicbert.keywords import as_device
from nomicbert.throughput import lines as found
from nomicbert.throughput.memory import CASE, measure_memory
from nomicbert.throughput.peers import dtypes_of
from nomicbert.throughput.plan import Checkpoint, Options
from nomicbert.throughput.run import check, run
from nomicbert.throughput.workloads import NAMES

MINILM = "minilm"
MODELS = ("nomic-v1.5", "conan-v1", MINILM)
ALL = "all"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.throughput", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="lines of JSON")
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME")
    parser.add_argument("--cases", nargs="+", default=NAMES, metavar="NAME")
    parser.add_argument("--dtypes", nargs="+", metavar="NAME")
    parser.add_argument("--peers", nargs="+", metavar="NAME", help="only these beside ours")
    parser.add_argument("--tokens", type=int, default=4096, help="of a case, about")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--together",
        action="store_true",
        help="load the peers of all dtypes at once for latency cases: takes memory",
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile too: takes minutes")
    parser.add_argument("--memory", action="store_true", help="measure peak memory as well")
    parser.add_argument(
        "--scratch",
        type=Path,
        default=Path("build/throughput"),
        metavar="FOLDER",
        help="where checkpoints and exported models are kept",
    )
    return parser.parse_args(arguments)


def folder_of(model: str, scratch: Path) -> Path:
    """The folder of a model, built if it is not there."""
    if Path(model).is_dir():
        return Path(model)
    if model == MINILM:
        return packaged_weights()
    from tests.checkpoints import build_checkpoint

    folder = scratch / "checkpoints" / model
    # written last, so that a build that was stopped is done again
    if not (folder / "complete").is_file():
        build_checkpoint(folder, model, size="full")
        (folder / "complete").touch()
    return folder


def missing(path: Path, model: str, options: Options) -> list[Options]:
    """The options cut into those parts that a file has no lines of yet."""
    known = found.read(path) if path.is_file() else []
    done = {(line["model"], line["case"], line["group"]) for line in known}
    latency = [c for c in options.cases if options.together and c.startswith("latency-")]
    others = [case for case in options.cases if case not in latency]
    parts = []
    for dtype in options.dtypes:
        cases = [case for case in others if (model, case, dtype) not in done]
        parts += [replace(options, cases=cases, dtypes=[dtype])] if cases else []
    cases = [case for case in latency if (model, case, ALL) not in done]
    return [*parts, replace(options, cases=cases)] if cases else parts


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    place = as_device(args.device)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for model in args.models:
        name = Path(model).name
        options = Options(
            cases=args.cases,
            dtypes=args.dtypes or dtypes_of(place),
            families=args.peers,
            tokens=args.tokens,
            rounds=args.rounds,
            threads=args.threads,
            device=place,
            cache=args.scratch / "exports" / name,
            slow=args.compile,
            together=args.together,
        )
        check(options)
        checkpoint = Checkpoint.of(name, folder_of(model, args.scratch))
        for part in missing(args.out, name, options):
            for line in run(checkpoint, part, lambda what: print(f"  {what}", flush=True)):
                found.write([line], args.out)
                rate = line.get("tokens_per_second")
                said = line["reason"] if rate is None else f"{rate:,.0f} tokens/s"
                print(f"{name} {line['case']}: {line['peer']} {line['dtype']}: {said}", flush=True)
        known = found.read(args.out) if args.out.is_file() else []
        if args.memory and not any(x["model"] == name and x["case"] == CASE for x in known):
            found.write(measure_memory(checkpoint, options), args.out)


if __name__ == "__main__":
    main()
