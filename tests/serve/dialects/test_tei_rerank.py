"""TEI's /rerank and /predict: scores, labels, order, headers, mistakes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nomicbert import CrossEncoder
from tests.support import scoring
from tests.support.sameness import HAS_ONEDNN
from tests.support.scoring import (
    CLASSIFIER,
    CUT,
    DOCUMENTS,
    LIMIT,
    LONG,
    ONE,
    PROMPTED,
    QUERY,
    RAW,
    UNTYPED,
    Scores,
    floats,
)
from tests.support.serving import InThread, Reply, in_thread

CUTS = "ignore:.*were longer than"
IDENTITY, SIGMOID = nn.Identity(), nn.Sigmoid()
PAIRS = [(QUERY, text) for text in DOCUMENTS]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return scoring.build(tmp_path_factory.mktemp("tei"))


@pytest.fixture(scope="module")
def server(folders: dict[str, Path]) -> Iterator[InThread]:
    with in_thread(folders[ONE], folders[CLASSIFIER]) as found:
        yield found
        assert found.metric("nomicbert_internal_errors_total") == 0


def rerank(server: InThread, **body: Any) -> Reply:
    return server.call("/rerank", {"query": QUERY, "texts": DOCUMENTS} | body)


def predict(server: InThread, inputs: Any, **body: Any) -> Reply:
    return server.call("/predict", {"inputs": inputs} | body)


def scores(reply: Reply) -> np.ndarray:
    """The scores of /rerank in the order of the texts."""
    assert reply.status == 200, reply.body
    return floats([item["score"] for item in sorted(reply.json, key=lambda item: item["index"])])


def logits(reply: Reply) -> np.ndarray:
    """The scores of a batch of /predict in the order of the labels."""
    assert reply.status == 200, reply.body
    rows = [sorted(row, key=lambda item: item["label"]) for row in reply.json]
    return floats([[item["score"] for item in row] for row in rows])


@pytest.mark.filterwarnings(CUTS)
def test_rerank(server: InThread, folders: dict[str, Path]) -> None:
    model = CrossEncoder(folders[ONE])
    for raw, activation in ((False, SIGMOID), (True, IDENTITY), (None, SIGMOID)):
        reply = rerank(server, raw_scores=raw)
        truth = model.rank(QUERY, DOCUMENTS, activation_fn=activation)
        if HAS_ONEDNN:  # without it equal texts of different batches may differ
            assert [item["index"] for item in reply.json] == [row["corpus_id"] for row in truth]
        assert Scores(floats([item["score"] for item in reply.json])) == Scores(
            floats([row["score"] for row in truth])
        )
        assert all(set(item) == {"index", "score"} for item in reply.json)
    assert "x-embedding-fingerprint" not in reply.headers
    ids, _, _ = model.tokenizer.encode_pairs(PAIRS, LIMIT)
    assert reply.headers["x-compute-tokens"] == str(sum(map(len, ids)))
    assert reply.headers["x-compute-characters"] == str(sum(len(a) + len(b) for a, b in PAIRS))
    assert reply.headers["x-truncated-texts"] == str(CUT)
    for item in rerank(server, return_text=True).json:
        assert item["text"] == DOCUMENTS[item["index"]]


@pytest.mark.parametrize("name", [RAW, UNTYPED, PROMPTED])
@pytest.mark.filterwarnings(CUTS)
def test_other_rerankers(folders: dict[str, Path], name: str) -> None:
    """TEI's scores are the sigmoid's whatever the checkpoint's activation; the prompt counts."""
    model = CrossEncoder(folders[name])
    with in_thread(folders[name]) as server:
        for raw, activation in ((False, SIGMOID), (True, IDENTITY)):
            wanted = model.predict(PAIRS, activation_fn=activation)
            assert Scores(scores(rerank(server, raw_scores=raw))) == Scores(wanted)
        (found,) = logits(predict(server, [[QUERY, "a"]]))
        assert Scores(found) == Scores(model.predict([(QUERY, "a")], activation_fn=SIGMOID))


@pytest.mark.filterwarnings(CUTS)
def test_predict(server: InThread, folders: dict[str, Path]) -> None:
    model = CrossEncoder(folders[CLASSIFIER])
    raw = predict(server, PAIRS, raw_scores=True)
    wanted = model.predict(PAIRS, activation_fn=IDENTITY)
    assert Scores(logits(raw)) == Scores(wanted)
    soft = predict(server, PAIRS)
    assert Scores(logits(soft)) == Scores(model.predict(PAIRS, apply_softmax=True))
    for reply in (raw, soft):
        for row in reply.json:
            assert [set(item) for item in row] == [{"score", "label"}] * 3
            found = [item["score"] for item in row]
            assert found == sorted(found, reverse=True)
    orders = {tuple(item["label"] for item in row) for row in raw.json}
    assert len(orders) > 1  # so that a label that stays with its column would be seen
    assert reply.headers["x-truncated-texts"] == str(CUT)


def test_forms_of_inputs(server: InThread, folders: dict[str, Path]) -> None:
    model = CrossEncoder(folders[CLASSIFIER])

    def ask(inputs: Any, index: int | None = None) -> np.ndarray:
        """The logits of a single input, or of one of a batch."""
        found = predict(server, inputs, raw_scores=True).json
        row = sorted(found if index is None else found[index], key=lambda item: item["label"])
        assert [item["label"] for item in row] == ["LABEL_0", "LABEL_1", "LABEL_2"]
        return floats([item["score"] for item in row])

    pair = Scores(model.predict((QUERY, "a fox"), activation_fn=IDENTITY))
    assert Scores(ask([QUERY, "a fox"])) == pair
    assert Scores(ask([[QUERY, "a fox"]], 0)) == pair
    assert Scores(ask([[QUERY, "a fox"], ["b"]], 0)) == pair
    text = ask("a fox")
    assert Scores(ask(["a fox"])) == Scores(text)
    assert Scores(ask([["a fox"]], 0)) == Scores(text)
    assert Scores(ask([["b", "c"], ["a fox"]], 1)) == Scores(text)
    ids, _ = model.tokenizer.encode(["a fox"], LIMIT)
    truth = model.model(torch.tensor(ids)).logits.detach().numpy()[0]
    np.testing.assert_allclose(text, truth, atol=1e-5)


def test_a_classifier_does_not_rank(folders: dict[str, Path]) -> None:
    with in_thread(folders[CLASSIFIER]) as server:
        for path, body in (
            ("/rerank", {"query": "a", "texts": ["b"]}),
            ("/rerank", {"query": "a", "documents": ["b"]}),
        ):
            reply = server.call(path, body)
            assert (reply.status, reply.json) == (
                424, {"error": "the model is not a re-ranker model", "error_type": "Backend"}
            )  # fmt: skip
        reply = server.call("/v1/rerank", {"query": "a", "documents": ["b"]})
        assert (reply.status, list(reply.json)) == (400, ["message"])
        assert server.call("/score", {"text_1": "a", "text_2": "b"}).status == 400


def test_long_pairs(server: InThread, folders: dict[str, Path]) -> None:
    for call in (
        lambda **more: rerank(server, texts=["a", LONG], **more),
        lambda **more: predict(server, [["a"], [QUERY, LONG]], **more),
    ):
        for more in ({}, {"truncate": True}, {"truncate": None}, {"on_long": "end"}):
            assert call(**more).headers["x-truncated-texts"] == "1"
        for more in ({"truncate": False}, {"on_long": "error"}):
            reply = call(**more)
            assert (reply.status, reply.json["error_type"]) == (422, "Validation")
            assert f"must have at most {LIMIT} tokens. Given: " in reply.json["error"]
            assert reply.json["error"].endswith(" in pair 1")
    lone = predict(server, LONG, truncate=False)
    assert lone.json["error"].endswith(" in text 0")
    with in_thread(folders[ONE], auto_truncate=False) as strict:
        assert rerank(strict).status == 422
        assert rerank(strict, truncate=True).status == 200
    with in_thread(folders[ONE], on_long="error") as strict:
        assert rerank(strict, truncate=True).status == 422
    with in_thread(folders[ONE], on_long="mean") as lenient:  # for texts that are embedded
        assert rerank(lenient).headers["x-truncated-texts"] == str(CUT)
        assert rerank(lenient, truncate=False).status == 422


@pytest.mark.parametrize("path", ["/rerank", "/predict"])
@pytest.mark.parametrize(("direction", "status"), [("Right", 200), ("right", 200), ("Left", 422)])
def test_direction(server: InThread, path: str, direction: str, status: int) -> None:
    body = {"query": "a", "texts": ["b"], "inputs": "a", "truncation_direction": direction}
    assert server.call(path, body).status == status


WRONG_TEXTS: list[tuple[dict[str, Any], int, str]] = [
    ({"texts": []}, 400, "Empty"),
    ({"texts": None}, 422, "Validation"),
    ({"texts": "a"}, 422, "Validation"),
    ({"texts": [1]}, 422, "Validation"),
    ({"texts": [None]}, 422, "Validation"),
    ({"texts": [["a"]]}, 422, "Validation"),
    ({"query": None}, 422, "Validation"),
    ({"query": ["a"]}, 422, "Validation"),
    ({"raw_scores": 1}, 422, "Validation"),
    ({"return_text": "true"}, 422, "Validation"),
    ({"truncate": 0}, 422, "Validation"),
    ({"truncation_direction": "Up"}, 422, "Validation"),
    ({"on_long": "chunk"}, 422, "Validation"),
]
WRONG_INPUTS: list[tuple[Any, int, str]] = [
    ([], 400, "Empty"),
    (None, 422, "Validation"),
    (1, 422, "Validation"),
    ({}, 422, "Validation"),
    ([None], 422, "Validation"),
    ([1], 422, "Validation"),
    (["a", "b", "c"], 422, "Validation"),
    (["a", ["b"]], 422, "Validation"),
    ([["a"], "b"], 422, "Validation"),
    ([[]], 422, "Validation"),
    ([["a", "b", "c"]], 422, "Validation"),
    ([["a"], []], 422, "Validation"),
    ([[["a"]]], 422, "Validation"),
]


@pytest.mark.parametrize(("change", "status", "kind"), WRONG_TEXTS, ids=str)
def test_mistakes_in_rerank(
    server: InThread, change: dict[str, Any], status: int, kind: str
) -> None:
    reply = rerank(server, **change)
    assert (reply.status, reply.json["error_type"]) == (status, kind)


@pytest.mark.parametrize(("inputs", "status", "kind"), WRONG_INPUTS, ids=str)
def test_mistakes_in_predict(server: InThread, inputs: Any, status: int, kind: str) -> None:
    reply = predict(server, inputs)
    assert (reply.status, reply.json["error_type"]) == (status, kind)


@pytest.mark.parametrize("path", ["/rerank", "/predict", "/", "/invocations"])
def test_what_is_not_json(server: InThread, path: str) -> None:
    for body in (b"", b"{", b'{"query":"\\ud800","texts":["a"]}', b"\xff"):
        reply = server.call(path, body, headers={"content-type": "application/json"})
        assert reply.status == 400
        assert reply.json["error"].startswith("the body is not JSON: ")
    reply = server.call(path, b"[]", headers={"content-type": "application/json"})
    assert (reply.status, reply.json["error_type"]) == (422, "Validation")
    assert server.call(path, {}).status == 422


def test_texts_win_over_documents(server: InThread) -> None:
    both = rerank(server, documents=5).json
    assert both == rerank(server).json
    spaced = b'{"texts" : null , "query": "a", "documents" : ["b"]}'
    reply = server.call("/rerank", spaced, headers={"content-type": "application/json"})
    assert len(reply.json["results"]) == 1


def test_the_size_of_a_batch(folders: dict[str, Path]) -> None:
    with in_thread(folders[ONE], max_client_batch_size=2) as server:
        for path, body in (
            ("/rerank", {"query": "a", "texts": ["b"] * 3}),
            ("/predict", {"inputs": [["a"]] * 3}),
            ("/rerank", {"query": "a", "documents": ["b"] * 3}),
            ("/v2/rerank", {"query": "a", "documents": ["b"] * 3}),
            ("/score", {"text_1": "a", "text_2": ["b"] * 3}),
        ):
            reply = server.call(path, body)
            assert reply.status == (400 if "documents" in body or path == "/score" else 422)
            assert "batch size 3 > maximum allowed batch size 2" in reply.body.decode()
        assert server.call("/predict", {"inputs": ["a", "b"]}).status == 200  # one pair
