"""POST /score and /v1/score: the three names of the sides, scores, limits, mistakes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from nomicbert import CrossEncoder
from tests.support import scoring
from tests.support.scoring import LIMIT, LONG, ONE, QUERY, RERANKERS, Scores, floats
from tests.support.serving import InThread, Reply, in_thread
from tests.support.vocabularies import SENTENCES

TEXTS = [*SENTENCES, ""]
SIDES = [("text_1", "text_2"), ("queries", "documents"), ("data_1", "data_2")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return scoring.build(tmp_path_factory.mktemp("score"))


@pytest.fixture(scope="module")
def server(folders: dict[str, Path]) -> Iterator[InThread]:
    with in_thread(*(folders[name] for name in RERANKERS)) as found:
        yield found
        assert found.metric("nomicbert_internal_errors_total") == 0


def scores(reply: Reply) -> np.ndarray:
    assert reply.status == 200, reply.body
    data = reply.json["data"]
    assert [item["index"] for item in data] == list(range(len(data)))
    assert {item["object"] for item in data} == {"score"}
    return floats([item["score"] for item in data])


@pytest.mark.parametrize("name", RERANKERS)
@pytest.mark.parametrize("path", ["/score", "/v1/score"])
def test_scores_are_those_of_predict(
    server: InThread, folders: dict[str, Path], path: str, name: str
) -> None:
    model = CrossEncoder(folders[name])
    pairs = [(QUERY, text) for text in TEXTS]
    body: dict[str, Any] = {"model": name, "text_1": QUERY, "text_2": TEXTS}
    assert Scores(scores(server.call(path, body))) == Scores(model.predict(pairs))
    for value, activation in ((False, nn.Identity()), (True, None), (None, None)):
        wanted = model.predict(pairs, activation_fn=activation)
        found = scores(server.call(path, body | {"use_activation": value}))
        assert Scores(found) == Scores(wanted)


@pytest.mark.parametrize(("first", "second"), SIDES)
def test_sides(server: InThread, folders: dict[str, Path], first: str, second: str) -> None:
    model = CrossEncoder(folders[ONE])

    def ask(a: Any, b: Any) -> np.ndarray:
        return scores(server.call("/score", {first: a, second: b}))

    assert Scores(ask(QUERY, "a")) == Scores(model.predict([(QUERY, "a")]))
    wanted = model.predict([(QUERY, text) for text in TEXTS])
    assert Scores(ask([QUERY], TEXTS)) == Scores(wanted)
    paired = list(zip(TEXTS, reversed(TEXTS), strict=True))
    assert Scores(ask(TEXTS, TEXTS[::-1])) == Scores(model.predict(paired))
    assert Scores(ask(["a"], "b")) == Scores(model.predict([("a", "b")]))


def test_keys_of_an_answer(server: InThread, folders: dict[str, Path]) -> None:
    reply = server.call("/score", {"text_1": QUERY, "text_2": ["a"]})
    found = reply.json
    assert list(found) == ["id", "object", "created", "model", "data", "usage"]
    assert (found["id"], found["object"]) == (reply.headers["x-request-id"], "list")
    assert found["model"] == ONE
    ids, _, _ = CrossEncoder(folders[ONE]).tokenizer.encode_pairs([(QUERY, "a")], LIMIT)
    assert found["usage"] == {
        "prompt_tokens": len(ids[0]), "total_tokens": len(ids[0]), "truncated_texts": 0
    }  # fmt: skip
    assert "x-embedding-fingerprint" not in reply.headers


@pytest.mark.filterwarnings("ignore:.*were longer than")
def test_long_pairs(server: InThread, folders: dict[str, Path]) -> None:
    model, body = CrossEncoder(folders[ONE]), {"text_1": QUERY, "text_2": ["a", LONG]}
    error = server.call("/score", body)
    assert error.status == 400
    assert error.json["error"]["code"] == "context_length_exceeded"
    assert error.json["error"]["param"] == "text_2"
    pairs = [(QUERY, "a"), (QUERY, LONG)]
    for limit, own in ((-1, LIMIT), (LIMIT, LIMIT), (30, 30)):
        reply = server.call("/score", body | {"truncate_prompt_tokens": limit})
        assert Scores(scores(reply)) == Scores(model.predict(pairs, max_length=own))
        assert reply.headers["x-truncated-texts"] == "1"
        assert reply.json["usage"]["truncated_texts"] == 1
    assert scores(server.call("/score", body | {"on_long": "end"})).shape == (2,)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "send `text_1` and `text_2`, or `queries` and `documents`"),
    ({"text_1": "a"}, "send `text_1`"),
    ({"text_2": "a"}, "send `text_1`"),
    ({"text_1": None, "text_2": None}, "send `text_1`"),
    ({"text_1": "a", "documents": "b"}, "send `text_1`"),
    ({"text_1": "a", "text_2": "b", "data_1": "c", "data_2": "d"}, "send `text_1`"),
    ({"text_1": [], "text_2": "b"}, "`text_1` cannot be empty"),
    ({"text_1": "a", "text_2": []}, "`text_2` cannot be empty"),
    ({"queries": ["a", "b"], "documents": ["c"] * 3}, "`queries` must hold 1 text, or as many"),
    ({"text_1": ["a", "b"], "text_2": "c"}, "`text_1` must hold 1 text, or as many"),
    ({"text_1": 1, "text_2": "b"}, "text_1"),
    ({"text_1": [1], "text_2": "b"}, "text_1"),
    ({"text_1": [None], "text_2": "b"}, "text_1"),
    ({"text_1": "a", "text_2": [["b"]]}, "text_2"),
    ({"text_1": "a", "text_2": "b", "truncate_prompt_tokens": 3}, "must be -1, or 4 to 96, not 3"),
    ({"text_1": "a", "text_2": "b", "truncate_prompt_tokens": 97}, "not 97"),
    ({"text_1": "a", "text_2": "b", "truncate_prompt_tokens": -2}, "not -2"),
    ({"text_1": "a", "text_2": "b", "truncate_prompt_tokens": "9"}, "truncate_prompt_tokens"),
    ({"text_1": "a", "text_2": "b", "use_activation": 1}, "use_activation"),
    ({"text_1": "a", "text_2": "b", "on_long": "mean"}, "`on_long`"),
]


@pytest.mark.parametrize(("body", "message"), WRONG, ids=lambda given: str(given)[:40])
def test_mistakes(server: InThread, body: dict[str, Any], message: str) -> None:
    for path in ("/score", "/v1/score"):
        reply = server.call(path, body)
        assert reply.status == 400
        assert message in reply.json["error"]["message"]
        assert set(reply.json["error"]) == {"message", "type", "param", "code"}


def test_other_models(server: InThread) -> None:
    body = {"text_1": "a", "text_2": "b", "model": "gpt"}
    reply = server.call("/score", body)
    assert (reply.status, reply.json["error"]["code"]) == (404, "model_not_found")
