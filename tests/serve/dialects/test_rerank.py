"""POST /v1/rerank, /v2/rerank and /rerank with documents: scores, order, keys, cuts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from nomicbert import CrossEncoder
from tests.support import scoring
from tests.support.sameness import HAS_ONEDNN
from tests.support.scoring import CUT, DOCUMENTS, LIMIT, ONE, QUERY, RERANKERS, Scores, floats
from tests.support.serving import InThread, Reply, in_thread

PATHS = ["/v1/rerank", "/v2/rerank", "/rerank"]
CUTS = "ignore:.*were longer than"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return scoring.build(tmp_path_factory.mktemp("rerank"))


@pytest.fixture(scope="module")
def server(folders: dict[str, Path]) -> Iterator[InThread]:
    with in_thread(*(folders[name] for name in RERANKERS)) as found:
        yield found
        assert found.metric("nomicbert_internal_errors_total") == 0


@pytest.fixture(scope="module")
def one(folders: dict[str, Path]) -> CrossEncoder:
    return CrossEncoder(folders[ONE])


def ask(server: InThread, path: str = "/v2/rerank", **body: Any) -> Reply:
    return server.call(path, {"query": QUERY, "documents": DOCUMENTS} | body)


def scores(reply: Reply) -> np.ndarray:
    """The scores in the order of the documents."""
    assert reply.status == 200, reply.body
    results = sorted(reply.json["results"], key=lambda item: item["index"])
    return floats([item["relevance_score"] for item in results])


@pytest.mark.parametrize("name", RERANKERS)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.filterwarnings(CUTS)
def test_scores_and_order_are_those_of_rank(
    server: InThread, folders: dict[str, Path], path: str, name: str
) -> None:
    reply = ask(server, path, model=name)
    truth = CrossEncoder(folders[name]).rank(QUERY, DOCUMENTS, activation_fn=nn.Sigmoid())
    wanted = floats([row["score"] for row in truth])
    results = reply.json["results"]
    assert Scores(floats([item["relevance_score"] for item in results])) == Scores(wanted)
    if HAS_ONEDNN:  # without it equal documents of different batches may differ
        assert [item["index"] for item in results] == [row["corpus_id"] for row in truth]
    assert np.ptp(wanted) > 0.01
    assert 0 <= wanted.min() <= wanted.max() <= 1
    assert reply.json["model"] == name
    assert "x-embedding-fingerprint" not in reply.headers


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.filterwarnings(CUTS)
def test_raw_scores_are_logits(server: InThread, one: CrossEncoder, path: str) -> None:
    """Infinity's key."""
    pairs = [(QUERY, document) for document in DOCUMENTS]
    for raw, activation in ((True, nn.Identity()), (False, nn.Sigmoid()), (None, nn.Sigmoid())):
        wanted = one.predict(pairs, activation_fn=activation)
        assert Scores(scores(ask(server, path, raw_scores=raw))) == Scores(wanted), raw
    best = ask(server, path, raw_scores=True).json["results"]
    order = [item["index"] for item in ask(server, path).json["results"]]
    assert [item["index"] for item in best] == order


@pytest.mark.parametrize("path", PATHS)
def test_the_first_reranker_is_the_default(server: InThread, path: str) -> None:
    reply = ask(server, path)
    assert reply.json["model"] == ONE
    for more in ({"model": None}, {"model": ONE}):
        assert ask(server, path, **more).json["results"] == reply.json["results"]


@pytest.mark.parametrize(("path", "version"), [*zip(PATHS, "122", strict=True)])
def test_keys_of_an_answer(server: InThread, one: CrossEncoder, path: str, version: str) -> None:
    reply = ask(server, path, documents=["a fox", "b"], return_documents=False)
    ids, _, _ = one.tokenizer.encode_pairs([(QUERY, "a fox"), (QUERY, "b")], LIMIT)
    tokens = sum(map(len, ids))
    found = reply.json
    assert list(found) == ["id", "model", "results", "usage", "meta"]
    assert found["id"] == reply.headers["x-request-id"]
    assert [set(item) for item in found["results"]] == [{"index", "relevance_score"}] * 2
    assert found["usage"] == {
        "prompt_tokens": tokens, "total_tokens": tokens, "truncated_texts": 0
    }  # fmt: skip
    assert found["meta"] == {
        "api_version": {"version": version}, "billed_units": {"search_units": 1},
        "tokens": {"input_tokens": tokens},
    }  # fmt: skip
    assert "x-truncated-texts" not in reply.headers


@pytest.mark.parametrize("path", PATHS)
def test_documents_in_the_answer(server: InThread, path: str) -> None:
    documents = ["a fox", {"text": "b", "title": "ignored"}]
    texts = ["a fox", "b"]
    for value, shown in ((True, True), (False, False), (None, path == "/rerank")):
        results = ask(server, path, documents=documents, return_documents=value).json["results"]
        for item in results:
            wanted = {"text": texts[item["index"]]} if shown else None
            assert item.get("document") == wanted
    plain = scores(ask(server, path, documents=texts))
    assert Scores(scores(ask(server, path, documents=documents))) == Scores(plain)


@pytest.mark.parametrize("path", PATHS)
def test_top_n(server: InThread, path: str) -> None:
    everything = ask(server, path).json["results"]
    for count in (1, 3, len(DOCUMENTS), 10**6, 10**30):
        assert ask(server, path, top_n=count).json["results"] == everything[:count]
    assert ask(server, path, top_n=None).json["results"] == everything


@pytest.mark.parametrize("path", PATHS)
def test_cuts_are_told(server: InThread, path: str, caplog: pytest.LogCaptureFixture) -> None:
    before = server.metric("nomicbert_truncated_texts_total", model=ONE)
    caplog.set_level("WARNING", "nomicbert.serve")
    reply = ask(server, path)
    assert reply.headers["x-truncated-texts"] == str(CUT)
    assert reply.json["usage"]["truncated_texts"] == CUT
    assert reply.json["meta"]["warnings"] == [
        f"{CUT} of {len(DOCUMENTS)} documents were cut: a document may have {LIMIT} tokens with "
        "its query"
    ]
    assert server.metric("nomicbert_truncated_texts_total", model=ONE) == before + CUT
    (line,) = [record for record in caplog.records if record.getMessage() == "truncated"]
    assert line.fields["texts"] == CUT  # type: ignore[attr-defined]
    error = ask(server, path, on_long="error")
    assert error.status == 400
    assert f"`documents` must have at most {LIMIT} tokens. Given: " in error.body.decode()
    by_header = server.call(
        path, {"query": QUERY, "documents": DOCUMENTS}, headers={"x-on-long": "error"}
    )
    assert by_header.status == 400


def test_documents_of_at_most_some_tokens(server: InThread, one: CrossEncoder) -> None:
    words = "the fox is fast and the river is long".split()
    documents = [" ".join(words[:count]) for count in (2, 5, 9)]
    reply = ask(server, documents=documents, max_tokens_per_doc=5)
    wanted = one.predict([(QUERY, " ".join(text.split()[:5])) for text in documents])
    assert Scores(scores(reply)) == Scores(wanted)
    assert reply.headers["x-truncated-texts"] == "1"
    assert reply.json["meta"]["warnings"] == [
        f"1 of 3 documents were cut: a document may have {LIMIT} tokens with its query, or 5 "
        "without"
    ]
    # what the request itself wants cut is no error; what is too long all the same is one
    for limit, status in ((5, 200), (LIMIT, 400)):
        more = {"max_tokens_per_doc": limit, "on_long": "error"}
        assert ask(server, documents=[*documents, scoring.LONG], **more).status == status
    reply = ask(server, documents=documents, max_tokens_per_doc=10**9)
    assert Scores(scores(reply)) == Scores(one.predict([(QUERY, text) for text in documents]))


def test_null_and_unknown_keys(server: InThread) -> None:
    wanted = ask(server).json["results"]
    for key in ("model", "top_n", "return_documents", "max_tokens_per_doc", "on_long", "texts"):
        assert ask(server, **{key: None}).json["results"] == wanted
    more = {"max_chunks_per_doc": 3, "rank_fields": ["title"], "priority": 1, "unheard": {}}
    assert ask(server, **more).json["results"] == wanted


WRONG: list[tuple[dict[str, Any], int, str]] = [
    ({"documents": []}, 400, "`documents` cannot be empty"),
    ({"documents": "a"}, 400, "`array`"),
    ({"documents": [1]}, 400, "`int`"),
    ({"documents": [None]}, 400, "`null`"),
    ({"documents": [{}]}, 400, "`text`"),
    ({"documents": [{"text": None}]}, 400, "`null`"),
    ({"documents": [["a"]]}, 400, "`array`"),
    ({"query": None}, 400, "`str`"),
    ({"query": ["a"]}, 400, "`str`"),
    ({"query": 1}, 400, "`str`"),
    ({"top_n": 0}, 400, "`top_n` must be at least 1, not 0"),
    ({"top_n": -1}, 400, "`top_n` must be at least 1, not -1"),
    ({"top_n": 1.5}, 400, "`int"),
    ({"top_n": "1"}, 400, "`int"),
    ({"top_n": True}, 400, "`int"),
    ({"max_tokens_per_doc": 0}, 400, "`max_tokens_per_doc` must be at least 1, not 0"),
    ({"return_documents": 1}, 400, "`bool"),
    ({"on_long": "mean"}, 400, "`on_long` must be one of error, end here, not 'mean'"),
    ({"on_long": ""}, 400, "`on_long`"),
    ({"model": "gpt"}, 404, "no model 'gpt' here"),
    ({"model": 1}, 400, "`str"),
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("change", "status", "message"), WRONG, ids=lambda given: str(given)[:30])
def test_mistakes(
    server: InThread, path: str, change: dict[str, Any], status: int, message: str
) -> None:
    reply = ask(server, path, **change)
    assert reply.status == status
    found = reply.json
    if path == "/rerank":  # vLLM's form
        assert list(found) == ["error"]
        found = found["error"]
        assert set(found) == {"message", "type", "param", "code"}
    else:
        assert list(found) == ["message"]
    assert message in found["message"]


def test_documents_of_null(server: InThread) -> None:
    """Without any texts, POST /rerank answers as TEI does."""
    for path, status, key in (("/v1/rerank", 400, "message"), ("/rerank", 422, "error")):
        reply = ask(server, path, documents=None)
        assert reply.status == status
        assert isinstance(reply.json[key], str)


@pytest.mark.parametrize("path", PATHS[:2])
@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'{"query": "\\ud800", "documents": ["a"]}', b'{"query": "a"}', b"\xff"],
)
def test_what_is_no_body(server: InThread, path: str, body: bytes) -> None:
    reply = server.call(path, body, headers={"content-type": "application/json"})
    assert (reply.status, list(reply.json)) == (400, ["message"])
    assert server.call(path, b"{}", headers={"content-type": "text/plain"}).status == 415


def test_ten_thousand_documents(server: InThread, one: CrossEncoder) -> None:
    documents = [f"a {number % 10} b" for number in range(10_000)]
    reply = ask(server, documents=documents, top_n=20, return_documents=True)
    wanted = one.rank(QUERY, documents[:10])[0]
    results = reply.json["results"]
    best = documents[wanted["corpus_id"]]
    assert [item["document"]["text"] for item in results] == [best] * 20
    if HAS_ONEDNN:  # equal ones in their order
        found = [item["index"] for item in results]
        assert found == [*range(wanted["corpus_id"], 200, 10)]
    assert Scores(floats([item["relevance_score"] for item in results])) == Scores(
        floats([wanted["score"]] * 20)
    )
    everything = ask(server, documents=documents).json["results"]
    assert sorted(item["index"] for item in everything) == list(range(10_000))
