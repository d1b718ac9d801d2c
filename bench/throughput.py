"""Whole models interleaved with other libraries: all cases of several checkpoints, into one file.

    python -m bench.throughput --out bench/results/throughput-cpu.jsonl --models nomic-v1.5 minilm

A model is a row of tests/support/variants.py, built in full size with random weights; or `minilm`,
whose real weights come with a package; or a folder. Cases that the file already has are not
measured again, so a stopped run continues where it was; remove a case's lines to repeat it. The
file has a case if it has a line of every peer that would take part now, with the same numbers of
tokens, texts, rounds and threads. Otherwise all peers are measured, and replace the old lines.
With --minutes N no case is started after N minutes, and the cases that are left are printed.
"""

import argparse
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from nomicbert.arguments import as_device
from nomicbert.benchmark import lines as found
from nomicbert.benchmark.lines import Line
from nomicbert.benchmark.memory import CASE, WORKLOAD, measure_memory
from nomicbert.benchmark.peers import Peer, choose, dtypes_of
from nomicbert.benchmark.plan import Checkpoint, Options
from nomicbert.benchmark.run import check, run
from nomicbert.benchmark.workloads import NAMES, Case
from nomicbert.cli.demo import packaged_weights

MINILM = "minilm"
MODELS = ("nomic-v1.5", "conan-v1", MINILM)
Say = Callable[[str], None]
# Whether no case may be started any more.
Over = Callable[[], bool]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.throughput", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="lines of JSON")
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME")
    parser.add_argument("--cases", nargs="+", default=NAMES, metavar="NAME")
    parser.add_argument("--dtypes", nargs="+", metavar="NAME")
    parser.add_argument("--peers", nargs="+", metavar="NAME", help="compare with these only")
    parser.add_argument("--tokens", type=int, default=4096, help="approximate tokens per case")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--together",
        action="store_true",
        help="load the peers of all dtypes at once for latency cases; needs memory",
    )
    parser.add_argument("--compile", action="store_true", help="add torch.compile; takes minutes")
    parser.add_argument(
        "--minutes",
        type=float,
        metavar="N",
        help="start no case after N minutes, and say what is left",
    )
    parser.add_argument("--memory", action="store_true", help="measure peak memory as well")
    parser.add_argument(
        "--scratch",
        type=Path,
        default=Path("build/throughput"),
        metavar="FOLDER",
        help="folder for checkpoints and exported models",
    )
    return parser.parse_args(arguments)


def folder_of(model: str, scratch: Path) -> Path:
    """The folder of a model, built if it is missing."""
    if Path(model).is_dir():
        return Path(model)
    if model == MINILM:
        return packaged_weights()
    from tests.support.checkpoints import build_checkpoint

    folder = scratch / "checkpoints" / model
    if not folder.is_dir():
        # renamed once complete, because other processes may build it too, and any may be killed
        part = folder.with_name(f"{model}.{os.getpid()}.part")
        build_checkpoint(part, model, size="full")
        try:
            part.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(part)
    return folder


def over_after(minutes: float | None) -> Over:
    """Whether so many minutes have passed since this call; None: never."""
    end = math.inf if minutes is None else time.monotonic() + 60 * minutes
    return lambda: time.monotonic() >= end


def measure(
    path: Path, checkpoint: Checkpoint, options: Options, say: Say, over: Over = lambda: False
) -> list[str]:
    """Measure the cases that a file lacks, and add them to it; returns those that are left."""
    known, kept = found.read(path) if path.is_file() else [], []
    cases = {}
    for name in options.cases:
        case = checkpoint.case(name, options.tokens, options.device)
        if case is None:
            say(f"{name} is left out: the model takes at most {checkpoint.longest} tokens per text")
        else:
            cases[name] = case
    parts = []
    for group, dtypes, names in replace(options, cases=list(cases)).groups():
        peers, missing = options.peers(dtypes), []
        for name in names:
            block = answers(known, (checkpoint.name, name, group), cases[name], options, peers, say)
            kept += block
            missing += [] if block else [name]
        parts += [(group, replace(options, cases=missing, dtypes=dtypes))] if missing else []
    if note := strange(kept, options.device):
        say(note)
    left = []
    for group, part in parts:
        waiting = list(part.cases)
        # peers are loaded before the first case
        blocks = iter(()) if over() else run(checkpoint, part, lambda what: say(f"  {what}"))
        for block in blocks:
            found.put(block, path)
            waiting.remove(block[0]["case"])
            for line in block:
                rate = line.get("tokens_per_second")
                said = line["reason"] if rate is None else f"{rate:,.0f} tokens/s"
                say(f"{line['case']}: {line['peer']} {line['dtype']}: {said}")
            if over():
                break
        left += [f"{name} of {group}" for name in waiting]
    return left


def measure_peaks(
    path: Path, checkpoint: Checkpoint, options: Options, say: Say, over: Over = lambda: False
) -> list[str]:
    """Measure peak memory, unless the file has it; returns what is left."""
    known = found.read(path) if path.is_file() else []
    case = checkpoint.case(WORKLOAD, options.tokens, options.device)
    if case is None:
        say(
            f"peak memory is left out: the model takes at most {checkpoint.longest} tokens per text"
        )
        return []
    peers = choose(options.families, options.dtypes, options.device, options.slow)
    kept = answers(known, (checkpoint.name, CASE, CASE), case, options, peers, say)
    if not kept and over():
        return ["peak memory"]
    if not kept:
        say("  peak memory")
        found.put(list(measure_memory(checkpoint, options)), path)
    elif note := strange(kept, options.device):
        say(note)
    return []


def answers(
    known: Sequence[Line],
    key: tuple[str, str, str],
    case: Case,
    options: Options,
    peers: Sequence[Peer],
    say: Say,
) -> list[Line]:
    """The file's lines of a model, case and group if they can be reused; else none."""
    block = [line for line in known if found.block_of(line) == key]
    reason = why_not(block, case, options, peers)
    if block and reason:
        say(f"{key[1]} of {key[2]} is measured again, and its lines replaced: {reason}")
    return [] if reason else block


def why_not(block: Sequence[Line], case: Case, options: Options, peers: Sequence[Peer]) -> str:
    """Why a case's lines cannot be reused; empty if they can."""
    known = {(line["peer"], line["dtype"]) for line in block}
    lacking = [peer.name for peer in peers if (peer.family, peer.dtype) not in known]
    if lacking:
        return f"no line of {', '.join(lacking)}"
    asked = {
        "tokens": case.tokens,
        "texts": len(case.texts),
        "rounds": options.rounds,
        "threads": options.threads,
        "device": options.device.type,
    }
    for line in block:
        machine = line["machine"]
        device = "cuda" if machine["gpu"] else "cpu"
        had = {**asked, **line, "threads": machine["threads"], "device": device}
        for name, value in asked.items():
            if had[name] != value:
                return f"{name} {had[name]}, not {value}"
    return ""


def strange(kept: Sequence[Line], device: torch.device) -> str:
    """Other commits, versions or machines that kept lines come from; empty if none."""
    now = found.surroundings(device)
    commits = {str(line["commit"])[:12] for line in kept if line["commit"] != now["commit"]}
    versions = {
        f"{name} {value}"
        for line in kept
        for name, value in line["versions"].items()
        if value != now["versions"].get(name)
    }
    places = ("cpu", "gpu", "instructions")
    others = any(line["machine"][key] != now["machine"][key] for line in kept for key in places)
    said = [f"commit {name}" for name in sorted(commits)] + sorted(versions)
    said += ["another machine"] if others else []
    return f"lines that are kept come from {', '.join(said)}" if said else ""


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    over, left = over_after(args.minutes), []
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
        if over():
            # not even its folder is made
            left.append(f"{name}: cases that the file lacks")
            continue
        checkpoint = Checkpoint.of(name, folder_of(model, args.scratch))

        def say(what: str, name: str = name) -> None:
            print(f"{name}: {what}", flush=True)

        missing = measure(args.out, checkpoint, options, say, over)
        if args.memory:
            missing += measure_peaks(args.out, checkpoint, options, say, over)
        if missing:
            left.append(f"{name}: {', '.join(missing)}")
    if left:
        print("left, to be measured by the same command:", *left, sep="\n  ", flush=True)


if __name__ == "__main__":
    main()
