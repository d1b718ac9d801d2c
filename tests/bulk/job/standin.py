"""A job without a model: an Encoder whose vectors are hashes, and what to look at afterwards."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nomicbert.bulk.job.options import Options
from nomicbert.bulk.job.plan import plan_job
from nomicbert.bulk.job.report import BulkReport
from nomicbert.bulk.job.run import run_job
from nomicbert.bulk.progress import BulkProgress

WIDTH = 8


class Window(NamedTuple):
    """As in `nomicbert.bulk.encoding`, which imports torch."""

    vectors: np.ndarray[Any, Any]
    lengths: list[int]
    cut: list[int]


class Hashes:
    """Vectors of 8 floats that depend on the text alone; reads two windows ahead, as on a GPU.

    A text is as many tokens as it has characters; longer ones than `longest` are cut or refused.
    A text that begins with "NaN" has a vector of NaN.
    """

    def __init__(
        self,
        window: int = 5,
        model: str = "hashes",
        longest: int = 60,
        truncate: str = "end",
        width: int = WIDTH,
        delay: float = 0.0,
    ) -> None:
        self.window, self.longest, self.delay = window, longest, delay
        self.empty = np.empty((0, width), np.float32)
        self.identity: dict[str, Any] = {"vectors": model, "truncate": truncate}
        self.description = {"model": f"model {model}"}
        self.refusal = f"has over {longest} tokens" if truncate == "error" else None

    def vector(self, text: str) -> np.ndarray[Any, Any]:
        width = self.empty.shape[1]
        if text.startswith("NaN"):
            return np.full(width, np.nan, np.float32)
        digest = hashlib.shake_128(text[: self.longest].encode()).digest(width)
        return np.frombuffer(digest, np.uint8).astype(np.float32) / 255

    def windows(self, texts: Iterator[str], progress: Any) -> Iterator[Window]:
        ahead: list[list[str]] = []
        while True:
            while len(ahead) < 3 and (texts_now := list(islice(texts, self.window))):
                ahead.append(texts_now)
            if not ahead:
                return
            yield self._window(ahead.pop(0))

    def _window(self, texts: list[str]) -> Window:
        time.sleep(self.delay)
        cut = [index for index, text in enumerate(texts) if len(text) > self.longest]
        lengths = [min(len(text), self.longest) for text in texts]
        return Window(np.stack([self.vector(text) for text in texts]), lengths, cut)


def embed(
    inputs: list[str] | str,
    output: Path | str,
    encoder: Any = None,
    progress: Any = None,
    **options: Any,
) -> BulkReport:
    """Run a job."""
    names = [inputs] if isinstance(inputs, str) else inputs
    with plan_job(names, str(output), Options(**options)) as job:
        told = progress or BulkProgress("none", job.total_bytes, job.left_bytes)
        return run_job(job, encoder or Hashes(), told)


def parts_of(output: Path) -> list[Path]:
    """The parts in order."""
    return sorted(output.glob("part-*.parquet"))


def rejects_of(output: Path) -> list[dict[str, Any]]:
    """The rejected rows in order of their files."""
    files = sorted(output.glob("_rejected-*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_bytes().splitlines()]
