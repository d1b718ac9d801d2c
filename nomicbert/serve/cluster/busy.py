"""How much of its time an engine computes, for autoscaling.

Where in the flow: `replica` reports it.
"""

import math
import time

from nomicbert.serve.engine.engine import Engine


class Busy:
    """Share of the time since the last call that compute threads were computing, 0 to 1."""

    def __init__(self, engine: Engine) -> None:
        """Begin now."""
        self._engine = engine
        self._then, self._computed = time.monotonic(), self._seconds()

    def __call__(self) -> float:
        """The share; 1 if a compute thread has died."""
        now, computed = time.monotonic(), self._seconds()
        if not math.isfinite(computed):
            return 1.0
        share = (computed - self._computed) / max(now - self._then, 1e-9)
        self._then, self._computed = now, computed
        return min(max(share, 0.0), 1.0)

    def _seconds(self) -> float:
        """Of all batches so far, and of the one that is running."""
        return self._engine.computed_seconds + self._engine.running_seconds()
