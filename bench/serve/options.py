"""The command line."""

import argparse
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.serve.dialects import FORMATS, PATHS
from bench.serve.texts import WORKLOADS

EPILOG = """
exit codes: 0; 1: requests failed, counts or bits are wrong; 2: wrong options, or no such server.
Refusals (429, 503) are no failures. Ctrl-C ends the run and prints what was measured until then;
a second one ends at once. Lines of --out are described in bench/README.md.
"""


@dataclass(frozen=True)
class Rate:
    """Requests per second, or a multiple of the measured capacity."""

    value: float
    times: bool

    def __str__(self) -> str:
        return f"{self.value:g}{'x' if self.times else ''}"


def rate(text: str) -> Rate:
    """Parse "250" or "10x"."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(x?)", text)
    if not found or not float(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no rate: write 250 (per second) or 10x")
    return Rate(float(found[1]), bool(found[2]))


def positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    """A parser of values above 0."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r} must be a number above 0")
        return value

    return parse


def listed(text: str) -> list[int]:
    """Parse "1,32"."""
    if not re.fullmatch(r"\d+(,\d+)*", text) or not all(int(one) for one in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} must be numbers above 0 with commas, as 1,32")
    return [int(one) for one in text.split(",")]


def cores(text: str) -> set[int]:
    """Parse "1", "0,2" or "0-3"."""
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
        raise argparse.ArgumentTypeError(f"{text!r} must be cores, as 1 or 0,2 or 0-3")
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def dialects(text: str) -> list[str]:
    """Parse "openai,tei"."""
    if unknown := set(text.split(",")) - set(PATHS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: not one of {[*PATHS]}")
    return text.split(",")


WHOLE, REAL = positive(int), positive(float)


def parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    top = argparse.ArgumentParser(
        prog="python -m bench.serve",
        description="Load tool of embedding servers. The client never imports nomicbert.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    added = top.add_subparsers(dest="subcommand", required=True, metavar="SUBCOMMAND")

    def add(name: str, about: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        return added.add_parser(
            name,
            help=about,
            description=f"{about[0].upper()}{about[1:]}.",
            epilog=EPILOG,
            parents=list(parents),
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )

    asked, work = _asked(), _work()
    one = add("closed", "N connections, each waits for its answer; compares servers", asked, work)
    one.add_argument("--connections", type=listed, default="1,32", help="numbers, with commas")
    one.add_argument("--seconds", type=REAL, default=10, help="per round")
    one.add_argument("--rounds", type=WHOLE, default=3, help="A B A B ...")
    one.add_argument("--warmup", type=float, default=2, help="seconds before the first round")

    one = add("open", "a fixed rate, far beyond the capacity: balance, goodput, RSS", asked, work)
    one.add_argument("--rate", type=rate, default="10x", help="per second, or 10x the capacity")
    one.add_argument("--seconds", type=REAL, default=20)
    _opened(one, after=0)

    one = add("soak", "a share of the capacity for minutes: growth of memory", asked, work)
    one.add_argument("--rate", type=rate, default="0.5x", help="per second, or of the capacity")
    one.add_argument("--minutes", type=REAL, default=5)
    _opened(one, after=60)

    one = add("mixed", "bulk clients beside single queries, and each alone", asked)
    one.add_argument("--clients", type=WHOLE, default=2, help="bulk connections")
    one.add_argument("--texts", type=WHOLE, default=64, help="per bulk request")
    one.add_argument("--query-rate", type=REAL, default=5, help="queries per second")
    one.add_argument("--seconds", type=REAL, default=15, help="per phase")
    one.add_argument("--rounds", type=WHOLE, default=3)
    one.add_argument("--most", type=WHOLE, default=512, help="connections of queries")

    one = add("same", "differing bits of mixed requests at once and alone; no cache", asked)
    one.add_argument("--requests", type=WHOLE, default=2000)
    one.add_argument("--at-once", type=WHOLE, default=64)
    one.add_argument("--dialects", type=dialects, default="openai,tei,nomic")
    one.add_argument("--sizes", type=listed, default="64,128,256", help="dimensions tried")

    one = add("encode", "Embedder.encode in a process of its own, interleaved with --url", work)
    _servers(one, required=False)
    one.add_argument("--checkpoint", required=True, help="folder or repository")
    one.add_argument("--threads", type=WHOLE, default=1)
    one.add_argument("--texts", type=WHOLE, default=64, help="per call of encode")
    one.add_argument("--cores", type=cores, help="of the encoding process; default: all")
    one.add_argument("--backend", default="auto")
    one.add_argument("--dtype", default="float32")
    one.add_argument("--connections", type=WHOLE, default=32, help="to each --url")
    one.add_argument("--seconds", type=REAL, default=10, help="per round")
    one.add_argument("--rounds", type=WHOLE, default=3)
    return top


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; per-server options get one entry per --url."""
    top = parser()
    options = top.parse_args(arguments)
    count = len(options.url)
    for name in ("name", "pid", "model"):
        given = getattr(options, name)
        if given and len(given) != count:
            top.error(f"--{name} is given {len(given)} times, --url {count} times")
    if options.name and len(set(options.name)) != count:
        top.error("--name must differ for each --url")
    if options.format == "base64" and "openai" not in options.dialect:
        top.error("--format base64 exists in --dialect openai only")
    options.all_cores = os.sched_getaffinity(0)
    vars(options).setdefault("workload", "mixed")
    vars(options).setdefault("repeat", 0)
    return options


def _servers(one: argparse.ArgumentParser, *, required: bool) -> None:
    add = one.add_argument
    # an argument without a default, or the formatter would print "(default: [])"
    add("--url", action="append", required=required, default=[], metavar="URL", help="repeatable")
    add("--name", action="append", metavar="NAME", help="in tables, per --url; else A, B, ...")
    add("--pid", action="append", type=int, metavar="PID", help="per --url: CPU and memory")
    add("--model", action="append", metavar="NAME", help="per --url; else the first listed there")
    add("--dialect", type=dialects, default="openai", help="several with commas take turns")
    add("--format", choices=FORMATS, default="float", help="of the vectors")
    add("--dimensions", type=WHOLE, help="of the vectors")
    add("--api-key", metavar="KEY", help="sent as Authorization: Bearer KEY; never written")
    add("--timeout", type=REAL, default=60, help="seconds per request")
    add("--wait", type=float, default=0, help="seconds to wait for a server to be ready")
    add("--taskset", type=cores, metavar="CORES", help="cores of the client, as 1 or 0-3")
    add("--seed", type=int, default=0, help="of the texts")
    add("--first", type=int, help="number of the first request; default: from the clock")
    add("--out", type=Path, metavar="FILE", help="append lines of JSON")


def _asked() -> argparse.ArgumentParser:
    one = argparse.ArgumentParser(add_help=False)
    _servers(one, required=True)
    return one


def _work() -> argparse.ArgumentParser:
    one = argparse.ArgumentParser(add_help=False)
    one.add_argument("--workload", choices=WORKLOADS, default="passages")
    one.add_argument(
        "--repeat", type=int, default=0, help="send this many distinct requests over and over"
    )
    return one


def _opened(one: argparse.ArgumentParser, *, after: float) -> None:
    add = one.add_argument
    add("--spacing", choices=("poisson", "fixed"), default="poisson")
    add("--connections", type=WHOLE, default=32, help="of the closed loop that finds the capacity")
    add("--capacity-seconds", type=REAL, default=10, help="of that loop")
    add("--most", type=WHOLE, default=4096, help="connections of the open loop")
    add("--settle", type=float, default=2, help="seconds before memory is read at the end")
    add("--after", type=float, default=after, help="seconds left out of the slope of memory")
    add("--sample-every", type=REAL, default=0.1, help="seconds between samples of memory")
