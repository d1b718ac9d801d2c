"""Shared by the tests of `nomicbert embed`: input texts, a checkpoint, output formats."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nomicbert.embedder
from nomicbert.bulk import blocks, encoding
from nomicbert.bulk.encoding import Window
from nomicbert.embedder import Embedder
from tests.support.checkpoints import build_checkpoint

TEXTS = ["first", "", "the second one is longer", "你好 world", "x" * 300, "", "a b c d e f g", "8"]
DOCS = [
    {"id": f"doc-{row}", "body": text, "tags": ["t"] * row, "score": row / 3}
    for row, text in enumerate(TEXTS)
]
HAS_PYARROW = importlib.util.find_spec("pyarrow") is not None
needs_pyarrow = pytest.mark.skipif(not HAS_PYARROW, reason="pyarrow is not installed")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and /dev/full")
FORMATS = ["npy", "jsonl", pytest.param("parquet", marks=needs_pyarrow)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("c"), "nomic-v1.5", num_hidden_layers=1)


@pytest.fixture(scope="module")
def embedder(checkpoint: Path) -> Embedder:
    return Embedder(checkpoint)


class Recorder:
    """Stands for a model: only records how it is loaded and asked.

    Attributes:
        loaded: arguments of the Embedder.
        asked: keywords of the encoder.
        seen: the texts.
        broken: numbers of the texts whose vectors get a NaN.
        fails_at: number of the text that ends everything.
    """

    def __init__(self) -> None:
        self.loaded: dict[str, Any] = {}
        self.asked: dict[str, Any] = {}
        self.seen: list[str] = []
        self.broken: set[int] = set()
        self.fails_at: int | None = None
        self.empty = np.empty((0, 3), np.float32)
        self.refusal = None
        self.identity = {"vectors": "recorder"}
        self.description = {"model": "a recorder"}

    def load(self, **arguments: Any) -> None:
        """In place of the class Embedder."""
        self.loaded = arguments

    def open(self, _embedder: None, **keywords: Any) -> Recorder:
        """In place of the class EmbedderEncoder."""
        self.asked = keywords
        return self

    def windows(self, texts: Iterator[str], _progress: Any) -> Iterator[Window]:
        """Each text's length, three times."""
        for number, text in enumerate(texts):
            if number == self.fails_at:
                raise ValueError("no more")
            self.seen.append(text)
            vectors = np.full((1, 3), len(text), np.float32)
            vectors[0, 1:2] = np.nan if number in self.broken else len(text)
            yield Window(vectors, [len(text)], [])


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    found = Recorder()
    monkeypatch.setattr(nomicbert.embedder, "Embedder", found.load)
    monkeypatch.setattr(encoding, "EmbedderEncoder", found.open)
    return found


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model must not be loaded."""

    def load(**_: Any) -> None:
        raise AssertionError("the model was loaded before the mistake was found")

    monkeypatch.setattr(nomicbert.embedder, "Embedder", load)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "in/texts.txt"
    path.parent.mkdir()
    path.write_text("\n".join(TEXTS) + "\n", "utf-8")
    return path


@pytest.fixture
def docs(texts: Path) -> Path:
    path = texts.with_name("docs.jsonl")
    path.write_text("\n".join(json.dumps(doc) for doc in DOCS), "utf-8")
    return path


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 3)
