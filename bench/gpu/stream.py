"""A long stream of strings through `Embedder.encode_iter`, compared with its two upper limits.

The model alone, on the same token ids, is the limit if tokenising, packing and copying cost
nothing. The tokenizer alone, on all cores, is the limit of the host.
"""

import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.gpu.models import Models
from bench.gpu.place import Place
from bench.gpu.race import Task, run, timed_work
from bench.gpu.rivals import Budgets
from bench.harness import Timed, WrongValues
from bench.timing import Work
from nomicbert.benchmark import measure as measures
from nomicbert.benchmark.batching import fastest
from nomicbert.benchmark.lines import Line
from nomicbert.benchmark.plan import Checkpoint
from nomicbert.benchmark.workloads import Case
from nomicbert.embedder import Embedder

CASES = ("passages", "queries", "mixture")
# Tokens of a stream: enough for a second or more.
TOKENS, DRY_TOKENS = 2**21, 512
ROUNDS, DRY_ROUNDS = 6, 2
STREAM, MODEL, TOKENIZER = "encode_iter", "model, from ids", "tokenizer, all cores"


@dataclass
class Streams:
    """The streams of a run, with one model loaded at a time.

    Attributes:
        models: the checkpoints.
    """

    place: Place
    models: Models
    _loaded: dict[str, Embedder] = field(default_factory=dict)

    def tasks(self) -> Iterator[Task]:
        """One task per model and kind of text."""
        for name in self.models.names:
            for case in CASES:
                yield Task("stream", Path(name).name, case, "stream", more={"source": name})

    def measure(self, task: Task) -> list[Line]:
        """One stream."""
        assert task.more is not None
        name = task.more["source"]
        checkpoint = self.models.checkpoint(name)
        tokens = DRY_TOKENS if self.place.dry else TOKENS
        case = checkpoint.case(task.case, tokens, self.place.device)
        if case is None:
            return []
        embedder = self.embedder(name, checkpoint)
        truth: dict[str, np.ndarray] = {}
        entrants = {
            MODEL: functools.partial(model_only, embedder, case, truth),
            STREAM: functools.partial(streamed, embedder, case, truth, self.place.dtype_name),
            TOKENIZER: functools.partial(tokenised, embedder, case),
        }
        rounds = DRY_ROUNDS if self.place.dry else ROUNDS
        known = Task(
            "stream", task.model, task.case, task.group, case.tokens,
            more={**task.more, "batch": "own", "texts": len(case.texts), "kinds": case.kinds},
        )  # fmt: skip
        return run(self.place, known, entrants, rounds=rounds, measure=self.until_done)

    def embedder(self, name: str, checkpoint: Checkpoint) -> Embedder:
        """The Embedder of a checkpoint, loaded on first use."""
        if name not in self._loaded:
            self._loaded.clear()
            self.place.tidy()
            backend: Any = self.place.backend
            self._loaded[name] = Embedder.from_pretrained(
                checkpoint.folder,
                device=self.place.device,
                dtype=self.place.dtype,
                backend=backend,
            )
        return self._loaded[name]

    def until_done(self, work: Work) -> float:
        """Seconds until the device has finished."""
        self.place.finish()
        started = time.perf_counter()
        work()
        self.place.finish()
        return time.perf_counter() - started


def model_only(embedder: Embedder, case: Case, truth: dict[str, np.ndarray]) -> Timed:
    """Token ids to vectors in the fastest batches; its vectors become the truth."""
    runner = Budgets(embedder)

    def seconds(way: Any) -> float:
        started = measures.clock()
        runner.vectors(case, way)
        return measures.clock() - started

    way = fastest(runner.ways(case), seconds)
    truth["vectors"] = runner.vectors(case, way)
    return timed_work(lambda: runner.vectors(case, way))


def streamed(embedder: Embedder, case: Case, truth: dict[str, np.ndarray], dtype: str) -> Timed:
    """Strings to vectors.

    Raises: WrongValues: the vectors differ from those of `model_only`.
    """

    def call() -> list[Any]:
        found = embedder.encode_iter(case.texts, prompt="", show_progress_bar=False)
        return list(found)

    vectors = np.stack(call()).astype(np.float32, copy=False)
    _, least = measures.cosines(vectors, truth["vectors"])
    ratio = measures.norm_ratio(vectors, truth["vectors"])
    if measures.is_wrong(least, ratio, dtype):
        raise WrongValues(f"cosine {least:.4f}, norm {ratio:.4f} times that of the model's vectors")
    return timed_work(call, 1.0 - least)


def tokenised(embedder: Embedder, case: Case) -> Timed:
    """Strings to token ids.

    Raises: WrongValues: the ids differ from those of the case.
    """

    def call() -> list[list[int]]:
        return embedder.tokenizer.encode(case.texts, embedder.max_seq_length)[0]

    if call() != case.ids:
        raise WrongValues("the texts have other token ids")
    return timed_work(call)
