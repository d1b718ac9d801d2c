"""Candidates for whole models on a GPU: ours, and the same weights in other libraries.

They are peers of nomicbert.benchmark, which finds each one's best batches, compares its vectors
with fp32, and times all interleaved. A peer that cannot take part gets a line with the reason.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, get_args

import torch

from bench.gpu.place import compile_or_fail
from nomicbert.benchmark.batching import COUNTS, Batching, by_count
from nomicbert.benchmark.ours import Ids, Texts
from nomicbert.benchmark.peers import AbsentError, Peer, Runner, Setting
from nomicbert.benchmark.plan import Options
from nomicbert.benchmark.sentence import TORCH_DTYPES, known
from nomicbert.benchmark.torch_peers import NAIVE_BATCH, FromTexts, Native
from nomicbert.benchmark.workloads import Case
from nomicbert.embedder import Embedder
from nomicbert.errors import BackendError
from nomicbert.loading.target import select_ops
from nomicbert.runtime.batches import token_batches
from nomicbert.verify.references import quiet
from nomicbert_kernels import Backend

# Tokens per batch that are tried for ours: full waves of the GEMMs' tiles on 132 multiprocessors,
# of nomic or of both models; and as many tokens at once as are tried for the others.
BUDGETS = (5632, 11264, 16896, 33792, 131072)
# Limit of batches per case. With more, launch overhead dominates and the search takes minutes.
MOST_BATCHES = 64

FP8 = "ours-fp8"

Make = Callable[[Setting, str], Runner]


@dataclass(frozen=True)
class Rival(Peer):
    """A candidate for whole models.

    Attributes:
        make: loads it; the result is kept as long as its setting.
    """

    make: Make | None = None

    @property
    def is_ours(self) -> bool:
        """Whether its failure ends the run. Never here, because GPU time is expensive."""
        return False

    def load(self, setting: Setting) -> Runner:
        """See Peer."""
        key = f"runner of {self.name}"
        if key not in setting.loaded:
            assert self.make is not None
            setting.loaded[key] = self.make(setting, self.dtype)
        runner: Runner = setting.loaded[key]
        return runner


@dataclass(frozen=True)
class Field(Options):
    """Options whose peers are these rivals."""

    rivals: tuple[Rival, ...] = ()

    def peers(self, dtypes: Sequence[str]) -> list[Peer]:
        """See Options."""
        return [*self.rivals]


class Budgets(Ids):
    """Ours in its fastest batches."""

    def ways(self, case: Case) -> list[Batching]:
        """See Runner."""
        if case.is_latency:
            return [by_count(case.lengths, 1)]
        cut = {
            tuple(map(tuple, token_batches(case.lengths, budget))): budget
            for budget in reversed(BUDGETS)
        }
        return [Batching(f"{budget} tokens", parts) for parts, budget in reversed(cut.items())]


class Best(Native):
    """transformers in its fastest batches."""

    def ways(self, case: Case) -> list[Batching]:
        """See Runner."""
        return few(super().ways(case))


class BestTexts(FromTexts):
    """sentence-transformers in its fastest batches."""

    def ways(self, case: Case) -> list[Batching]:
        """See Runner."""
        return few(super().ways(case))


class DefaultTexts(FromTexts):
    """sentence-transformers with its default batch size."""

    def ways(self, case: Case) -> list[Batching]:
        """See Runner."""
        return [by_count(case.lengths, NAIVE_BATCH)]


class FlashTexts(BestTexts):
    """sentence-transformers on FlashAttention-4, for which it packs texts itself."""

    def __init__(self, setting: Setting, dtype: str) -> None:
        """Load it.

        Raises: AbsentError: a library is missing, or does not read the checkpoint.
        """
        for name in ("sentence_transformers", "flash_attn"):
            if find_spec(name) is None:
                refuse(f"{name} is not installed")
        from sentence_transformers import SentenceTransformer

        known(setting)
        self.counts = COUNTS[setting.device.type]
        more = {"dtype": TORCH_DTYPES[dtype], "attn_implementation": "flash_attention_4"}
        with quiet():
            self.model = SentenceTransformer(
                str(setting.folder),
                device=str(setting.device),
                local_files_only=True,
                model_kwargs=more,
            )


def refuse(why: str) -> Any:
    """Raises: AbsentError."""
    raise AbsentError(why)


def few(ways: Sequence[Batching]) -> list[Batching]:
    """The batchings of at most MOST_BATCHES batches; if none, the one with the fewest."""
    found = [way for way in ways if len(way.parts) <= MOST_BATCHES]
    return found or [min(ways, key=lambda way: len(way.parts))]


def ours(backend: str, texts: bool, setting: Setting, dtype: str) -> Runner:
    """Ours on a backend; fp8 without its accuracy gate, which random weights do not pass.

    Raises: AbsentError: the backend does not exist, or cannot run here.
    """
    if backend not in get_args(Backend):
        refuse(f"there is no backend {backend}")
    key = f"ours {backend} {dtype}"
    if key not in setting.loaded:
        chosen: Any = "triton" if backend == "fp8" else backend
        try:
            if backend == "fp8":
                select_ops(setting.device, TORCH_DTYPES[dtype], "fp8")
            embedder = Embedder.from_pretrained(
                setting.folder, device=setting.device, dtype=dtype, backend=chosen
            )
            if backend == "fp8":
                embedder.model.use("fp8")
            setting.loaded[key] = embedder
        except (BackendError, ValueError) as error:
            raise AbsentError(str(error)) from error
    embedder = setting.loaded[key]
    return Texts(embedder) if texts else Budgets(embedder)


def compiled(mode: str | None, dynamic: bool, setting: Setting, dtype: str) -> Runner:
    """A runner of transformers through torch.compile."""
    compile_or_fail()
    runner = Best(setting, dtype, None, compiled=False)
    runner.model = torch.compile(runner.model, mode=mode, dynamic=dynamic)
    return runner


def rows(
    backend: str, dtype: str, *, latency: bool, compiles: bool, slow: bool
) -> tuple[Rival, ...]:
    """The rows of a run.

    Args:
        backend: of ours.
        dtype: of all candidates.
        latency: for cases of one text at a time.
        compiles: include torch.compile.
        slow: include its max-autotune mode, which takes minutes.
    """
    make: dict[str, Make] = {
        "ours": functools.partial(ours, backend, False),
        "ours-texts": functools.partial(ours, backend, True),
        FP8: lambda setting, _: ours("fp8", False, setting, dtype),
        "ours-invariant": functools.partial(ours, "invariant", False),
        "transformers": lambda setting, dtype: Best(setting, dtype, None, compiled=False),
    }
    if not latency:
        make["transformers-32"] = lambda setting, dtype: Native(
            setting, dtype, NAIVE_BATCH, compiled=False
        )
        make["sentence-transformers-32"] = DefaultTexts
    make["sentence-transformers"] = BestTexts
    make["sentence-transformers-fa4"] = FlashTexts
    if compiles:
        make["transformers-compile"] = functools.partial(compiled, None, True)
    if compiles and latency:
        make["transformers-reduce-overhead"] = functools.partial(compiled, "reduce-overhead", False)
    if compiles and slow:
        mode = "max-autotune-no-cudagraphs"
        make["transformers-max-autotune"] = functools.partial(compiled, mode, True)
    # its accuracy is judged as fp8, whatever the dtype of the hidden states
    own = {FP8: "fp8"}
    return tuple(row(name, own.get(name, dtype), how) for name, how in make.items())


def row(name: str, dtype: str, make: Make) -> Rival:
    """One row."""
    return Rival(name, dtype, "", ("cpu", "cuda"), make=make)
