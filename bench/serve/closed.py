"""Subcommand `closed`: throughput and latency at a fixed number of connections."""

import time
from argparse import Namespace
from dataclasses import dataclass, field
from typing import Any

from bench.serve import process
from bench.serve.load import Server, Stop, Target, closed_loop
from bench.serve.records import Cell, table, times
from bench.serve.run import Run
from bench.serve.tally import Figures, Tally, medians, ratios

HEADS = (
    *("connections", "server", "requests/s", "tokens/s", "drawn/s", "p50 ms", "p99 ms"),
    *("CPU ms/request", "client us/request", "refused", "failed"),
)
SHOWN = (
    *("requests_per_second", "tokens_per_second", "drawn_tokens_per_second"),
    *("p50_ms", "p99_ms", "cpu_ms_per_request", "client_us_per_request"),
)


@dataclass
class Measured:
    """The rounds of one server at one number of connections."""

    server: Server
    rounds: list[Figures] = field(default_factory=list)
    counts: list[dict[str, Any]] = field(default_factory=list)

    def line(self) -> dict[str, Any]:
        """For a line of results."""
        about = process.threads(self.server.pid) if self.server.pid is not None else {}
        return {
            "name": self.server.name,
            "url": self.server.address.url,
            **about,
            "median": medians(self.rounds),
            "rounds": self.rounds,
            "counts": self.counts,
        }

    def total(self, key: str) -> int:
        """A count over all rounds."""
        return sum(int(counts[key]) for counts in self.counts)


async def measure(
    target: Target, connections: int, seconds: float, stop: Stop
) -> tuple[Figures, Tally]:
    """One round: its figures and its counts."""
    tally, pid = Tally(), target.server.pid
    before = process.cpu_seconds(pid) if pid is not None else 0.0
    own = time.process_time()
    elapsed = await closed_loop(target, connections, seconds, tally, stop)
    own = time.process_time() - own
    figures = tally.figures(elapsed)
    count = tally.answered
    used = process.cpu_seconds(pid) - before if pid is not None else None
    figures["cpu_ms_per_request"] = used * 1000 / count if used is not None and count else None
    figures["client_us_per_request"] = own * 1e6 / tally.sent if tally.sent else None
    figures["client_busy"] = own / elapsed if elapsed > 0 else None
    return figures, tally


async def run(options: Namespace, run: Run) -> int:
    """Measure all servers, round-robin, at each number of connections."""
    rows: list[list[Cell]] = []
    bad = 0
    for connections in options.connections:
        found = [Measured(server) for server in run.servers]
        if options.warmup:
            for server in run.servers:
                await measure(run.target(server), connections, options.warmup, run.stop)
        for number in range(options.rounds):
            for one in found:
                if run.stop:
                    break
                figures, tally = await measure(
                    run.target(one.server), connections, options.seconds, run.stop
                )
                one.rounds.append(figures)
                one.counts.append(tally.counts())
                rate = figures["requests_per_second"]
                run.say(
                    f"{connections} connections, round {number + 1}, {one.server.name}: "
                    f"{rate:,.1f} requests/s"
                )
                run.complain(one.server.name, tally, figures["client_busy"])
        first, others = found[0], found[1:]
        compared = {
            f"{first.server.name} / {other.server.name}": ratios(first.rounds, other.rounds)
            for other in others
        }
        rows += [_row(connections, one) for one in found]
        rows += [
            [str(connections), name, *(times(ratio.get(key)) for key in SHOWN), "", ""]
            for name, ratio in compared.items()
        ]
        bad += sum(one.total("failed") + one.total("timed_out") for one in found)
        run.write(connections=connections, servers=[one.line() for one in found], ratios=compared)
    print(table(HEADS, rows))
    return 1 if bad else 0


def _row(connections: int, one: Measured) -> list[Cell]:
    middle = medians(one.rounds)
    failed = one.total("failed") + one.total("timed_out")
    figures = [middle.get(key) for key in SHOWN]
    return [str(connections), one.server.name, *figures, one.total("refused"), failed]
