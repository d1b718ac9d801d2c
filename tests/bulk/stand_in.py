"""An Encoder without a model: the vector of a text is a digest of it."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator
from itertools import islice
from typing import Any

import numpy as np

from nomicbert.bulk.encoding import Window
from nomicbert.runtime.progress import Progress

WIDTH = 4


def vector_of(text: str) -> Any:
    """(WIDTH,) float32; the texts "nan" and "infinity" have one that is not finite."""
    digest = hashlib.sha256(text.encode()).digest()
    vector = np.frombuffer(digest[:WIDTH], np.uint8).astype(np.float32) / 256
    if text in ("nan", "infinity"):
        vector[1] = float(text)
    return vector


def vectors_of(texts: list[str]) -> Any:
    """(n, WIDTH)"""
    return np.stack([vector_of(text) for text in texts])


class StandIn:
    """Takes a token per word, and 1000 for "long"; longer texts are refused, or cut."""

    def __init__(
        self, window: int = 3, ahead: int = 0, limit: int = 100, refuses: bool = True
    ) -> None:
        """`ahead`: windows that are read before the first is handed over."""
        self.empty = np.empty((0, WIDTH), np.float32)
        self.refusal = "is too long" if refuses else None
        self.identity: dict[str, Any] = {"vectors": "stand-in"}
        self.description: dict[str, Any] = {}
        self.window, self.ahead, self.limit = window, ahead, limit

    def windows(self, texts: Iterator[str], progress: Progress) -> Generator[Window, None, None]:
        """See Encoder."""
        waiting: list[Window] = []
        while some := list(islice(texts, self.window)):
            words = [text.split() for text in some]
            lengths = [len(found) + 999 * found.count("long") for found in words]
            cut = [index for index, length in enumerate(lengths) if length > self.limit]
            lengths = [min(length, self.limit) for length in lengths]
            progress.done(sum(lengths))
            waiting.append(Window(vectors_of(some), lengths, cut))
            if len(waiting) > self.ahead:
                yield waiting.pop(0)
        yield from waiting
