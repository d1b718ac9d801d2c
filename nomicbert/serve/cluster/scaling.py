"""How many replicas a deployment on Ray Serve needs, by their work rather than by their requests.

A request may have one short text or thousands of long ones, so the number of requests says little.
Each replica reports two figures, which Ray averages over its look-back period:

    busy: share of the time that its compute thread computes, 0 to 1
    ahead: seconds of work that wait for it

    replicas = (sum(busy) + sum(ahead) / backlog_seconds) / utilisation

The first sum is the work that arrives per second, in replicas; the second is what clears the queue
within `backlog_seconds`. `busy` alone stops at 1 however much waits, and `ahead` alone is 0 until a
replica is overloaded, so that replicas would come and go.

Where in the flow: `replica` reports, and `ray.deployment` names `Scaling` to Ray, whose controller
calls it. The controller loads this module, so it imports nothing.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

BUSY, AHEAD = "busy", "ahead"


class Scaling:
    """The policy; Ray applies its delays and the bounds of the replicas afterwards."""

    def __init__(self, utilisation: float, backlog_seconds: float) -> None:
        """See the equation above."""
        self._utilisation = utilisation
        self._backlog_seconds = backlog_seconds

    def __call__(self, context: "AutoscalingContext") -> tuple[float, dict[str, object]]:
        """The number of replicas that are needed, not rounded; and no state."""
        reported = context.aggregated_metrics or {}
        busy, ahead = reported.get(BUSY), reported.get(AHEAD)
        if not (busy and ahead):  # no replica has reported yet
            return context.target_num_replicas, {}
        work = sum(busy.values()) + sum(ahead.values()) / self._backlog_seconds
        return work / self._utilisation, {}
