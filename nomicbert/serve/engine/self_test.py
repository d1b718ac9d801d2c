"""Whether the engine still gives the vectors of load time: a part of readiness.

Where in the flow: `service.start` must pass it; /health/ready repeats it now and then.
"""

import asyncio
import logging
import math
import time
from collections.abc import Sequence

from nomicbert.serve.engine.engine import Engine
from nomicbert.serve.served import ServedModel

logger = logging.getLogger(__name__)

# Seconds until it is repeated.
INTERVAL = 30.0
# A test that waits longer says nothing: load is no reason to be unready.
TIMEOUT = 10.0
# Seconds that a probe waits for a test; the next one will see its result. Kubernetes gives up at 1.
PROBE = 0.5


class SelfTest:
    """Computes a fixed text or pair with every model, through the engine like any request."""

    def __init__(self, engine: Engine, models: Sequence[ServedModel]) -> None:
        """Nothing has been tested yet."""
        self._engine = engine
        self._models = models
        self._began = -math.inf
        self._problem = ""
        self._running: asyncio.Task[None] | None = None

    @property
    def has_failed(self) -> bool:
        """Whether the latest test has failed, or the latest batches."""
        return bool(self._problem) or self._engine.is_failing

    async def problem(self) -> str:
        """Why the server is not ready; "" if it is."""
        # while unready each time: without traffic nothing else would show that it is over
        unready = self._engine.is_failing or self._problem
        due = unready or time.monotonic() - self._began > INTERVAL
        if due and self._running is None:
            self._running = asyncio.create_task(self.run())
            self._running.add_done_callback(self._ended)
        if self._running is not None:
            await asyncio.wait({self._running}, timeout=PROBE)
        return "the last batches have failed" if self._engine.is_failing else self._problem

    def _ended(self, _: "asyncio.Task[None]") -> None:
        self._running = None

    async def run(self, timeout: float | None = TIMEOUT) -> None:
        """Test all models; without a `timeout` the test of each is waited for."""
        self._began = time.monotonic()
        found = [await self._test(model, timeout) for model in self._models]
        self._problem = next(filter(None, found), "")

    async def _test(self, model: ServedModel, timeout: float | None) -> str:
        future = self._engine.submit(model.self_test_job(), use_cache=False)
        try:
            (row,) = await asyncio.wait_for(future, timeout)
        except asyncio.TimeoutError:
            return self._problem
        except Exception as error:  # whatever the computation raises
            logger.error("the self-test of %s failed", model.name, exc_info=error)
            return f"the self-test of {model.name} failed"
        what = "vector" if model.space else "score"
        return "" if model.is_same(row) else f"the self-test of {model.name} gives another {what}"
