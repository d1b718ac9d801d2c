"""The two kinds of load: closed loops, and an open loop.

In a closed loop a connection sends its next request when the last is answered, so a slow server is
asked less. In an open loop the times of sending are fixed beforehand, and latency counts from them:
a request that had to wait for its turn has waited (no coordinated omission).
"""

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from bench.serve.client import Address, Connection, Reply
from bench.serve.dialects import PATHS, Variant
from bench.serve.tally import CHECKED, Tally
from bench.serve.texts import Texts

PAUSE = 0.05  # seconds before a closed loop tries again after an error of the network
GRACE = 1.0  # seconds that requests in flight get after Ctrl-C
KEPT, MOST = 4, 100  # one answer in 4 is kept where answers are kept, 100 at most
SLICE = 0.2  # seconds of sleep between two looks at the stop
TIMER = 0.0015  # timers of event loops round to milliseconds
RARE = 100  # requests per second up to which an open loop spins for the rest of a sleep


@dataclass
class Server:
    """A server under load.

    Attributes:
        name: in tables.
        address: where it listens.
        model: sent with each request.
        pid: of its process, if its CPU time and memory are wanted.
        key: for the Authorization field.
    """

    name: str
    address: Address
    model: str
    pid: int | None = None
    key: str | None = None


@dataclass
class Stop:
    """Ends all loops early: Ctrl-C sets `now`."""

    now: bool = False

    def __bool__(self) -> bool:
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Sleep, but little longer than until the stop."""
        end = time.perf_counter() + seconds
        while not self.now and (left := end - time.perf_counter()) > 0:
            await asyncio.sleep(min(left, SLICE))


@dataclass
class Target:
    """What is asked of a server, and how.

    Attributes:
        server: asked.
        texts: of the requests.
        variants: dialect, format and so on; requests take them in turn.
        numbers: of requests; shared, so that no text is sent twice.
        timeout: seconds.
        kept: takes the answers to some requests, by number; None: none is kept.
    """

    server: Server
    texts: Texts
    variants: Sequence[Variant]
    numbers: Iterator[int]
    timeout: float
    kept: dict[int, bytes] | None = None
    heads: dict[str, bytes] = field(init=False)

    def __post_init__(self) -> None:
        address, key = self.server.address, self.server.key
        self.heads = {name: address.head(path, key) for name, path in PATHS.items()}

    def variant(self, number: int) -> Variant:
        """How the request of this number is asked."""
        return self.variants[number % len(self.variants)]

    def request(self) -> tuple[bytes, int, int]:
        """The bytes of the next request, its number, and its tokens."""
        number = next(self.numbers)
        texts, drawn = self.texts.request(number)
        variant = self.variant(number)
        body = variant.body(self.server.model, texts)
        head = self.heads[variant.dialect]
        return b"%b%d\r\n\r\n%b" % (head, len(body), body), number, drawn

    async def send(self, connection: Connection, tally: Tally, began: float | None = None) -> Reply:
        """Send the next request and count what becomes of it.

        Args:
            connection: free.
            tally: takes the outcome.
            began: time.perf_counter() from which its latency counts; None: now.
        """
        request, number, drawn = self.request()
        began = time.perf_counter() if began is None else began
        tally.sent += 1
        reply = await connection.ask(request, self.timeout)
        tally.add(
            reply,
            began,
            variant=self.variant(number),
            texts=self.texts.workload.texts,
            drawn=drawn,
            check=number % CHECKED == 0,
        )
        kept = self.kept
        if kept is not None and reply.status == 200 and number % KEPT == 0 and len(kept) < MOST:
            kept[number] = reply.body
        return reply


async def closed_loop(
    target: Target, connections: int, seconds: float, tally: Tally, stop: Stop
) -> float:
    """Keep `connections` requests in flight; return the seconds until the last was answered."""
    pool = [Connection(target.server.address) for _ in range(connections)]
    await asyncio.gather(*(connection.open(target.timeout) for connection in pool))
    began = last = time.perf_counter()
    end = began + seconds

    async def keep_asking(connection: Connection) -> None:
        nonlocal last
        while time.perf_counter() < end and not stop:
            reply = await target.send(connection, tally)
            last = max(last, reply.ended)
            if reply.error:
                await stop.sleep(PAUSE)

    await _finish([asyncio.create_task(keep_asking(one)) for one in pool], pool, stop)
    return last - began


def arrivals(rate: float, seconds: float, spacing: str, seed: int) -> Iterator[float]:
    """Times of sending in seconds from the start, at `rate` per second.

    Args:
        rate: mean number of requests per second.
        seconds: the last is before this.
        spacing: "poisson" (exponential gaps) or "fixed".
        seed: of the gaps.
    """
    rng = random.Random(seed)
    at = 0.0
    while at < seconds:
        yield at
        at += rng.expovariate(rate) if spacing == "poisson" else 1 / rate


class Pool:
    """Connections of an open loop: a free one, else a new one, up to `most`."""

    def __init__(self, address: Address, most: int) -> None:
        self.address, self.most = address, most
        self.free: list[Connection] = []
        self.all: list[Connection] = []
        self._turns = asyncio.Semaphore(most)

    async def send(
        self, target: Target, tally: Tally, began: float, lags: list[float], stop: Stop
    ) -> None:
        """Send one request as soon as a connection is free."""
        async with self._turns:
            if stop:
                return
            if not self.free:
                self.free.append(Connection(self.address))
                self.all.append(self.free[-1])
            connection = self.free.pop()
            lags.append(time.perf_counter() - began)
            await target.send(connection, tally, began)
            self.free.append(connection)


async def open_loop(
    target: Target,
    times: Iterator[float],
    tally: Tally,
    stop: Stop,
    *,
    most: int,
    lags: list[float],
    ended: asyncio.Event | None = None,
) -> float:
    """Send requests at given times.

    Args:
        target: asked.
        times: ascending, in seconds from now.
        tally: takes the outcomes; set its `until` before.
        stop: ends early.
        most: connections at once; further requests wait for one, and this counts as latency.
        lags: takes the seconds between the intended and the actual time of each request.
        ended: set when the last request is due.

    Returns: the seconds until the last answer.
    """
    pool = Pool(target.server.address, most)
    tasks: set[asyncio.Task[None]] = set()
    began = time.perf_counter()
    for number, at in enumerate(times):
        due = began + at
        spins = number <= RARE * at
        wait = due - time.perf_counter()
        if wait > 0:
            await stop.sleep(wait - TIMER if spins else wait)
            while spins and time.perf_counter() < due and not stop:
                await asyncio.sleep(0)
        elif number % 32 == 0:
            await asyncio.sleep(0)  # a late sender must not keep answers waiting
        if stop:
            break
        task = asyncio.create_task(pool.send(target, tally, due, lags, stop))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    if ended is not None:
        ended.set()
    await _finish(list(tasks), pool.all, stop)
    return time.perf_counter() - began


async def _finish(
    tasks: list[asyncio.Task[None]], connections: list[Connection], stop: Stop
) -> None:
    """Wait for all requests; after a stop only GRACE seconds, then end them as interrupted."""
    pending = set(tasks)
    while pending and not stop:
        _, pending = await asyncio.wait(pending, timeout=SLICE)
    if pending:
        await asyncio.wait(pending, timeout=GRACE)
    for connection in connections:
        connection.close()
    await asyncio.gather(*tasks)  # raises what a task has raised
