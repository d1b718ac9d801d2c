"""Clients that re-rank against a server with a re-ranker; `make test-clients` runs these tests.

Order and scores equal `CrossEncoder.predict` to the bit.
"""

from __future__ import annotations

import numpy as np
import torch

from nomicbert import CrossEncoder
from tests.clients.conftest import Run
from tests.support.clients import RERANKER, TEXTS, Ranked, check_rankings

ALL, TOP = Ranked(), Ranked(top=3)
RAW = Ranked(keywords={"activation_fn": torch.nn.Identity()})

COHERE = {
    "v2": ALL,
    "v2 top": TOP,
    "v2 length": ALL,
    "v1": ALL,
    "v1 objects": ALL,
    "v1 documents": Ranked(top=2),
}
LITELLM = {
    "cohere": ALL,
    "cohere top": TOP,
    "hosted_vllm": ALL,
    "hosted_vllm top": TOP,
    "hosted_vllm async": ALL,
    "jina_ai": ALL,
    "jina_ai top": TOP,
    "huggingface": ALL,
    "huggingface top": ALL,  # TEI has no top_n, and litellm cuts nothing
}
HAYSTACK = {
    "cohere": ALL,
    "cohere top": TOP,
    "jina": ALL,
    "jina top": TOP,
    "tei": ALL,
    "tei top": TOP,
    "tei raw": RAW,
}
INFINITY = {"default": ALL, "plain": ALL, "raw": RAW, "top": TOP}


def test_the_scores_tell_documents_apart(reranker: CrossEncoder) -> None:
    """A swapped document, or scores before instead of after the sigmoid, would be seen."""
    order, scores = ALL.wanted(reranker)
    assert order != sorted(order)
    assert np.diff(scores[0]).max() < -1e-5
    assert np.abs(RAW.wanted(reranker)[1] - scores).min() > 1e-3


def test_cohere(run: Run, reranker: CrossEncoder) -> None:
    answers = run("cohere_rerank", RERANKER)
    check_rankings(answers, COHERE, reranker)
    order, _ = COHERE["v1 documents"].wanted(reranker)
    given = answers.calls["v1 documents"]["documents"]
    assert given == [TEXTS["many"][index] for index in order]
    assert answers.calls["v1"]["documents"] == []
    for name in ("v1 unknown model", "v2 unknown model"):
        error = answers.error(name)
        assert (error["error"], error["status"]) == ("NotFoundError", 404), name
        assert "no-such-model" in error["message"], name


def test_litellm(run: Run, reranker: CrossEncoder) -> None:
    # its provider huggingface/ asks the hub about the model, and goes on without an answer
    answers = run("litellm_rerank", RERANKER, beyond=("huggingface.co",))
    check_rankings(answers, LITELLM, reranker)
    # its own fault: for infinity/ it wants a document as a string, for hosted_vllm/ as an object
    error = answers.error("infinity")
    assert error["error"] == "APIConnectionError"
    assert "results.0.document.text\n  Input should be a valid string" in error["message"]


def test_haystack(run: Run, reranker: CrossEncoder) -> None:
    check_rankings(run("haystack_rerank", RERANKER), HAYSTACK, reranker)


def test_infinity_client(run: Run, reranker: CrossEncoder) -> None:
    answers = run("infinity_client_rerank", RERANKER)
    check_rankings(answers, INFINITY, reranker)
    assert {call["model"] for name, call in answers.calls.items() if name in INFINITY} == {RERANKER}
