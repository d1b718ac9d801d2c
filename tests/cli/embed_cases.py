"""Shared by the tests of `nomicbert embed`: input texts, a checkpoint, output formats."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from nomicbert.bulk import blocks
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
