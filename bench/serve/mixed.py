"""Subcommand `mixed`: bulk clients beside single queries, and each of them alone.

The three phases follow each other in every round. Bulk clients are a closed loop. Queries come at
fixed times, each on a free connection, so a slow answer delays no later query.
"""

import asyncio
import time
from argparse import Namespace
from dataclasses import replace

from bench.serve.load import Server, arrivals, closed_loop, open_loop
from bench.serve.records import Cell, table
from bench.serve.run import Run
from bench.serve.tally import Figures, Tally, divided, latencies, medians
from bench.serve.texts import WORKLOADS

PHASES = {"bulk alone": (True, False), "both": (True, True), "queries alone": (False, True)}


async def phase(run: Run, server: Server, *, bulk: bool, queries: bool) -> tuple[Figures, int]:
    """One phase: its figures, and the number of requests without an answer."""
    options, stop = run.options, run.stop
    large = run.target(server, replace(WORKLOADS["bulk"], texts=options.texts))
    small = run.target(server, WORKLOADS["short"])
    asked, answered, lags = Tally(), Tally(), list[float]()
    schedule = arrivals(options.query_rate, options.seconds, "fixed", 0) if queries else iter(())
    connections = options.clients if bulk else 0
    began = time.perf_counter()
    elapsed, _ = await asyncio.gather(
        closed_loop(large, connections, options.seconds, asked, stop),
        open_loop(small, schedule, answered, stop, most=options.most, lags=lags),
    )
    took = time.perf_counter() - began
    figures: Figures = {}
    if bulk:
        found = asked.figures(elapsed)
        figures = {f"bulk_{key}": value for key, value in found.items()}
    if queries:
        figures |= {f"query_{key}": value for key, value in latencies(answered.seconds).items()}
        figures["query_count"] = answered.answered
        figures["query_late_ms"] = latencies(lags)["p99_ms"]
    figures["phase_seconds"] = took
    for tally in (asked, answered):
        run.complain(server.name, tally)
    return figures, asked.sent - asked.answered + answered.sent - answered.answered


async def run(options: Namespace, run: Run) -> int:
    """Measure each server; print medians over the rounds, and ratios."""
    rows: list[list[Cell]] = []
    bad = 0
    for server in run.servers:
        rounds: dict[str, list[Figures]] = {name: [] for name in PHASES}
        unanswered = 0
        for number in range(options.rounds):
            for name, (bulk, queries) in PHASES.items():
                if run.stop:
                    break
                figures, missing = await phase(run, server, bulk=bulk, queries=queries)
                rounds[name].append(figures)
                unanswered += missing
                run.say(f"{server.name}, round {number + 1}: {name} measured")
        middle = {name: medians(found) for name, found in rounds.items()}
        rate = "bulk_drawn_tokens_per_second"
        alone, both, single = middle.values()
        kept = divided(both.get(rate), alone.get(rate))
        slower = divided(both.get("query_p50_ms"), single.get("query_p50_ms"))
        for name, found in middle.items():
            rows.append(
                [server.name, name, found.get("bulk_tokens_per_second"), found.get(rate)]
                + [found.get(key) for key in ("bulk_p50_ms", "query_p50_ms", "query_p99_ms")]
            )
        rows.append([server.name, "both / alone", None, kept, None, slower])
        rows[-1].append(divided(both.get("query_p99_ms"), single.get("query_p99_ms")))
        bad += unanswered
        run.write(
            server=server.name,
            url=server.address.url,
            rounds=rounds,
            medians=middle,
            bulk_kept=kept,
            query_p50_ratio=slower,
            unanswered=unanswered,
        )
    heads = ("server", "phase", "bulk tokens/s", "bulk drawn/s", "bulk p50 ms")
    print(table((*heads, "query p50 ms", "query p99 ms"), rows))
    if bad:
        run.say(f"{bad} requests were not answered")
    return 1 if bad else 0
