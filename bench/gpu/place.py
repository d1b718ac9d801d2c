"""The device that kernels are timed on, how long, and the machine facts stored with each figure."""

import functools
import math
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from bench.aot_cases import MODELS, Model
from bench.harness import Bench, version
from bench.timing import Work, on_device, on_host
from nomicbert.benchmark.lines import Line, surroundings
from nomicbert.loading.target import select_ops
from nomicbert_kernels import Ops
from nomicbert_kernels.capabilities import interprets

# Approximate seconds of a kernel's round; number of rounds.
SECONDS, ROUNDS = 0.01, 12
DRY_SECONDS, DRY_ROUNDS = 0.0, 2
# Limit of copies: the smallest problem reads 1 MB, and the copies exceed twice 60 MB of L2.
MOST_COPIES = 128
# Fields that nvidia-smi reads; nothing is set.
CLOCKS = (
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "power.draw",
    "power.limit",
    "temperature.gpu",
    "clocks_event_reasons.active",
)
LIBRARIES = ("triton", "flash-attn-4")
# Limit of torch.compile's recompilations of one function.
RECOMPILES = 256
DRY_MODELS = (
    Model("nomic", 64, 2, 96, "swiglu", True),
    Model("bert-large", 64, 2, 96, "gelu", False),
    Model("minilm", 32, 2, 48, "gelu", False),
    Model("nomic-moe", 32, 2, 48, "moe", True),
)


def patch_interpreter() -> None:
    """Let Triton's interpreter round to e4m3 as a GPU does, and be three times as fast."""
    from tests.interpreter import fp8, speed

    fp8.install()
    speed.install()


@dataclass(frozen=True)
class Place:
    """A device and how to measure on it.

    Attributes:
        dtype: of the computation: bf16 on a GPU.
        backend: of ours.
        dry: tiny sizes and few rounds, to check that everything runs.
        measure: returns the seconds that work takes on the device.
    """

    device: torch.device
    dtype: torch.dtype
    backend: str
    dry: bool
    measure: Callable[[Work], float]

    @classmethod
    def here(cls, dry: bool) -> "Place":
        """The GPU; the CPU for a dry run without a GPU.

        The CPU runs backend torch in fp32, or the kernels in fp16 if TRITON_INTERPRET is set.

        Raises: ValueError: there is no GPU, and it is not a dry run.
        """
        if torch.cuda.is_available():
            device = torch.device("cuda", torch.cuda.current_device())
            return cls(device, torch.bfloat16, "triton", dry, on_device)
        if not dry:
            raise ValueError(
                "this machine has no GPU that torch can use: nothing to measure "
                "(--dry shows on a CPU that everything runs)"
            )
        if interprets():
            patch_interpreter()
            return cls(torch.device("cpu"), torch.float16, "triton", dry, on_host)
        return cls(torch.device("cpu"), torch.float32, "torch", dry, on_host)

    @classmethod
    def on_paper(cls, dry: bool) -> "Place":
        """The CPU in place of a GPU, for kernels that are compiled and not launched."""
        return cls(torch.device("cpu"), torch.bfloat16, "triton", dry, on_host)

    @property
    def is_gpu(self) -> bool:
        """Whether it is a CUDA device."""
        return self.device.type == "cuda"

    @property
    def dtype_name(self) -> str:
        """Name of the dtype in the lines."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def rounds(self) -> int:
        """Interleaved rounds over all candidates of a case."""
        return DRY_ROUNDS if self.dry else ROUNDS

    @property
    def seconds(self) -> float:
        """Approximate seconds per candidate and round."""
        return DRY_SECONDS if self.dry else SECONDS

    def models(self, *names: str) -> list[Model]:
        """Sizes of the models with these names; no names: all."""
        known = DRY_MODELS if self.dry else MODELS
        return [model for model in known if model.name in names or not names]

    @functools.cached_property
    def ops(self) -> Ops:
        """Ops of our backend.

        Raises: BackendError: it cannot run here.
        """
        return select_ops(self.device, self.dtype, self.backend)  # type: ignore[arg-type]

    @functools.cached_property
    def bench(self) -> Bench:
        """The harness of the op benchmarks, for their peers."""
        compiles = self.is_gpu and not self.dry
        return Bench(None, self.ops, self.device, self.dtype, self.dry, compiles)

    def copies(self, size: float) -> int:
        """Number of copies of an input of `size` bytes that together exceed twice the L2 cache."""
        if self.dry or not self.is_gpu:
            return 2
        cache = torch.cuda.get_device_properties(self.device).L2_cache_size
        return min(MOST_COPIES, max(2, math.ceil(2 * cache / max(size, 1.0))))

    def finish(self) -> None:
        """Wait for the device. A device error that breaks all later calls is raised here."""
        if self.is_gpu:
            torch.cuda.synchronize(self.device)

    def tidy(self) -> None:
        """Free compiled graphs and cached memory, so that the next case starts clean."""
        torch.compiler.reset()
        if self.is_gpu:
            torch.cuda.empty_cache()

    def around(self) -> Line:
        """Versions, machine, commit, and the current clocks."""
        return {**self._fixed, "clocks": clocks(self.device)}

    @functools.cached_property
    def _fixed(self) -> Line:
        found = surroundings(self.device)
        more: dict[str, str | None] = {name: version(name) for name in LIBRARIES}
        more["cuda"] = torch.version.cuda
        cudnn = torch.backends.cudnn.version() if self.is_gpu else None
        more["cudnn"] = None if cudnn is None else str(cudnn)
        # a copy of the source tree without git can set the commit
        commit = os.environ.get("NOMICBERT_COMMIT") or found["commit"]
        return {**found, "commit": commit, "versions": {**found["versions"], **more}}


def compile_or_fail() -> None:
    """Make torch.compile raise where it would silently fall back to uncompiled code."""
    config: Any = torch._dynamo.config
    config.recompile_limit = RECOMPILES
    config.fail_on_recompile_limit_hit = True


def clocks(device: torch.device) -> dict[str, Any] | None:
    """MHz, watts and degrees of a GPU from nvidia-smi; None if it fails."""
    if device.type != "cuda":
        return None
    which = f"--id=GPU-{torch.cuda.get_device_properties(device).uuid}"
    try:
        done = subprocess.run(
            [
                "nvidia-smi",
                which,
                f"--query-gpu={','.join(CLOCKS)}",
                "--format=csv,noheader,nounits",
            ],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(zip(CLOCKS, map(_number, done.stdout.strip().split(", ")), strict=False))


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
