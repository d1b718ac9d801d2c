"""The pages of `nomicbert serve` in headless Chromium, from a live server, without a network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from nomicbert import Embedder
from nomicbert.serve.dialects import pages
from tests.support.checkpoints import build_checkpoint
from tests.support.javascript import TESTS, browser, cosines, node
from tests.support.rerankers import build_reranker
from tests.support.served import LONG, MODEL, WIDTH, embedder_of, tiny
from tests.support.serving import InThread, in_thread

TEXT = "<img src=x onerror=alert(1)> & what is </b> TSNE?"
TEXTS = ["the cat sleeps", "<script>alert(1)</script>", "a dog & a cat", "numbers: 1 2 3"]
PROMPTS = ["classification", "clustering", "search_document", "search_query"]
# What Chromium logs of an answer that is an error.
FAILED = "error: Failed to load resource: "


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InThread]:
    with in_thread(tiny(tmp_path_factory.mktemp("pages")), max_length=256) as found:
        yield found


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InThread]:
    """A server with a reranker too; both cut what is too long."""
    place = tmp_path_factory.mktemp("mixed")
    reranker = build_reranker(place / "a-reranker")
    with in_thread(tiny(place), reranker, max_length=48, on_long="end") as found:
        yield found


@pytest.fixture(scope="module")
def embedder(server: InThread) -> Embedder:
    return embedder_of(server)


def use(server: InThread, scenario: str, **options: Any) -> dict[str, Any]:
    """Run a scenario; nothing was asked of another host, and the page reported no mistake."""
    script = TESTS / "serve_pages.mjs"
    found = node(script, browser(), server.url, scenario, json.dumps(options))
    seen = found["seen"]
    assert len(seen["requests"]) > 3
    assert {urlsplit(each).netloc for each in seen["requests"]} == {urlsplit(server.url).netloc}
    assert not seen["errors"]
    assert not seen["violations"]
    return found


def complaints(found: dict[str, Any]) -> list[str]:
    """What the console has besides the answers that were errors on purpose."""
    return [line for line in found["seen"]["console"] if not line.startswith(FAILED)]


def encode(embedder: Embedder, texts: list[str], prompt: str, **keywords: Any) -> np.ndarray:
    return np.asarray(embedder.encode(texts, prompt_name=prompt, **keywords))


@pytest.fixture(scope="module")
def started(server: InThread) -> dict[str, Any]:
    """What was seen on the start page."""
    return use(server, "start", text=TEXT, texts=TEXTS)


def test_the_start_page(started: dict[str, Any]) -> None:
    found = started
    assert found["seen"]["console"] == []
    assert set(found["seen"]["statuses"]) == {"200"}
    known = found["known"]
    assert known["models"] == [MODEL]
    assert known["facts"] == f"{WIDTH} dimensions, texts of up to 256 tokens"
    assert known["prompts"][0] == "the server's default"
    assert sorted(line.split(" ")[0] for line in known["prompts"][1:]) == PROMPTS
    assert known["prompt"] == "search_query"
    assert "search_query (“search_query:”)" in known["prompts"]
    assert found["place"].endswith("/#compare")
    assert found["few"] == "Write two lines or more."
    assert known["unnamed"] == found["after"] == []


def test_a_text_is_embedded(server: InThread, embedder: Embedder, started: dict[str, Any]) -> None:
    embed, cut = started["embed"], started["cut"]
    (vector,) = encode(embedder, [TEXT], "search_query", normalize_embeddings=True)
    assert embed["Dimensions"] == str(WIDTH)
    first = [float(value) for value in embed["First values"].split()[:-1]]
    np.testing.assert_allclose(first, vector[:8], rtol=0, atol=5.1e-5)
    assert embed["paths"] == [int((vector > 0).sum()), int((vector < 0).sum())]
    low, high = vector.min(), vector.max()
    assert embed["bars"] == f"{WIDTH} values, from {low:.3f} to {high:.3f}"
    ids, _ = embedder.tokenizer.encode(["search_query: " + TEXT], 256)
    assert embed["Tokens"] == str(len(ids[0])) == str(len(embed["tokens"]))
    assert (embed["tokens"][0], embed["tokens"][-1]) == ("[CLS]", "[SEP]")
    assert embed["images"] == 0
    body = {"model": MODEL, "input": TEXT, "prompt_name": "search_query"}
    reply = server.call("/v1/embeddings", body)
    assert embed["Fingerprint"] == reply.headers["x-embedding-fingerprint"]
    assert embed["Time"].endswith(" ms round trip")
    assert cut["Dimensions"] == "16"
    (vector,) = encode(embedder, [TEXT], "search_query", matryoshka_dim=16)
    first = [float(value) for value in cut["First values"].split()[:-1]]
    np.testing.assert_allclose(first, vector[:8], rtol=0, atol=5.1e-5)


def test_texts_are_compared_and_ranked(embedder: Embedder, started: dict[str, Any]) -> None:
    compare, rank = started["compare"], started["rank"]
    rows = np.asarray(embedder.encode(TEXTS, prompt="", normalize_embeddings=True))
    wanted = (rows.astype(np.float64) @ rows.T.astype(np.float64)).ravel()
    cells = np.array([float(cell) for cell in compare["cells"]])
    np.testing.assert_allclose(cells, wanted, rtol=0, atol=5.1e-4)
    heat = (wanted - wanted.min()) / (1 - wanted.min())
    np.testing.assert_allclose(compare["heat"], heat, rtol=0, atol=5.1e-4)
    assert compare["colours"] == len(set(np.round(compare["heat"], 3)))
    assert compare["heads"] == [f"{at}  {text}" for at, text in enumerate(TEXTS, 1)]
    query = encode(embedder, [TEXT], "search_query")
    documents = encode(embedder, TEXTS, "search_document")
    scores = cosines(np.repeat(query, len(TEXTS), 0), documents)
    order = np.argsort(-scores)
    assert (rank["note"], rank["method"]) == (True, "cosine")
    assert rank["texts"] == [TEXTS[at] for at in order]
    np.testing.assert_allclose(rank["scores"], scores[order], rtol=0, atol=5.1e-5)


def test_a_reranker(server: InThread) -> None:
    """The route is played by the browser: this server has none."""
    found = use(server, "reranker", texts=TEXTS[:2])
    assert found["known"] == {
        "tab": "true",
        "models": [MODEL],
        "rerankers": ["a-reranker"],
        "note": False,
        "method": "reranker",
    }
    body = {"model": "a-reranker", "query": "q", "documents": TEXTS[:2]}
    assert found["sent"] == [body]
    assert found["found"] == {"texts": [TEXTS[1], TEXTS[0]], "scores": [0.9, 0.25]}
    assert "The server refused this.not a <b>re-ranker</b>status 400" in found["message"]
    assert sorted(found["instead"]["texts"]) == sorted(TEXTS[:2])
    assert not complaints(found)


def test_several_models(tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.mktemp("several")
    second = build_checkpoint(place / "second", "e5", num_hidden_layers=1)
    with in_thread(tiny(place), second, served_model_names=("mine",)) as server:
        models = server.service.models
        found = use(server, "several")["found"]
    ids, _ = models[0].tokenizer.encode(["search_query: a"], 256)
    first = len(ids[0])
    wanted = {"mine": models[0], MODEL: models[0], "second": models[1]}
    assert set(found) == set(wanted)
    for name, model in wanted.items():
        assert found[name] == {
            "facts": f"{model.width} dimensions, texts of up to {model.max_length:,} tokens",
            "prompts": len(model.embedder.prompts),
            "dimensions": str(model.width),
            "tokens": 0 if name == "second" else first,
        }
    assert len(models[0].embedder.prompts) != len(models[1].embedder.prompts)


def test_tabs_by_keyboard(server: InThread) -> None:
    found = use(server, "keyboard")
    tabs = ["compare", "rerank", "embed", "rerank", "embed", "rerank"]
    assert found["way"] == [f"tab-{name}" for name in tabs]
    assert found["shown"] == ["rerank"]
    assert found["address"].endswith("/try#embed")


def test_a_key(tmp_path_factory: pytest.TempPathFactory) -> None:
    with in_thread(tiny(tmp_path_factory.mktemp("key")), api_keys=("nk-it's",)) as server:
        found = use(server, "key", key="nk-it's")
    assert found["problem"].startswith("This server needs a key")
    assert found["focused"] == "key"
    assert found["found"]["Dimensions"] == str(WIDTH)
    assert found["kept"] == [0, 0, ""]
    assert '-H "authorization: Bearer $NOMICBERT_API_KEY"' in found["curl"]
    assert "nk-" not in found["curl"] + found["address"]
    assert not any("nk-" in request for request in found["seen"]["requests"])
    assert not complaints(found)


def test_errors_are_readable(server: InThread) -> None:
    found = use(server, "errors")
    assert "256" in found["long"]
    assert "status 400, request " in found["long"]
    assert "The server is busy.too much waits <i>status 429, request the-id" in found["first"]
    assert re.search(r"Try again in [2-9] s\.", found["first"])  # of 9
    assert found["disabled"]
    assert "Try again now." in found["last"]
    # the countdown is written when it changes: what is read out is not repeated
    written = found["written"]
    assert written == list(dict.fromkeys(written))
    assert len(written) >= 3
    assert written[-1] == "Try again now."
    assert found["hidden"]
    assert "does not answer" in found["gone"]
    assert not complaints(found)


def test_a_cut_is_shown(mixed: InThread) -> None:
    found = use(mixed, "cuts", short="c", long=LONG)
    assert found["short"] == dict.fromkeys(found["short"], "")
    many = "2 texts were cut: longer than the server's limit of tokens."
    long = found["long"]
    assert long["embed"] == many.replace("2 texts were", "1 text was")
    assert long["compare"] == long["cosine"] == many
    body = {"query": "a", "documents": ["b", LONG, LONG]}
    reply = mixed.call("/v1/rerank", body).json
    assert reply["usage"]["truncated_texts"] == 2
    assert [long["reranker"]] == reply["meta"]["warnings"]


def test_a_page_waits_for_the_model(server: InThread) -> None:
    found = use(server, "loading")
    wanted = "The server is loading its model. This page continues by itself."
    assert (found["state"], found["before"], found["after"]) == (wanted, [], [MODEL])


def test_the_api_page(server: InThread) -> None:
    found = use(server, "docs", model=MODEL)
    described = server.call("/openapi.json").json["paths"]
    assert set(found["routes"]) == {
        method + path for path, item in described.items() for method in item
    }
    assert {"OpenAI", "nomic", "TEI", "health"} <= set(found["groups"])
    assert found["named"] == ["post/similarity"]
    assert {"post/embed", "get/info"} <= set(found["routes"])
    # every example is answered, but of tasks that this model does not have
    refused = {route: status for route, status in found["sent"].items() if status != "200 OK"}
    assert refused == {
        "post/rerank": "424 Failed Dependency",
        "post/predict": "424 Failed Dependency",
        "post/v1/rerank": "400 Bad Request",
        "post/v2/rerank": "400 Bad Request",
        "post/score": "400 Bad Request",
        "post/v1/score": "400 Bad Request",
    }
    fields = found["fields"]
    assert fields["input text or list of texts, required"].startswith("not empty. Also")
    assert fields["model text, required"] == f'only "{MODEL}"'
    assert fields["dimensions integer, optional"] == f"1 to {WIDTH}"
    formats = 'one of "base64", "float"; default "float"'
    assert fields["encoding_format text, optional"] == formats
    assert "x-embedding-fingerprint: " in found["headers"]
    assert f"… {WIDTH - 12} more]" in found["answer"]
    body = f'{{"model": "{MODEL}", "input": "it\'\\\'\'s <b>&amp;"}}'
    assert found["curl"].replace(" \\\n  ", " ") == (
        f"curl -s '{server.url}/v1/embeddings' -H 'content-type: application/json' -d '{body}'"
    )
    assert found["refused"]["status"] == "400 Bad Request"
    assert "The server refused this." in found["refused"]["failure"]
    assert found["unnamed"] == []
    assert not complaints(found)


def test_bodies_with_alternatives(mixed: InThread) -> None:
    """The fields of each alternative; each example is answered, ollama's have a text."""
    found = use(mixed, "docs", model=MODEL)
    assert set(found["sent"].values()) == {"200 OK"}
    bodies = found["bodies"]

    def required(route: str) -> list[list[str]]:
        lists = bodies[route]["lists"]
        return [[row.split(" ")[0] for row in rows if "required" in row] for rows in lists]

    assert required("post/v1/embeddings") == [["input", "model"]]
    assert required("post/rerank") == [["query"], ["texts"], ["documents", "documents[].text"]]
    assert required("post/v2/embed")[1:] == [
        ["texts"], ["inputs", "inputs[].content", "inputs[].content[].type",
                    "inputs[].content[].text"],
    ]  # fmt: skip
    sides = [["text_1", "text_2"], ["queries", "documents"], ["data_1", "data_2"]]
    assert required("post/score")[1:] == sides
    names = [[row.split(" ")[0] for row in rows] for rows in bodies["post/score"]["lists"]]
    assert names[1:] == sides
    assert "text_1" not in names[0]
    assert "model" in names[0]
    (refused,) = bodies["post/v1/embeddings"]["refused"]
    assert refused == (
        'Refused: normalize: false with on_long: "mean"; '
        'normalize: false with embed_dtype: "int8" or "uint8".'
    )
    assert bodies["post/embed"]["refused"] == ['Refused: normalize: false with on_long: "mean".']
    assert bodies["post/tokenize"]["refused"] == []
    for route, field in (("post/api/embed", "input"), ("post/api/embeddings", "prompt")):
        (example,) = bodies[route]["example"]
        assert json.loads(example)[field]


def test_looks(server: InThread) -> None:
    """From 360 pixels on no page is wider than its window; contrast is 4.5 or more, dark too."""
    found = use(server, "looks")["found"]
    assert len(found) == 24
    for name, look in found.items():
        assert look["width"] <= 0, name
        assert look["faint"]["found"] == [], name
        assert look["faint"]["count"] > 10, name


def test_the_policy(server: InThread) -> None:
    script = TESTS / "serve_pages.mjs"
    found = node(script, browser(), server.url, "policy")
    assert found["refused"] == {"fetch": "refused", "markup": "refused", "image": "refused"}
    assert set(found["seen"]["violations"]) == {
        "connect-src", "img-src", "require-trusted-types-for"
    }  # fmt: skip
    assert b"'unsafe" not in pages.POLICY
