"""Run a subcommand: see `python -m bench.serve --help`."""

import asyncio
import os
import resource
import signal
import string
import sys
from argparse import Namespace
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from bench.serve import closed, encode, mixed, opened, options, same
from bench.serve.client import Address
from bench.serve.load import Server, Stop
from bench.serve.preflight import Unusable, check
from bench.serve.run import Run

COMMANDS: dict[str, Callable[[Namespace, Run], Awaitable[int]]] = {
    "closed": closed.run,
    "encode": encode.run,
    "mixed": mixed.run,
    "open": opened.run_open,
    "same": same.run,
    "soak": opened.run_soak,
}


def servers_of(given: Namespace) -> list[Server]:
    """The servers of the command line.

    Raises: ValueError: a URL that cannot be used; no such process.
    """
    count = len(given.url)
    names = given.name or list(string.ascii_uppercase)
    if count > len(names):
        raise ValueError(f"{count} servers: name them with --name")
    models, pids = given.model or [""] * count, given.pid or [None] * count
    for pid in pids:
        if pid is not None and not os.path.isdir(f"/proc/{pid}"):
            raise ValueError(f"--pid {pid}: there is no such process")
    return [
        Server(name, Address.parse(url), model, pid, given.api_key)
        for name, url, model, pid in zip(names, given.url, models, pids, strict=False)
    ]


async def run(given: Namespace, servers: list[Server]) -> int:
    """Check all servers, then run the subcommand."""
    stop = Stop()
    loop = asyncio.get_running_loop()

    def interrupt() -> None:
        if stop:
            loop.remove_signal_handler(signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        stop.now = True

    loop.add_signal_handler(signal.SIGINT, interrupt)
    one = Run(given, servers, stop)
    for server in servers:
        # `same` tries several dialects by itself
        tried = [None] if given.subcommand == "same" else one.variants
        for variant in tried:
            await check(server, variant, timeout=given.timeout, wait=given.wait, stop=stop)
    return await COMMANDS[given.subcommand](given, one)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; return the exit code."""
    given = options.parse(arguments)
    if given.taskset:
        try:
            os.sched_setaffinity(0, given.taskset)
        except OSError as error:
            print(f"bench.serve: --taskset: {error}", file=sys.stderr)
            return 2
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # the limit may be fixed
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        return _run_loop(given, servers_of(given))
    except (Unusable, ValueError) as error:
        print(f"bench.serve: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _run_loop(given: Namespace, servers: list[Server]) -> int:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(run(given, servers))
    return int(uvloop.run(run(given, servers)))


if __name__ == "__main__":
    sys.exit(main())
