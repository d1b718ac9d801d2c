"""The workers of all devices, as the engine and health see them.

Where in the flow: `isolated.load` makes them; `engine` waits here before it takes a batch from the
queue, so that a device without a worker leaves the work to the others.
"""

import threading
import time
from collections.abc import Sequence

from nomicbert.serve.engine.keeper import Keeper


class Workers:
    """The keepers of all devices.

    Attributes:
        keepers: one per device.
    """

    def __init__(self, keepers: Sequence[Keeper], changed: threading.Condition) -> None:
        """`changed`: notified when one of them changes."""
        self.keepers = keepers
        self._changed = changed
        self._closed = False

    def await_ready(self, number: int) -> None:
        """Wait until a device has a worker, or none has and what waits is to be refused."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or self.keepers[number].is_ready or self._all_down()
            )

    @property
    def problem(self) -> str:
        """Why not all devices compute; "" if they do."""
        dead = not all(keeper.is_ready for keeper in self.keepers)
        return "a worker has ended and is started again" if dead else ""

    @property
    def restarts(self) -> int:
        """How often a worker was started again."""
        return sum(keeper.restarts for keeper in self.keepers)

    def dead_seconds(self) -> float:
        """How long a device has been without a worker; of several, the longest time."""
        return max(keeper.dead_seconds() for keeper in self.keepers)

    def unanswered_seconds(self) -> float:
        """How long a device was asked without an answer; of several, the longest time."""
        return max(keeper.unanswered.seconds() for keeper in self.keepers)

    def close(self) -> None:
        """Start no more workers; nobody waits for one from now on."""
        for keeper in self.keepers:
            keeper.close()
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def stop(self, seconds: float) -> None:
        """After `close`: end all workers; wait for their ends for so many seconds at most."""
        end = time.monotonic() + seconds
        for keeper in self.keepers:
            keeper.stop(max(end - time.monotonic(), 0.0))

    def _all_down(self) -> bool:
        return all(keeper.is_down for keeper in self.keepers)
