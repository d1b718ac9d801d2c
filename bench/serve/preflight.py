"""Before a run: is the server there, does it speak the dialect, what is its model called?"""

import time

import orjson

from bench.serve.client import Address, Connection, Reply
from bench.serve.dialects import PATHS, Variant, WrongAnswer
from bench.serve.load import Server, Stop

TEXT = "a text before the run"
# Infinity lists its models next to the prefix of its URL
MODELS = ("/v1/models", "/models")
READY = ("/health/ready", "/health")


class Unusable(RuntimeError):
    """A server cannot be measured. The message says why."""


async def get(server: Server, path: str, timeout: float) -> Reply:
    """The reply to a GET request on a connection of its own."""
    connection = Connection(server.address)
    try:
        return await connection.ask(server.address.get(path, server.key), timeout)
    finally:
        connection.close()


async def model_of(server: Server, timeout: float) -> str:
    """The first model that a server lists; "model" if it lists none."""
    for path in MODELS:
        reply = await get(server, path, timeout)
        try:
            if reply.status == 200:
                return str(orjson.loads(reply.body)["data"][0]["id"])
        except (ValueError, KeyError, IndexError, TypeError):
            continue
    return "model"


async def ready_path(server: Server, timeout: float) -> str | None:
    """The path that reports readiness; None if the server has none."""
    for path in READY:
        if (await get(server, path, timeout)).status == 200:
            return path
    return None


async def ask(server: Server, variant: Variant, texts: list[str], timeout: float) -> Reply:
    """The reply to a single request on a connection of its own."""
    connection = Connection(server.address)
    body = variant.body(server.model, texts)
    head = server.address.head(PATHS[variant.dialect], server.key)
    try:
        return await connection.ask(b"%b%d\r\n\r\n%b" % (head, len(body), body), timeout)
    finally:
        connection.close()


def fault(reply: Reply, variant: Variant, count: int, address: Address) -> str:
    """What is wrong with a reply; "" if nothing is."""
    if reply.error:
        return f"{address.url}: no answer ({reply.error}); is the server running there?"
    if reply.status != 200:
        path = f"{address.prefix}{PATHS[variant.dialect]}"
        hint = {
            401: "; give --api-key",
            404: f"; has it POST {path}? See --url, --dialect and --model",
        }.get(reply.status, "")
        shown = reply.body[:300].decode("utf-8", "replace")
        return f"{address.url}: status {reply.status} for {variant}: {shown}{hint}"
    try:
        variant.vectors(reply.body, count)
    except WrongAnswer as error:
        return f"{address.url}: {error}"
    return ""


async def check(
    server: Server, variant: Variant | None, *, timeout: float, wait: float, stop: Stop
) -> None:
    """Wait until a server answers, find its model, and try one request.

    Args:
        server: its model is set if it is empty.
        variant: of the request; None: only look whether anything answers.
        timeout: of each attempt, in seconds.
        wait: seconds during which no answer, 503 and 404 are no errors.
        stop: ends the waiting.

    Raises: Unusable: the server is not there, or answers something else.
    """
    end = time.perf_counter() + wait
    named, address = server.model, server.address
    while True:
        server.model = named or await model_of(server, timeout)
        if variant is None:
            reply = await get(server, READY[0], timeout)
            problem = "" if reply.status in (200, 404) else fault(reply, Variant(), 1, address)
        else:
            reply = await ask(server, variant, [TEXT], timeout)
            problem = fault(reply, variant, 1, address)
        if not problem:
            return
        waits = reply.error or reply.status in (404, 503)
        if stop or not waits or time.perf_counter() >= end:
            raise Unusable(problem)
        await stop.sleep(0.2)
