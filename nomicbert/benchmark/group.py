"""Measure the peers of a group: search batch sizes, check vectors, time the peers interleaved."""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from nomicbert.benchmark import measure
from nomicbert.benchmark.batching import Batching, fastest
from nomicbert.benchmark.lines import ABSENT, MEASURED, WRONG, Line, surroundings
from nomicbert.benchmark.ours import Ids
from nomicbert.benchmark.peers import ANCHOR, OURS, AbsentError, Peer, Runner, Setting
from nomicbert.benchmark.plan import Checkpoint, Options
from nomicbert.benchmark.workloads import Case

Step = Callable[[str], object]

# Timed calls per peer and round in a latency case.
LATENCY_CALLS = 20


class Group:
    """Peers that are in memory at the same time, so that they can be timed interleaved."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        options: Options,
        setting: Setting,
        name: str,
        dtypes: Sequence[str],
    ) -> None:
        """Nothing is loaded yet."""
        self.checkpoint, self.options, self.setting = checkpoint, options, setting
        self.name, self.dtypes = name, dtypes
        self.around = surroundings(options.device)
        self.runners: dict[Peer, Runner] = {}
        self.absent: dict[Peer, str] = {}

    def cases(self, names: Sequence[str], step: Step) -> Iterator[list[Line]]:
        """Load the peers, then measure each case and yield its lines."""
        for peer in self.options.peers(self.dtypes):
            step(f"load {peer.name}")
            try:
                self.runners[peer] = peer.load(self.setting)
            except AbsentError as error:
                self.absent[peer] = str(error)
            except Exception as error:  # other libraries may raise anything
                if peer.is_ours:
                    raise
                self.absent[peer] = f"could not be loaded: {first_line(error)}"
        for name in names:
            case = self.checkpoint.case(name, self.options.tokens, self.options.device)
            if case is None:
                step(f"{name}: longer than the {self.checkpoint.longest} tokens of the checkpoint")
                continue
            yield self._case(case, step)

    def _case(self, case: Case, step: Step) -> list[Line]:
        reference, truth = self._truth(case)
        left_out = {
            peer: self._line(peer, case, ABSENT, reason=why) for peer, why in self.absent.items()
        }
        ways: dict[Peer, Batching] = {}
        facts: dict[Peer, Line] = {}
        for peer, runner in self.runners.items():
            step(f"{case.name}: batches of {peer.name}")
            try:
                ways[peer] = self._best_way(runner, case)
                found = runner.vectors(case, ways[peer])
            except Exception as error:  # as above
                if peer.is_ours:
                    raise
                reason = f"failed: {first_line(error)}"
                left_out[peer] = self._line(peer, case, ABSENT, reason=reason)
                continue
            mean, least = measure.cosines(found, truth)
            ratio = measure.norm_ratio(found, truth)
            facts[peer] = {
                "reference": reference,
                "cosine_mean": _number(mean),
                "cosine_min": _number(least),
                "norm_ratio": _number(ratio),
            }
            if measure.is_wrong(least, ratio, peer.dtype):
                reason = (
                    f"wrong vectors: cosine {least:.4f} to {reference}, norm {ratio:.4f} times as "
                    "large"
                )
                left_out[peer] = self._line(peer, case, WRONG, reason=reason, **facts[peer])
        right = {peer: self.runners[peer] for peer in facts if peer not in left_out}
        step(f"{case.name}: timing")
        times, rates = self._times(case, right, ways)
        return [
            *(
                self._measured(peer, case, ways[peer], times[peer.name], rates, facts[peer])
                for peer in right
            ),
            *left_out.values(),
        ]

    def _best_way(self, runner: Runner, case: Case) -> Batching:
        ways = runner.ways(case)
        if len(ways) == 1:
            return ways[0]

        def seconds(way: Batching) -> float:
            started = measure.clock()
            try:
                runner.vectors(case, way)
            except torch.OutOfMemoryError:  # the batches are too large for the GPU
                return math.inf
            return measure.clock() - started

        return fastest(ways, seconds)

    def _truth(self, case: Case) -> tuple[str, np.ndarray]:
        """Name and vectors of the peer that the others are compared with."""
        peer = ANCHOR if ANCHOR not in self.absent else OURS
        try:
            runner = self.runners.get(peer) or peer.load(self.setting)
        except AbsentError:
            peer = OURS
            runner = self.runners.get(peer) or peer.load(self.setting)
        return peer.name, runner.vectors(case, runner.ways(case)[0])

    def _times(
        self, case: Case, right: dict[Peer, Runner], ways: dict[Peer, Batching]
    ) -> tuple[dict[str, list[float]], dict[str, float]]:
        """Seconds of each peer's calls, and the matmul rate (FLOP/s) of each dtype."""

        def work(peer: Peer, runner: Runner) -> measure.Work:
            return lambda: runner.vectors(case, ways[peer])

        works = {peer.name: work(peer, runner) for peer, runner in right.items()}
        counts, config, tokens = {}, self.checkpoint.config, case.tokens
        calls = LATENCY_CALLS if case.is_latency and not self.options.quick else 1
        # the same total time per round, however many calls it has
        seconds = 0.0 if self.options.quick else measure.MATRIX_SECONDS / calls
        for dtype in dict.fromkeys(peer.dtype for peer in right):
            matmul = measure.matrix_work(config, dtype, self.options.device, tokens)
            works[f"matrix {dtype}"], counts[dtype] = measure.repeated(matmul, seconds)
        times = measure.in_turns(works, self.options.rounds, calls=calls)
        once = measure.matrix_flops(config, tokens)
        rates = {
            dtype: count * once / statistics.median(times[f"matrix {dtype}"])
            for dtype, count in counts.items()
        }
        return times, rates

    def _measured(
        self,
        peer: Peer,
        case: Case,
        way: Batching,
        seconds: list[float],
        rates: dict[str, float],
        facts: Line,
    ) -> Line:
        median = statistics.median(seconds)
        rate = measure.flops(self.checkpoint.config, case) / median
        runner = self.runners[peer]
        more: dict[str, Any] = {}
        if isinstance(runner, Ids):
            shares = [runner.shares(case, way) for _ in range(self.options.rounds)]
            more["shares"] = {
                part: statistics.median(share[part] for share in shares) for part in shares[0]
            }
        if self.options.device.type == "cuda":
            more["work_bytes"] = measure.gpu_bytes(lambda: runner.vectors(case, way))
        if case.is_latency:
            more["p50"], more["p99"] = (float(np.quantile(seconds, q)) for q in (0.5, 0.99))
        return self._line(
            peer,
            case,
            MEASURED,
            from_texts=runner.from_texts,
            batch=way.name,
            seconds=seconds,
            median=median,
            spread=measure.spread(seconds),
            tokens_per_second=case.tokens / median,
            texts_per_second=len(case.texts) / median,
            model_flops=rate,
            matrix_flops=rates[peer.dtype],
            matrix_share=rate / rates[peer.dtype],
            **facts,
            **more,
        )

    def _line(self, peer: Peer, case: Case, status: str, **facts: Any) -> Line:
        return {
            "model": self.checkpoint.name,
            "case": case.name,
            "group": self.name,
            "peer": peer.family,
            "dtype": peer.dtype,
            "status": status,
            "reason": None,
            "tokens": case.tokens,
            "texts": len(case.texts),
            "kinds": case.kinds,
            "rounds": self.options.rounds,
            **facts,
            **self.around,
        }


def first_line(error: Exception) -> str:
    """First line of an error's message, cut to 160 characters."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:160]


def _number(value: float) -> float | None:
    """The value, or None for NaN and infinity, which JSON does not have."""
    return value if np.isfinite(value) else None
