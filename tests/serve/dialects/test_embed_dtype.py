"""`embed_dtype` of OpenAI's route: every precision of `encode`, as numbers, base64 and lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import pybase64
import pytest

from nomicbert import Embedder
from nomicbert.serve.http.forms import unit_ranges
from nomicbert.vectors.quantization import Precision
from tests.support.sameness import HAS_ONEDNN, nearly_equal
from tests.support.served import (
    JSON,
    LONG,
    MODEL,
    NDJSON,
    WIDTH,
    embedder_of,
    same_quantised,
    tiny,
)
from tests.support.serving import InThread, Reply, in_thread

TEXTS = ["What is TSNE?", "", "t-distributed stochastic neighbour embedding"]
PRECISIONS = get_args(Precision)
DTYPES = {
    "float32": "<f4", "float16": "<f2", "int8": "i1", "uint8": "u1", "binary": "i1", "ubinary": "u1"
}  # fmt: skip
ENCODINGS = ["float", "base64"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InThread]:
    settings = {"max_length": 64, "max_response_bytes": 20_000}
    with in_thread(tiny(tmp_path_factory.mktemp("dtype")), **settings) as found:
        yield found
        assert found.metric("nomicbert_internal_errors_total") == 0


@pytest.fixture(scope="module")
def embedder(server: InThread) -> Embedder:
    return embedder_of(server)


def ask(server: InThread, given: Any = TEXTS, **more: Any) -> Reply:
    return server.call("/v1/embeddings", {"model": MODEL, "input": given, **more})


def encode(embedder: Embedder, precision: str, dimensions: int | None = None) -> np.ndarray:
    more: dict[str, Any] = {"normalize_embeddings": True}
    if dimensions is not None:
        more = {"matryoshka_dim": dimensions}
    if precision in ("int8", "uint8"):
        more["ranges"] = unit_ranges(dimensions or WIDTH)
    found: np.ndarray = embedder.encode(TEXTS, prompt="", precision=precision, **more)
    return found


def same(rows: list[Any], wanted: np.ndarray, precision: str, encoding: str) -> bool:
    dtype = np.dtype(DTYPES[precision])
    assert wanted.dtype == dtype
    if encoding == "base64":
        found = np.stack([np.frombuffer(pybase64.b64decode(row), dtype) for row in rows])
    else:
        found = np.array(rows, np.float64).astype(dtype)
        if dtype.kind != "f":
            assert all(type(value) is int for row in rows for value in row)
    if dtype.kind == "f" and not HAS_ONEDNN:
        bound = 1e-3 if precision == "float16" else 0.0
        return nearly_equal(found.astype("<f4"), wanted.astype("<f4")) or (
            float(np.abs(found - wanted).max()) <= bound
        )
    if dtype.kind == "f":
        return found.tobytes() == wanted.tobytes()
    return same_quantised(found, wanted, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_precision(
    server: InThread, embedder: Embedder, precision: str, encoding: str
) -> None:
    for dimensions in (None, 1, 12, 64):
        more = {"embed_dtype": precision, "encoding_format": encoding, "dimensions": dimensions}
        rows = [item["embedding"] for item in ask(server, **more).json["data"]]
        wanted = encode(embedder, precision, dimensions)
        assert same(rows, wanted, precision, encoding), dimensions
        if HAS_ONEDNN:  # no other text of the request matters
            alone = [ask(server, text, **more).json["data"][0]["embedding"] for text in TEXTS]
            assert alone == rows


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_streams(server: InThread, embedder: Embedder, precision: str, encoding: str) -> None:
    body = "".join(json.dumps(text) + "\n" for text in TEXTS).encode()
    path = f"/v1/embeddings?model={MODEL}&embed_dtype={precision}&encoding_format={encoding}"
    lines = server.call(path, body, headers={"content-type": NDJSON})
    asked = {"model": MODEL, "input": TEXTS, "embed_dtype": precision, "encoding_format": encoding}
    answered = server.call(
        "/v1/embeddings", json.dumps(asked).encode(), headers=JSON | {"accept": NDJSON}
    )
    for reply in (lines, answered):
        rows = [json.loads(line)["embedding"] for line in reply.body.splitlines()]
        assert same(rows, encode(embedder, precision), precision, encoding)


def test_the_default_is_float32(server: InThread) -> None:
    for encoding in ENCODINGS:
        plain = ask(server, encoding_format=encoding).body
        for given in (None, "float32"):
            assert ask(server, encoding_format=encoding, embed_dtype=given).body == plain


@pytest.mark.parametrize("given", ["int4", "float", "INT8", "", 8, ["int8"]])
def test_unknown_types(server: InThread, given: Any) -> None:
    reply = ask(server, embed_dtype=given)
    assert (reply.status, reply.json["error"]["param"]) == (400, "embed_dtype")


def test_vectors_that_have_not_length_1(server: InThread, embedder: Embedder) -> None:
    for precision in ("int8", "uint8"):
        reply = ask(server, embed_dtype=precision, normalize=False)
        assert (reply.status, reply.json["error"]["param"]) == (400, "embed_dtype")
        assert "vectors of length 1" in reply.json["error"]["message"]
        path = f"/v1/embeddings?model={MODEL}&embed_dtype={precision}&normalize=false"
        assert server.call(path, b'"a"', headers={"content-type": NDJSON}).status == 400
    # signs do not depend on the length
    rows = ask(server, embed_dtype="ubinary", normalize=False).json["data"]
    assert same([row["embedding"] for row in rows], encode(embedder, "ubinary"), "ubinary", "float")
    assert ask(server, embed_dtype="float16", normalize=False).status == 200


def test_policies_of_long_texts(server: InThread, embedder: Embedder) -> None:
    for policy in ("mean", "chunk"):
        reply = ask(server, [LONG], on_long=policy, embed_dtype="int8")
        wanted = embedder.encode(
            [LONG], prompt="", truncate=policy, normalize_embeddings=True, precision="int8",
            ranges=unit_ranges(WIDTH),
        )  # fmt: skip
        assert same_quantised([reply.json["data"][0]["embedding"]], wanted, "int8")


def test_the_size_of_an_answer(server: InThread) -> None:
    many = ["a"] * 100
    assert ask(server, many).status == 413
    assert ask(server, many, encoding_format="base64").status == 413
    for more in ({"embed_dtype": "ubinary"}, {"embed_dtype": "int8", "encoding_format": "base64"}):
        assert ask(server, many, **more).status == 200
