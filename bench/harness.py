"""The harness of the op benchmarks: check results, then time ours against its peers.

The figures are in pytest-benchmark's `extra_info`, and so in the file of --benchmark-json. Only
real tokens count: a peer that pads is timed with its padding, which adds nothing to its rate.
"""

import functools
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.aot_cases import MODELS, Model
from bench.problem import Call, Draw, Problem, Tensors, error_and_bound
from bench.rooflines import ceilings
from bench.timing import copies_needed, interleave, on_device, on_host, rotating
from nomicbert_kernels import Ops
from nomicbert_kernels.backend import REFERENCE

OURS = "ours"
# A peer may round in more places than ours. Beyond this multiple of our bound it is wrong.
PEER_FACTOR = 10
VERSIONS = ("torch", "triton")


class WrongValues(AssertionError):
    """A result is beyond its bound; the candidate is not timed."""


@dataclass(frozen=True)
class Peer:
    """Another way to compute a problem.

    Attributes:
        call: tensors of the problem -> the timed call; the preparation in it is not timed.
        read: converts its result to our layout.
        compiled: also run it through torch.compile.
    """

    call: Callable[[Tensors], Call]
    read: Callable[[Tensor], Tensor] = lambda result: result
    compiled: bool = False


@dataclass(frozen=True)
class Timed:
    """A candidate whose result was correct.

    Attributes:
        calls: one per copy of the input.
        error: largest absolute error of its result.
    """

    calls: Sequence[Call]
    error: float


@dataclass
class Bench:
    """The settings of a benchmark run.

    Attributes:
        benchmark: pytest-benchmark's fixture, which stores our times and `extra_info`.
        quick: few short rounds, to check that everything runs.
        compiled: also time peers through torch.compile.
    """

    benchmark: Any
    ops: Ops
    device: torch.device
    dtype: torch.dtype
    quick: bool
    compiled: bool
    seed: int = 0

    def draw(self) -> Draw:
        """The random tensors of one problem."""
        return Draw(self.device, self.dtype, self.seed)

    def compare(self, problem: Problem, peers: Mapping[str, Peer], **what: Any) -> None:
        """Check our result, then time it against each peer whose result is correct.

        Args:
            problem: the problem that all candidates compute.
            peers: by name. The first is plain torch, whose error gives the bound.
            what: further fields of the report.

        Raises: WrongValues: our result is beyond the bound of a kernel.
        """
        with torch.inference_mode():
            truth = problem.truth()
            # not `Problem.plain`: on a CPU that may be the backend under test
            first = next(iter(peers.values()))
            plain = first.read(first.call(problem.tensors)())
            _, bound = error_and_bound(plain, truth, plain)
            count = 1 if self.quick else copies_needed(problem.bytes, self.device)
            copies = [problem.tensors, *(problem.copy() for _ in range(count - 1))]
            bind = functools.partial(problem.bind, self.ops)
            ours = self.proven(Peer(bind), copies, truth, bound, OURS)
            timed, left_out = {OURS: ours}, {}
            for name, peer in self.all_peers(problem, peers).items():
                try:
                    timed[name] = self.proven(peer, copies, truth, PEER_FACTOR * bound, name)
                # not available here, or not for this input, or wrong
                except (RuntimeError, TypeError, ImportError, WrongValues) as error:
                    left_out[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            del truth, plain
            gpu = self.device.type == "cuda"
            times = interleave(
                {name: one.calls for name, one in timed.items()},
                on_device if gpu else on_host,
                rounds=3 if self.quick else 20,
                seconds=0.001 if self.quick else 0.01,
            )
            self.benchmark.extra_info.update(
                self.figures(problem, times[OURS].median),
                spread_seconds=times[OURS].spread,
                error=ours.error,
                bound=bound,
                copies=count,
                peers={
                    name: {
                        "seconds": times[name].median,
                        "ratio": times[name].median / times[OURS].median,
                        "error": timed[name].error,
                    }
                    for name in timed
                    if name != OURS
                },
                left_out=left_out,
                **what,
            )
            self.benchmark.pedantic(
                rotating(ours.calls),
                rounds=3 if self.quick else 10,
                iterations=1 if self.quick else max(1, round(0.01 / times[OURS].median)),
            )

    def all_peers(self, problem: Problem, peers: Mapping[str, Peer]) -> dict[str, Peer]:
        """The peers, their compiled forms, and on a CPU the reference."""
        found = dict(peers)
        for name, peer in peers.items():
            if peer.compiled and self.compiled:
                found[f"{name}, compiled"] = Peer(compiled(peer.call), peer.read)
        if self.device.type == "cpu" and self.ops is not REFERENCE:
            found["reference"] = Peer(functools.partial(problem.bind, REFERENCE))
        return found

    def proven(
        self, peer: Peer, copies: Sequence[Tensors], truth: Tensor, bound: float, name: str
    ) -> Timed:
        """Bind a candidate to all copies, and compare its first result with the truth."""
        calls = [peer.call(tensors) for tensors in copies]
        got = peer.read(calls[0]())
        if got.shape != truth.shape:
            raise WrongValues(f"{name} gives {tuple(got.shape)}, not {tuple(truth.shape)}")
        error = (got.double() - truth).abs().max().item() if truth.numel() else 0.0
        if not error <= bound:  # also true for NaN
            raise WrongValues(f"{name} is off by {error:.3g}, allowed {bound:.3g}: not timed")
        return Timed(calls, error)

    def figures(self, problem: Problem, seconds: float) -> dict[str, Any]:
        """Rates and roofline of a time."""
        best = ceilings(self.device, self.dtype, self.quick)
        least = best.seconds(problem.flops, problem.bytes)
        gpu = self.device.type == "cuda"
        return {
            "op": problem.op,
            "backend": self.ops.name,
            "device": torch.cuda.get_device_name(self.device) if gpu else "cpu",
            "threads": torch.get_num_threads(),
            "dtype": str(self.dtype).removeprefix("torch."),
            "versions": {name: version(name) for name in VERSIONS},
            "tokens": problem.tokens,
            "seconds": seconds,
            "tokens_per_second": problem.tokens / seconds,
            "tflops": problem.flops / seconds / 1e12,
            "gigabytes_per_second": problem.bytes / seconds / 1e9,
            "limit": best.limit(problem.flops, problem.bytes),
            "roofline_percent": 100 * least / seconds,
            "ceiling_tflops": best.flops / 1e12,
            "ceiling_gigabytes_per_second": best.bytes / 1e9,
        }


def compiled(call: Callable[[Tensors], Call]) -> Callable[[Tensors], Call]:
    """The same call through torch.compile; all copies share one compiled graph."""
    return lambda tensors: torch.compile(call(tensors), dynamic=False)


def version(package: str) -> str | None:
    """Version of a package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def models(mlp: str | None = None) -> tuple[Model, ...]:
    """Models with an MLP of this kind. None: all except the mixture of experts."""
    return tuple(m for m in MODELS if (m.mlp == mlp if mlp else m.mlp != "moe"))
