"""Texts that have ended a worker each time they were computed alone.

Where in the flow: `isolated` asks before a batch is sent. Clients send a text again that was
answered with 500; without this list every such request would cost two more workers.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence

from nomicbert.serve.engine.cache import Key, key_of
from nomicbert.serve.engine.jobs import Piece

# Seconds until such a text is tried again, and texts that are kept.
SECONDS = 600.0
MOST = 1024


class DeadlyText(RuntimeError):
    """A text of a batch has ended workers lately; it was not computed."""


class DeadlyTexts:
    """The latest of them. Thread-safe."""

    def __init__(self, seconds: float = SECONDS) -> None:
        """`seconds`: until one is tried again."""
        self._seconds = seconds
        self._until: OrderedDict[Key, float] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, piece: Piece) -> None:
        """Remember a text."""
        with self._lock:
            self._until[_key(piece)] = time.monotonic() + self._seconds
            self._until.move_to_end(_key(piece))
            if len(self._until) > MOST:
                self._until.popitem(last=False)

    def check(self, batch: Sequence[Piece]) -> None:
        """Refuse a batch with such a text.

        Raises: DeadlyText.
        """
        if not self._until:
            return
        now = time.monotonic()
        with self._lock:
            while self._until and next(iter(self._until.values())) < now:
                self._until.popitem(last=False)
            if any(_key(piece) in self._until for piece in batch):
                raise DeadlyText("the text has ended the process that computes, as lately before")


def _key(piece: Piece) -> Key:
    return key_of(piece.job.group, None, piece.ids, piece.split)
