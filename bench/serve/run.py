"""What all subcommands share: servers, workload, messages and lines of results."""

import functools
import itertools
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from bench.serve import records
from bench.serve.dialects import Variant
from bench.serve.load import Server, Stop, Target
from bench.serve.tally import Tally
from bench.serve.texts import WORKLOADS, Texts, Workload, first_number

BUSY = 0.8  # share of a core above which the client may be the limit


@dataclass
class Run:
    """One call of the command.

    Attributes:
        options: of the command line.
        servers: under load.
        stop: set by Ctrl-C.
        numbers: of requests; never twice the same, for any server.
        first: number of the first request.
        lines: written so far.
    """

    options: Namespace
    servers: list[Server]
    stop: Stop
    numbers: Iterator[int] = field(init=False)
    first: int = field(init=False)
    lines: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        given = self.options.first
        self.first = first_number() if given is None else given
        self.numbers = itertools.count(self.first)

    @property
    def variants(self) -> list[Variant]:
        """The dialects and the format of the command line."""
        options = self.options
        return [
            Variant(dialect, options.format, dimensions=options.dimensions)
            for dialect in options.dialect
        ]

    def target(self, server: Server, workload: Workload | None = None) -> Target:
        """A server and the requests for it; by default of the workload of the command line."""
        options = self.options
        texts = _drawn(workload or WORKLOADS[options.workload], options.seed, options.repeat)
        return Target(server, texts, self.variants, self.numbers, options.timeout)

    def say(self, what: str) -> None:
        """A line of progress."""
        print(what, file=sys.stderr, flush=True)

    def complain(self, name: str, tally: Tally, busy: float | None = None) -> None:
        """Say what makes figures doubtful."""
        if tally.example:
            self.say(f"  {name}: first failure: {tally.example}")
        if tally.answered and tally.counted == tally.answered:
            share = tally.tokens / tally.drawn
            if not 0.95 <= share <= 1.05:
                self.say(
                    f"  {name}: usage is {share:.2f}x the tokens drawn: a prompt, or no tokens"
                )
        if busy is not None and busy > BUSY:
            self.say(f"  the client used {busy:.0%} of a core: it may be the limit")

    def write(self, **figures: Any) -> None:
        """Write a line of results."""
        line = {
            "subcommand": self.options.subcommand,
            **records.surroundings(),
            "flags": records.flags(self.options),
            "first": self.first,
            "interrupted": bool(self.stop),
            **figures,
        }
        self.lines.append(line)
        records.write(self.options.out, line)


@functools.lru_cache
def _drawn(workload: Workload, seed: int, repeat: int) -> Texts:
    return Texts(workload, seed, repeat)
