"""Similarity of vectors: against the formulas and against sentence-transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SimilarityFunction, util

from nomicbert import Embedder
from nomicbert.vectors.similarity import SIMILARITIES, similarity, similarity_pairwise
from tests.support.checkpoints import build_checkpoint

THEIRS = {
    "cosine": util.cos_sim,
    "dot": util.dot_score,
    "euclidean": util.euclidean_sim,
    "manhattan": util.manhattan_sim,
}


PAIRED = {
    "cosine": util.pairwise_cos_sim,
    "dot": util.pairwise_dot_score,
    "euclidean": util.pairwise_euclidean_sim,
    "manhattan": util.pairwise_manhattan_sim,
}


def _formula(name: str, a: np.ndarray, b: np.ndarray) -> float:
    if name == "euclidean":
        return -np.sqrt(((a - b) ** 2).sum())
    if name == "manhattan":
        return -np.abs(a - b).sum()
    scale = np.sqrt((a**2).sum() * (b**2).sum()) if name == "cosine" else 1.0
    return (a * b).sum() / scale


@pytest.mark.parametrize("name", SIMILARITIES)
def test_against_formula_and_reference(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(5, 48)) * 3, rng.normal(size=(7, 48)) - 0.2
    ours = similarity(a.astype(np.float32), torch.from_numpy(b), name)
    assert ours.dtype == torch.float32
    truth = np.array([[_formula(name, x, y) for y in b] for x in a])
    np.testing.assert_allclose(ours, truth, rtol=1e-5, atol=2e-5)
    theirs = THEIRS[name](torch.from_numpy(a).float(), torch.from_numpy(b).float())
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-5)


def test_the_names_are_sentence_transformers() -> None:
    assert set(SIMILARITIES) == set(THEIRS)


def test_one_vector_is_one_row() -> None:
    a, b = np.array([3.0, 4.0]), np.array([[0.0, 2.0], [1.0, 0.0], [-3.0, -4.0]])
    np.testing.assert_allclose(similarity(a, b), [[0.8, 0.6, -1.0]], atol=1e-6)
    np.testing.assert_allclose(similarity(b, a), [[0.8], [0.6], [-1.0]], atol=1e-6)
    np.testing.assert_allclose(similarity(a, a, "dot"), [[25.0]])


def test_a_zero_vector_has_similarity_0() -> None:
    assert similarity(np.zeros(3), np.ones((2, 3))).tolist() == [[0.0, 0.0]]


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="cosine, dot, euclidean, manhattan, not 'angle'"):
        similarity(np.ones(2), np.ones(2), "angle")


@pytest.mark.parametrize(("stated", "meant"), [(None, "cosine"), ("dot", "dot")])
def test_the_checkpoint_says_which(stated: str | None, meant: str, tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "conan-v1", num_hidden_layers=1)
    path = tmp_path / "config_sentence_transformers.json"
    path.write_text(json.dumps({"similarity_fn_name": stated}), "utf-8")
    embedder = Embedder.from_pretrained(tmp_path)
    vectors = embedder.encode(["北京大学在中国。", "什么是深度学习？", "x"])
    theirs = THEIRS[meant](torch.from_numpy(vectors), torch.from_numpy(vectors))
    np.testing.assert_allclose(embedder.similarity(vectors, vectors), theirs, rtol=1e-5, atol=1e-5)
    assert abs(vectors[0] @ vectors[0] - 1) > 0.01  # otherwise cosine and dot would give the same


@pytest.mark.parametrize("name", SIMILARITIES)
def test_pair_by_pair(name: str, seed: int) -> None:
    """The diagonal of all against all, and sentence-transformers' own."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(6, 48)) * 3, rng.normal(size=(6, 48)) - 0.2
    found = similarity_pairwise(a.astype(np.float32), torch.from_numpy(b), name)
    assert found.dtype == torch.float32
    truth = [_formula(name, x, y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(found, truth, rtol=1e-5, atol=2e-5)
    theirs = PAIRED[name](torch.from_numpy(a).float(), torch.from_numpy(b).float())
    np.testing.assert_allclose(found, theirs, rtol=1e-5, atol=2e-5)
    assert similarity_pairwise(a[0], b[0], name).shape == (1,)


def test_pairs_need_two_sides() -> None:
    with pytest.raises(ValueError, match=r"not \(2, 3\) and \(1, 3\): use similarity for all"):
        similarity_pairwise(np.ones((2, 3)), np.ones(3))
    with pytest.raises(ValueError, match="not 'angle'"):
        similarity_pairwise(np.ones(2), np.ones(2), "angle")


def test_what_is_no_vector() -> None:
    for texts in (["a text"], "a text"):
        with pytest.raises(
            TypeError, match=r"vectors, not texts: give it embedder\.encode\(texts\)"
        ):
            similarity(texts, np.ones(3))  # type: ignore[arg-type]
    for function in (similarity, similarity_pairwise):
        with pytest.raises(ValueError, match=r"the same width, not \(2, 3\) and \(2, 4\)"):
            function(np.ones((2, 3)), np.ones((2, 4)))


def test_lists_of_vectors(tmp_path: Path) -> None:
    """What encode returns with convert_to_numpy=False, and what sentence-transformers takes."""
    build_checkpoint(tmp_path, "conan-v1", num_hidden_layers=1)
    embedder = Embedder(tmp_path)
    rows = embedder.encode(["北京大学在中国。", "什么是深度学习？", "x"], convert_to_numpy=False)
    whole = torch.stack(rows)
    forms = [rows, [row.numpy() for row in rows], [row.tolist() for row in rows], whole.numpy()]
    for name in SIMILARITIES:
        embedder.similarity_fn_name = name
        theirs, paired = THEIRS[name](whole, whole), PAIRED[name](whole, whole)
        for form in [*forms, tuple(rows)]:
            found = embedder.similarity(form, rows)
            np.testing.assert_allclose(found, theirs, rtol=1e-5, atol=2e-5)
            found = embedder.similarity_pairwise(form, whole)
            np.testing.assert_allclose(found, paired, rtol=1e-5, atol=2e-5)
    halves = [row.half() for row in rows]
    np.testing.assert_allclose(
        similarity(halves, halves), util.cos_sim(halves, halves), rtol=1e-5, atol=1e-5
    )
    assert similarity([], rows).shape == (0, 3)
    assert similarity(rows, embedder.encode([], convert_to_numpy=False)).shape == (3, 0)
    assert similarity_pairwise([], []).shape == (0,)
    leaf = rows[0].clone().requires_grad_()
    similarity([leaf, rows[1]], rows).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (
            iter([np.ones(3)]),
            TypeError,
            "similarity takes vectors, not a stream of them: give a list",
        ),
        ([np.ones(3), np.ones(4)], TypeError, "similarity takes vectors"),
        ([["a"]], TypeError, r"vectors, \(n, dim\) or a list of them, not \[\['a'\]\]"),
        (None, TypeError, r"vectors, \(n, dim\) or a list of them, not None"),
        (np.ones((1, 2, 3)), ValueError, "vectors must have the same width"),
        (np.ones((0, 4)), ValueError, r"the same width, not \(0, 4\) and \(1, 3\)"),
    ],
)
def test_lists_of_something_else(wrong: Any, error: type, message: str) -> None:
    for function in (similarity, similarity_pairwise):
        with pytest.raises(error, match=message):
            function(wrong, np.ones(3))


def test_the_enumeration_is_a_name() -> None:
    a, b = np.array([[3.0, 4.0]]), np.array([[1.0, 2.0]])
    for kind in SimilarityFunction:
        if kind.value in SIMILARITIES:
            found = similarity(a, b, kind)  # type: ignore[arg-type]
            np.testing.assert_array_equal(found, similarity(a, b, kind.value))
    with pytest.raises(ValueError, match=r"similarity_fn_name must be one of .*, not 'maxsim'"):
        similarity(a, b, SimilarityFunction.MAXSIM)  # type: ignore[arg-type]
