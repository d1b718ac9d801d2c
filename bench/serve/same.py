"""Subcommand `same`: many different requests at once give the bits that each gives alone.

A cache of vectors would make this pass by itself: the server must run without one. Where its
metrics count hits of a cache, a hit fails the run.
"""

import asyncio
import random
import re
from argparse import Namespace
from dataclasses import dataclass, replace
from typing import Any

from bench.serve.client import Connection
from bench.serve.dialects import PATHS, Variant, Vectors, WrongAnswer, differing_bits
from bench.serve.load import Server
from bench.serve.preflight import Unusable, ask, fault, get
from bench.serve.records import table
from bench.serve.run import Run
from bench.serve.texts import WORKLOADS, Texts

HITS = re.compile(rb"^nomicbert_cache_hits_total(?:\{[^}]*\})? ([0-9.e+]+)", re.M)
TASKS = ("search_query", "search_document", "classification", "clustering")
MOST_TEXTS = 8
ODD = (
    "na\u00efve caf\u00e9 \u00fcber",
    "\u4e2d\u6587\u6587\u672c\u7684\u5411\u91cf",
    "a",
    "\U0001f600 ok",
)


@dataclass(frozen=True)
class Request:
    """A request, and how its texts are asked for."""

    variant: Variant
    texts: list[str]


def variants(dialects: list[str], dimensions: list[int]) -> list[Variant]:
    """Every combination of dialect, format, dimensions, and prompt or normalisation."""
    sizes = [None, *dimensions]
    found = []
    for size in sizes:
        if "openai" in dialects:
            found += [Variant("openai", form, size) for form in ("float", "base64")]
            found += [Variant("openai", "base64", size, lone=True)]
        if "tei" in dialects:
            found += [Variant("tei", dimensions=size, prompt=p) for p in (None, *TASKS[:2])]
            found += [Variant("tei", dimensions=size, normalize=False)]
        if "nomic" in dialects:
            found += [Variant("nomic", dimensions=size, prompt=task) for task in TASKS]
        if "cohere" in dialects:
            found += [Variant("cohere", dimensions=size, prompt=task) for task in TASKS]
        if "ollama" in dialects:
            found += [Variant("ollama", dimensions=size, lone=lone) for lone in (False, True)]
    if "rerank" in dialects:
        found.append(Variant("rerank"))
    return found


async def usable(run: Run, server: Server, found: list[Variant]) -> list[Variant]:
    """The variants that the server answers; the others are named on stderr."""
    taken: list[Variant] = []
    absent: set[str] = set()
    for variant in found:
        if variant.dialect in absent:
            continue
        reply = await ask(server, variant, ["which variants are there"], run.options.timeout)
        if problem := fault(reply, variant, 1, server.address):
            run.say(f"left out: {problem}")
            # a 404 before any answer means that the route is not there
            if reply.status == 404 and variant.dialect not in {one.dialect for one in taken}:
                absent.add(variant.dialect)
        else:
            taken.append(variant)
    if not taken:
        raise Unusable(f"{server.address.url}: no variant of a request is answered")
    return taken


def draw(found: list[Variant], count: int, first: int, seed: int) -> list[Request]:
    """Requests of 1 to MOST_TEXTS texts of mixed lengths; each variant occurs equally often."""
    rng = random.Random(seed)
    texts = Texts(replace(WORKLOADS["mixed"], texts=MOST_TEXTS), seed)
    drawn = []
    for place in range(count):
        variant = found[place % len(found)]
        some, _ = texts.request(first + place)
        some = some[: 1 if variant.lone else rng.randint(1, MOST_TEXTS)]
        if rng.random() < 0.1:
            some[0] = f"{rng.choice(ODD)} {place}"
        drawn.append(Request(variant, some))
    rng.shuffle(drawn)
    return drawn


async def answers(
    run: Run, server: Server, drawn: list[Request], connections: int, order: list[int]
) -> list[Vectors | str]:
    """The vectors of each request, or what went wrong, with `connections` at once."""
    found: list[Vectors | str] = ["not sent"] * len(drawn)
    left = iter(order)
    pool = [Connection(server.address) for _ in range(connections)]

    async def work(connection: Connection) -> None:
        for place in left:
            if run.stop:
                return
            request = drawn[place]
            body = request.variant.body(server.model, request.texts)
            head = server.address.head(PATHS[request.variant.dialect], server.key)
            sent = b"%b%d\r\n\r\n%b" % (head, len(body), body)
            reply = await connection.ask(sent, run.options.timeout)
            if problem := fault(reply, request.variant, len(request.texts), server.address):
                found[place] = problem
                continue
            try:
                found[place] = request.variant.vectors(reply.body, len(request.texts))
            except WrongAnswer as error:
                found[place] = str(error)

    await asyncio.gather(*(work(connection) for connection in pool))
    for connection in pool:
        connection.close()
    return found


def compare(together: list[Vectors | str], alone: list[Vectors | str]) -> dict[str, Any]:
    """Counts of requests compared, without an answer, of other shapes, and of differing bits."""
    found: dict[str, Any] = {"compared": 0, "unanswered": 0, "shapes": 0, "differing": 0, "bits": 0}
    found |= {"largest_difference": 0.0, "example": ""}
    for one, other in zip(together, alone, strict=True):
        if isinstance(one, str) or isinstance(other, str):
            found["unanswered"] += 1
            said = one if isinstance(one, str) else str(other)
            found["example"] = found["example"] or said
            continue
        found["compared"] += 1
        if one.shape != other.shape:
            found["shapes"] += 1
            continue
        bits = differing_bits(one, other)
        found["bits"] += bits
        found["differing"] += bits > 0
        largest = max(found["largest_difference"], float(abs(one - other).max()))
        found["largest_difference"] = largest
    return found


async def cache_hits(server: Server, timeout: float) -> float | None:
    """Hits of the server's cache so far; None if its metrics do not say."""
    reply = await get(server, "/metrics", timeout)
    found = HITS.findall(reply.body) if reply.status == 200 else []
    return sum(float(value) for value in found) if found else None


async def run(options: Namespace, run: Run) -> int:
    """Compare on each server; 1 if a bit differs or a request was not answered twice."""
    rows, bad = [], 0
    for server in run.servers:
        found = await usable(run, server, variants(options.dialects, options.sizes))
        drawn = draw(found, options.requests, run.first, options.seed)
        order = list(range(len(drawn)))
        before = await cache_hits(server, options.timeout)
        together = await answers(run, server, drawn, options.at_once, order)
        random.Random(options.seed + 1).shuffle(order)
        alone = await answers(run, server, drawn, 1, order)
        after = await cache_hits(server, options.timeout)
        result = compare(together, alone)
        hits = after - before if after is not None and before is not None else None
        if hits:
            run.say(f"{server.name}: {hits:.0f} hits of its cache: start it without one")
        if result["example"]:
            run.say(f"{server.name}: first request without an answer: {result['example']}")
        wrong = result["bits"] or result["shapes"] or result["unanswered"] or hits
        bad += bool(wrong or not result["compared"])
        keys = ("compared", "unanswered", "shapes", "differing", "bits", "largest_difference")
        rows.append([server.name, len(found), *(result[key] for key in keys)])
        run.write(
            server=server.name,
            url=server.address.url,
            variants=[str(variant) for variant in found],
            cache_hits=hits,
            **result,
        )
    heads = ("server", "variants", "compared", "unanswered", "other shapes", "differing", "bits")
    print(table((*heads, "largest difference"), rows))
    return 1 if bad else 0
