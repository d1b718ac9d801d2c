"""Where kernels are timed, how long, and what is noted of the machine beside each figure."""

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

# Of each round of a kernel, about; and how many rounds.
SECONDS, ROUNDS = 0.01, 12
DRY_SECONDS, DRY_ROUNDS = 0.0, 2
# Copies of an input at most: the smallest problem here reads 1 MB, and 60 MB of L2 are left twice.
MOST_COPIES = 128
# What nvidia-smi says without changing anything.
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
# Shapes and modes of torch.compile that may be kept for one function.
RECOMPILES = 256
DRY_MODELS = (
    Model("nomic", 64, 2, 96, "swiglu", True),
    Model("bert-large", 64, 2, 96, "gelu", False),
    Model("minilm", 32, 2, 48, "gelu", False),
    Model("nomic-moe", 32, 2, 48, "moe", True),
)


@dataclass(frozen=True)
class Place:
    """A device and how to measure on it.

    Attributes:
        dtype: of what is computed: bf16 on a GPU.
        backend: of ours.
        dry: tiny sizes and few rounds, to see that everything runs.
        measure: seconds that work takes on the device.
    """

    device: torch.device
    dtype: torch.dtype
    backend: str
    dry: bool
    measure: Callable[[Work], float]

    @classmethod
    def here(cls, dry: bool) -> "Place":
        """The GPU; for a dry run, where there is none, the CPU.

        There it is backend torch in fp32, or where TRITON_INTERPRET is set, the kernels in fp16.

        Raises: ValueError: there is no GPU, and it is no dry run.
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
            return cls(torch.device("cpu"), torch.float16, "triton", dry, on_host)
        return cls(torch.device("cpu"), torch.float32, "torch", dry, on_host)

    @classmethod
    def on_paper(cls, dry: bool) -> "Place":
        """The CPU as it stands for a GPU where kernels are compiled for one, and not launched."""
        return cls(torch.device("cpu"), torch.bfloat16, "triton", dry, on_host)

    @property
    def is_gpu(self) -> bool:
        """Whether it is a CUDA device."""
        return self.device.type == "cuda"

    @property
    def dtype_name(self) -> str:
        """As lines have it."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def rounds(self) -> int:
        """Of all candidates of a case in turns."""
        return DRY_ROUNDS if self.dry else ROUNDS

    @property
    def seconds(self) -> float:
        """That a candidate gets in a round, about."""
        return DRY_SECONDS if self.dry else SECONDS

    def models(self, *names: str) -> list[Model]:
        """Sizes of the models of these names, or of all."""
        known = DRY_MODELS if self.dry else MODELS
        return [model for model in known if model.name in names or not names]

    @functools.cached_property
    def ops(self) -> Ops:
        """Ours.

        Raises: BackendError: it cannot run here.
        """
        return select_ops(self.device, self.dtype, self.backend)  # type: ignore[arg-type]

    @functools.cached_property
    def bench(self) -> Bench:
        """What the benchmarks of single ops are made with, for their peers."""
        compiles = self.is_gpu and not self.dry
        return Bench(None, self.ops, self.device, self.dtype, self.dry, compiles)

    def copies(self, size: float) -> int:
        """How many copies of an input of so many bytes are more than L2, twice over."""
        if self.dry or not self.is_gpu:
            return 2
        cache = torch.cuda.get_device_properties(self.device).L2_cache_size
        return min(MOST_COPIES, max(2, math.ceil(2 * cache / max(size, 1.0))))

    def finish(self) -> None:
        """Wait for the device; an error that no later call survives is raised here."""
        if self.is_gpu:
            torch.cuda.synchronize(self.device)

    def tidy(self) -> None:
        """Let go of compiled graphs, and of memory that the next case may not find in one piece."""
        torch.compiler.reset()
        if self.is_gpu:
            torch.cuda.empty_cache()

    def around(self) -> Line:
        """Versions, machine, commit, and the clocks as they are now."""
        return {**self._fixed, "clocks": clocks(self.device)}

    @functools.cached_property
    def _fixed(self) -> Line:
        found = surroundings(self.device)
        more: dict[str, str | None] = {name: version(name) for name in LIBRARIES}
        more["cuda"] = torch.version.cuda
        cudnn = torch.backends.cudnn.version() if self.is_gpu else None
        more["cudnn"] = None if cudnn is None else str(cudnn)
        # a copy of the source tree without git may be told
        commit = os.environ.get("NOMICBERT_COMMIT") or found["commit"]
        return {**found, "commit": commit, "versions": {**found["versions"], **more}}


def compile_or_fail() -> None:
    """Have torch.compile raise where it would go on uncompiled, and nobody would know."""
    config: Any = torch._dynamo.config
    config.recompile_limit = RECOMPILES
    config.fail_on_recompile_limit_hit = True


def clocks(device: torch.device) -> dict[str, Any] | None:
    """MHz, watts and degrees of a GPU as nvidia-smi reads them; None where it says nothing."""
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
