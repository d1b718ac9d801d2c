"""Recall of bits on real text: the standard library's docstrings with all-MiniLM-L6-v2."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nomicbert.bulk.search_vectors import search_vectors
from nomicbert.cli.demo import WEIGHTS_PACKAGE, packaged_weights
from nomicbert.embedder import Embedder
from nomicbert.text.corpus import read_passages

PASSAGES = 400
QUESTIONS = 100
WORDS = 12


@pytest.mark.skipif(
    importlib.util.find_spec(WEIGHTS_PACKAGE) is None,
    reason="the packaged weights of all-MiniLM-L6-v2 are not installed",
)
def test_bits_find_most_of_what_is_near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Questions are words from inside a docstring, which is not cut at a sentence."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    passages = read_passages(PASSAGES)
    long = [one.summary.split() for one in passages]
    questions = [" ".join(words[3 : 3 + WORDS]) for words in long if len(words) > 3 + WORDS]
    embedder = Embedder(packaged_weights())
    vectors = np.asarray(embedder.encode_document([one.text for one in passages]))
    asked = np.asarray(embedder.encode_query(questions[:QUESTIONS]))
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    pq.write_table(pa.table({"embedding": column}), tmp_path / "v.parquet")
    exact = search_vectors(tmp_path / "v.parquet", asked).rows

    def recall(oversampling: int) -> float:
        found = search_vectors(
            tmp_path / "v.parquet", asked, bits=True, oversampling=oversampling
        ).rows
        pairs = zip(found, exact, strict=True)
        return float(np.mean([len(set(one) & set(other)) / 10 for one, other in pairs]))

    assert recall(16) >= 0.96
    assert recall(1) < 0.9
