"""POST / and /invocations: the first model decides, and for embeddings the body."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nomicbert import Embedder
from tests.support import scoring
from tests.support.scoring import CLASSIFIER, EMBEDDER, LONG, ONE, QUERY
from tests.support.served import LONG as LONG_TEXT
from tests.support.served import bits, embedder_of
from tests.support.serving import InThread, in_thread

PATHS = ["/", "/invocations"]
RANK = {"query": QUERY, "texts": ["a fox", "b", LONG]}
DOCUMENTS = {"query": QUERY, "documents": ["a fox", "b"]}
PREDICT = {"inputs": [[QUERY, "a fox"], ["b"]]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return scoring.build(tmp_path_factory.mktemp("root"))


def test_a_reranker_ranks(folders: dict[str, Path]) -> None:
    with in_thread(folders[ONE], folders[CLASSIFIER], folders[EMBEDDER]) as server:
        for path in PATHS:
            assert server.call(path, RANK).json == server.call("/rerank", RANK).json
            assert len(server.call(path, RANK).json) == 3
            found = server.call(path, DOCUMENTS).json
            assert found["results"] == server.call("/rerank", DOCUMENTS).json["results"]
            assert server.call(path, {"inputs": "a"}).status == 422


def test_a_classifier_predicts(folders: dict[str, Path]) -> None:
    with in_thread(folders[CLASSIFIER], folders[ONE], folders[EMBEDDER]) as server:
        for path in PATHS:
            assert server.call(path, PREDICT).json == server.call("/predict", PREDICT).json
            assert [len(row) for row in server.call(path, PREDICT).json] == [3, 3]
            assert server.call(path, RANK).status == 422


@pytest.fixture(scope="module")
def server(folders: dict[str, Path]) -> object:
    with in_thread(folders[EMBEDDER], folders[ONE], max_length=64) as found:
        yield found
        assert found.metric("nomicbert_internal_errors_total") == 0


@pytest.fixture(scope="module")
def embedder(server: InThread) -> Embedder:
    return embedder_of(server)


def test_an_embedding_model_embeds(server: InThread) -> None:
    for path in PATHS:
        for body in (
            {"inputs": ["a"]},
            {"inputs": "a", "dimensions": 8},
            {"inputs": ["a"], "texts": ["b"]},  # with `inputs` it is TEI's body
        ):
            assert server.call(path, body).json == server.call("/embed", body).json
        sentences = {"inputs": {"source_sentence": "a", "sentences": ["b", "c"]}}
        assert server.call(path, sentences).json == server.call("/similarity", sentences).json
    assert server.call("/", {"texts": ["a"]}).status == 422


def test_the_body_of_sagemaker(server: InThread, embedder: Embedder) -> None:
    texts = ["What is TSNE?", ""]
    body = {"texts": texts, "binary": False, "dimensionality": 64, "task_type": "search_query"}
    reply = server.call("/invocations", body)
    assert list(reply.json) == ["embeddings"]
    wanted = embedder.encode(texts, prompt="search_query: ", matryoshka_dim=64)
    assert bits(reply.vectors) == bits(wanted)
    assert "x-embedding-fingerprint" in reply.headers
    # the whole width by default, with the recipe's layer_norm as in nomic's API
    assert bits(server.call("/invocations", {"texts": texts}).vectors) == bits(
        embedder.encode(texts, prompt="", matryoshka_dim=64)
    )
    short = server.call("/invocations", body | {"dimensionality": 16}).vectors
    assert bits(short) == bits(embedder.encode(texts, prompt="search_query: ", matryoshka_dim=16))
    signs = server.call("/invocations", body | {"binary": True}).json["embeddings"]
    np.testing.assert_array_equal(signs, np.packbits(wanted > 0, axis=1))
    for key in ("binary", "dimensionality", "task_type", "inputs", "on_long"):
        assert server.call("/invocations", body | {key: None}).status == 200


def test_long_texts_of_sagemaker(server: InThread, embedder: Embedder) -> None:
    reply = server.call("/invocations", {"texts": ["a", LONG_TEXT]})
    assert reply.headers["x-truncated-texts"] == "1"
    assert server.call("/invocations", {"texts": [LONG_TEXT], "on_long": "error"}).status == 422
    windows = server.call("/invocations", {"texts": [LONG_TEXT], "on_long": "mean"})
    wanted = embedder.encode([LONG_TEXT], prompt="", matryoshka_dim=64, truncate="mean")
    assert bits(windows.vectors) == bits(wanted)


@pytest.mark.parametrize(
    ("change", "status", "kind"),
    [
        ({"texts": []}, 400, "Empty"),
        ({"texts": "a"}, 422, "Validation"),
        ({"texts": [1]}, 422, "Validation"),
        ({"texts": None}, 422, "Validation"),
        ({"dimensionality": 65}, 422, "Validation"),
        ({"dimensionality": 0}, 422, "Validation"),
        ({"task_type": "separation"}, 422, "Validation"),
        ({"binary": 1}, 422, "Validation"),
    ],
    ids=str,
)
def test_mistakes(server: InThread, change: dict[str, object], status: int, kind: str) -> None:
    reply = server.call("/invocations", {"texts": ["a"]} | change)
    assert (reply.status, reply.json["error_type"]) == (status, kind)
