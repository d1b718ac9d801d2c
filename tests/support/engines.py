"""The inner parts of a server without HTTP: loaded tiny models, an engine on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from nomicbert.serve.engine.cache import VectorCache
from nomicbert.serve.engine.engine import Engine
from nomicbert.serve.engine.jobs import Job
from nomicbert.serve.metrics import Metrics
from nomicbert.serve.models import Loaded, load
from nomicbert.serve.names import Names
from nomicbert.serve.served import ServedModel
from nomicbert.serve.settings import ServeSettings
from nomicbert.serve.tokens import Tokenised, Wanted, tokenise
from nomicbert.vectors.pooling import Finish

Result = TypeVar("Result")
# Seconds after which a scenario is given up: it hangs.
PATIENCE = 120


def load_models(*folders: Path | str, **settings: Any) -> Loaded:
    """Load models as a server does, without measuring the budget."""
    values: dict[str, Any] = {"devices": ("cpu",), "max_batch_tokens": 128}
    chosen = ServeSettings(models=tuple(map(str, folders)), **(values | settings))
    return load(chosen, Names(chosen))


def make_engine(
    loaded: Loaded, cache_bytes: int = 0, threads: int | None = 1
) -> tuple[Engine, VectorCache]:
    """An engine that has not started."""
    cache = VectorCache(cache_bytes)
    metrics = Metrics([], [model.name for model in loaded.models])
    return Engine(loaded.replicas, loaded.budgets, cache, metrics, threads), cache


def run(
    loaded: Loaded,
    scenario: Callable[[Engine], Awaitable[Result]],
    cache_bytes: int = 0,
) -> Result:
    """Run a scenario on an event loop with a started engine."""

    async def main() -> Result:
        engine, _ = make_engine(loaded, cache_bytes)
        engine.start(asyncio.get_running_loop())
        try:
            return await asyncio.wait_for(scenario(engine), PATIENCE)
        finally:
            engine.stop()

    return asyncio.run(main())


def want(model: ServedModel, inputs: Any, **changes: Any) -> Wanted:
    """A request; by default for the checkpoint's whole vectors."""
    values: dict[str, Any] = {
        "field": "input",
        "prompt": "",
        "finish": Finish(),
        "on_long": "end",
        "max_length": model.max_length,
    }
    return Wanted(model=model, inputs=inputs, **(values | changes))


async def rows_of(engine: Engine, work: Wanted | Tokenised | Job) -> list[Tensor]:
    """Compute a request."""
    if isinstance(work, Wanted):
        work = tokenise(work)
    return await engine.submit(work.job if isinstance(work, Tokenised) else work)


def same_rows(found: list[Tensor], wanted: Any) -> bool:
    """Whether all rows have the same bits."""
    truth = [torch.as_tensor(row) for row in wanted]
    return len(found) == len(truth) and all(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(found, truth, strict=True)
    )
