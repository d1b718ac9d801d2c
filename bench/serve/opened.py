"""Subcommands `open` and `soak`: a given rate, far beyond the capacity or below it for long.

The capacity is measured first, by a closed loop, where the rate is a multiple of it ("10x").
"""

import asyncio
import time
from argparse import Namespace
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.serve import process
from bench.serve.closed import measure
from bench.serve.dialects import WrongAnswer, differing_bits
from bench.serve.load import Server, Target, arrivals, open_loop
from bench.serve.preflight import ask, get, ready_path
from bench.serve.records import Cell, table
from bench.serve.run import Run
from bench.serve.tally import Tally, divided, latencies, slope

COSINE = 0.9999  # below it, a vector under load is wrong
POLL = 0.02  # seconds between two questions whether the server is ready again
PROBE = 0.25  # the same under load
LATE_MS = 20.0  # the client kept up if it sent 99% of the requests this close to their times

Line = dict[str, Any]


@dataclass
class Readiness:
    """The answers of the route that reports readiness.

    Attributes:
        path: None if the server has none.
        probes, unready: questions under load, and those that 200 did not answer.
        seconds: from the last request until 200; None: not within the timeout.
    """

    path: str | None
    probes: int = 0
    unready: int = 0
    seconds: float | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def follow(self, server: Server, timeout: float) -> None:
        """Ask while the load lasts, and after its end until 200."""
        if self.path is None:
            return
        while not self.ended.is_set():
            self.probes += 1
            self.unready += (await get(server, self.path, timeout)).status != 200
            with suppress(asyncio.TimeoutError, TimeoutError):
                await asyncio.wait_for(self.ended.wait(), PROBE)
        began = time.perf_counter()
        while time.perf_counter() < began + timeout:
            if (await get(server, self.path, timeout)).status == 200:
                self.seconds = time.perf_counter() - began
                return
            await asyncio.sleep(POLL)


async def capacity(run: Run, server: Server) -> float:
    """Answered requests per second of a closed loop. 0 if none was answered."""
    options = run.options
    figures, tally = await measure(
        run.target(server), options.connections, options.capacity_seconds, run.stop
    )
    run.complain(server.name, tally)
    found = figures["requests_per_second"] or 0.0
    run.say(f"{server.name}: {found:,.1f} requests/s at {options.connections} connections")
    return found


async def loaded(run: Run, server: Server, rate: float, seconds: float) -> Line:
    """Load one server at a rate; return all figures."""
    options, stop = run.options, run.stop
    target, tally, lags = run.target(server), Tally(), list[float]()
    target.kept = {}
    pid = server.pid
    line: Line = {"rate": rate}
    if pid is not None:
        line |= process.threads(pid)
        line |= {"rss_before_mb": process.rss(pid), "open_before": process.descriptors(pid)}
    ready = Readiness(await ready_path(server, options.timeout))
    following = asyncio.create_task(ready.follow(server, min(5.0, options.timeout)))
    used = process.cpu_seconds(pid) if pid is not None else None
    own = time.process_time()
    schedule = arrivals(rate, seconds, options.spacing, options.seed)
    async with process.Watch(pid, options.sample_every) as watch:
        began = time.perf_counter()
        tally.until = began + seconds
        elapsed = await open_loop(
            target, schedule, tally, stop, most=options.most, lags=lags, ended=ready.ended
        )
    own = time.process_time() - own
    await following
    if used is not None and pid is not None:
        used = process.cpu_seconds(pid) - used
        await stop.sleep(options.settle)
        line |= {
            "rss_peak_mb": watch.peak,
            "rss_after_mb": process.rss(pid),
            "open_after": process.descriptors(pid),
            "rss_slope_mb_per_minute": steady_slope(watch, options.after),
            "rss_every_second": [[round(t), round(size, 1)] for t, size in thinned(watch)],
            "cpu_ms_per_request": divided(used * 1000, tally.answered),
        }
    sent_for = min(seconds, elapsed)
    return line | {
        **tally.counts(),
        **tally.figures(elapsed),
        "goodput": divided(tally.within, sent_for),
        "refusals": latencies(tally.refusals),
        "late": latencies(lags),
        "client_busy": divided(own, elapsed),
        "ready_path": ready.path,
        "ready_probes": ready.probes,
        "unready_probes": ready.unready,
        "ready_seconds": ready.seconds,
        **({} if stop else await compared(target)),
    }


async def compared(target: Target) -> dict[str, int]:
    """Ask for each kept answer again, alone: count those that differ."""
    found = {"compared": 0, "wrong": 0, "differing": 0}
    for number, body in (target.kept or {}).items():
        texts, _ = target.texts.request(number)
        variant = target.variant(number)
        reply = await ask(target.server, variant, texts, target.timeout)
        if reply.status != 200:
            continue
        found["compared"] += 1
        try:
            alone = variant.vectors(reply.body, len(texts))
            loaded = variant.vectors(body, len(texts))
        except WrongAnswer:
            found["wrong"] += 1
            continue
        if alone.shape != loaded.shape:
            found["wrong"] += 1
            continue
        dots = (alone * loaded).sum(1)
        norms = np.linalg.norm(alone, axis=1) * np.linalg.norm(loaded, axis=1)
        found["wrong"] += not bool((dots >= COSINE * norms).all())
        found["differing"] += differing_bits(alone, loaded) > 0
    return found


def steady_slope(watch: process.Watch, after: float) -> float | None:
    """Growth of the memory in MB per minute, without the first `after` seconds."""
    late = [(at / 60, size) for at, size in zip(watch.times, watch.sizes, strict=True)]
    late = [one for one in late if one[0] * 60 >= after]
    return slope([at for at, _ in late], [size for _, size in late])


def thinned(watch: process.Watch) -> list[tuple[float, float]]:
    """One sample per second."""
    found: dict[int, tuple[float, float]] = {}
    for at, size in zip(watch.times, watch.sizes, strict=True):
        found.setdefault(int(at), (at, size))
    return list(found.values())


def problems(line: Line) -> list[str]:
    """What is wrong with a run, whatever the rate."""
    found = [] if line["balanced"] else ["the counts do not balance"]
    found += [f"{line['failed']} failed: {line['failed_by_kind']}"] if line["failed"] else []
    found += [f"{line['timed_out']} timed out"] if line["timed_out"] else []
    if line.get("wrong"):
        found.append(f"{line['wrong']} of {line['compared']} vectors wrong")
    return found


def report(run: Run, server: Server, line: Line) -> bool:
    """Print what is wrong, and what is only doubtful; return whether anything is wrong."""
    found = problems(line)
    for what in found:
        run.say(f"{server.name}: {what}")
    if line["example"]:
        run.say(f"{server.name}: first failure: {line['example']}")
    late = line["late"]["p99_ms"]
    if late is not None and late > LATE_MS:
        run.say(f"{server.name}: sent late, p99 {late:.0f} ms, counted as latency: see --most")
    return bool(found)


async def run_open(options: Namespace, run: Run) -> int:
    """Load each server in turn, and print what became of the requests."""
    rows: list[list[Cell]] = []
    bad = 0
    for server in run.servers:
        known = None
        rate = options.rate.value
        if options.rate.times:
            known = await capacity(run, server)
            if not known:
                run.say(f"{server.name}: nothing was answered, so there is no capacity to multiply")
                bad += 1
                continue
            rate *= known
        line = await loaded(run, server, rate, options.seconds)
        line["capacity"] = known
        line["goodput_of_capacity"] = divided(line["goodput"], known)
        bad += report(run, server, line)
        rows += [[key, server.name, line.get(key)] for key in OPEN_ROWS]
        rows += [["refusals p99_ms", server.name, line["refusals"]["p99_ms"]]]
        rows += [["late p99_ms", server.name, line["late"]["p99_ms"]]]
        run.write(server=server.name, url=server.address.url, **line)
    print(table(("figure", "server", "value"), rows))
    return 1 if bad else 0


OPEN_ROWS = (
    *("capacity", "rate", "sent", "answered", "refused", "failed", "timed_out", "goodput"),
    *("goodput_of_capacity", "p50_ms", "p99_ms", "max_ms", "tokens_per_second"),
    *("rss_before_mb", "rss_peak_mb", "rss_after_mb", "open_before", "open_after"),
    *("unready_probes", "ready_seconds", "compared", "wrong", "differing"),
)


async def run_soak(options: Namespace, run: Run) -> int:
    """Load each server at a share of its capacity for minutes; print how its memory grew."""
    rows: list[list[Cell]] = []
    bad = 0
    heads = (
        *("server", "rate/s", "minutes", "answered", "refused", "failed", "p50 ms", "p99 ms"),
        *("RSS MB before", "after", "MB/min", "open before", "after"),
    )
    for server in run.servers:
        rate = options.rate.value
        if options.rate.times:
            rate *= await capacity(run, server)
        if not rate:
            run.say(f"{server.name}: nothing was answered, so there is no capacity to multiply")
            bad += 1
            continue
        line = await loaded(run, server, rate, options.minutes * 60)
        bad += report(run, server, line)
        keys = ("rss_before_mb", "rss_after_mb", "rss_slope_mb_per_minute")
        failed = line["failed"] + line["timed_out"]
        rows.append(
            [server.name, rate, options.minutes, line["answered"], line["refused"], failed]
            + [line[key] for key in ("p50_ms", "p99_ms")]
            + [line.get(key) for key in (*keys, "open_before", "open_after")]
        )
        run.write(server=server.name, url=server.address.url, **line)
    print(table(heads, rows))
    return 1 if bad else 0
