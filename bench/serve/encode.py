"""Subcommand `encode`: `Embedder.encode` without a server, interleaved with servers if given.

It runs in a process of its own, on the texts of the same workload. The rate counts the tokens of
our tokenizer, without a prompt.
"""

import asyncio
import json
import os
import signal
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from bench.serve.closed import Measured, measure
from bench.serve.preflight import Unusable
from bench.serve.records import Cell, table, times
from bench.serve.run import Run
from bench.serve.tally import Figures, divided, medians, ratios
from bench.serve.texts import NUMBERS

ROOT = Path(__file__).parents[2]
RATE = "tokens_per_second"
COMPARED = ("texts_per_second", "cpu_ms_per_text")


class Encoder:
    """The process that encodes."""

    def __init__(self, process: asyncio.subprocess.Process, about: dict[str, Any]) -> None:
        self.process, self.about = process, about

    @classmethod
    async def start(cls, options: Namespace) -> "Encoder":
        """Load the checkpoint.

        Raises: Unusable: it cannot be loaded.
        """
        words = [sys.executable, "-m", "bench.serve.encode_worker", "--model", options.checkpoint]
        words += ["--threads", str(options.threads), "--workload", options.workload]
        words += ["--texts", str(options.texts), "--seed", str(options.seed)]
        words += ["--backend", options.backend, "--dtype", options.dtype]
        # --taskset is for the client only, and would be inherited
        chosen = options.cores or options.all_cores
        words += ["--cores", ",".join(str(core) for core in sorted(chosen))]
        paths = [str(ROOT), str(ROOT / "kernels"), *sys.path]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "OMP_NUM_THREADS": str(options.threads),
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
            # Ctrl-C is for this process, which ends the other
            start_new_session=True,
        )
        found = cls(process, {})
        try:
            found.about = await found.read()
        except Unusable:
            await found.end()
            raise
        return found

    async def read(self) -> dict[str, Any]:
        """A line of its output.

        Raises: Unusable: it says that it failed, or has ended.
        """
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        if not line:
            raise Unusable(f"the encoding process ended with {await self.process.wait()}")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise Unusable(f"cannot encode: {found['error']}")
        return found

    async def round(self, seconds: float, first: int) -> Figures:
        """Encode for some seconds; the figures."""
        assert self.process.stdin is not None
        asked = json.dumps({"seconds": seconds, "first": first % NUMBERS})
        self.process.stdin.write(asked.encode() + b"\n")
        found = await self.read()
        spent = found["seconds"]
        return {
            "seconds": spent,
            RATE: divided(found["tokens"], spent),
            "texts_per_second": divided(found["texts"], spent),
            "cpu_ms_per_text": divided(found["cpu_seconds"] * 1000, found["texts"]),
        }

    async def end(self) -> None:
        """Kill the process: it may be in the middle of a round."""
        if self.process.returncode is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        await self.process.wait()


async def run(options: Namespace, run: Run) -> int:
    """Measure the rounds: each server, then the encoder."""
    encoder = await Encoder.start(options)
    rounds: list[Figures] = []
    servers = [Measured(server) for server in run.servers]
    try:
        for number in range(options.rounds):
            for one in servers:
                if not run.stop:
                    target, connections = run.target(one.server), options.connections
                    figures, tally = await measure(target, connections, options.seconds, run.stop)
                    run.complain(one.server.name, tally, figures["client_busy"])
                    figures["cpu_ms_per_text"] = _per_text(figures)
                    one.rounds.append(figures)
                    one.counts.append(tally.counts())
            if not run.stop:
                # numbers from the other half, which no server is asked for
                first = run.first + NUMBERS // 2 + number * 2**14
                rounds.append(await encoder.round(options.seconds, first))
                run.say(f"round {number + 1}: encode {rounds[-1][RATE]:,.0f} tokens/s")
    finally:
        await encoder.end()
    # not tokens/s: both had the same texts, and a server may count something else
    compared = {
        one.server.name: {key: ratios(one.rounds, rounds).get(key) for key in COMPARED}
        for one in servers
    }
    middle = medians(rounds)
    rows: list[list[Cell]] = [_row("encode", middle)]
    rows += [_row(one.server.name, medians(one.rounds)) for one in servers]
    for name, ratio in compared.items():
        rows.append([f"{name} / encode", "-", *(times(ratio.get(key)) for key in COMPARED)])
    print(table(("", "tokens/s", "texts/s", "CPU ms/text"), rows))
    run.write(
        encode={"median": middle, "rounds": rounds, **encoder.about},
        servers=[one.line() for one in servers],
        ratios=compared,
    )
    failed = sum(one.total("failed") + one.total("timed_out") for one in servers)
    return 1 if failed else 0


def _per_text(figures: Figures) -> float | None:
    per_request = figures["cpu_ms_per_request"]
    texts, requests = figures["texts_per_second"], figures["requests_per_second"]
    share = divided(requests, texts)
    return per_request * share if per_request is not None and share is not None else None


def _row(name: str, figures: Figures) -> list[Cell]:
    return [name, *(figures.get(key) for key in (RATE, *COMPARED))]
