"""Every kind of mistake in every dialect: the status and the form of the answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.served import JSON, LONG, MODEL, tiny
from tests.support.serving import InThread, Reply, in_thread

PATHS = {
    "openai": "/v1/embeddings", "tei": "/embed", "root": "/", "nomic": "/v1/embedding/text",
    "similarity": "/similarity", "vertex": "/vertex", "tokenize": "/tokenize", "decode": "/decode",
    "all": "/embed_all", "cohere": "/v2/embed", "ollama": "/api/embed",
}  # fmt: skip
# A body that is right.
RIGHT: dict[str, dict[str, Any]] = {
    "openai": {"model": MODEL, "input": ["a"]}, "tei": {"inputs": ["a"]}, "root": {"inputs": ["a"]},
    "nomic": {"model": MODEL, "texts": ["a"]},
    "similarity": {"inputs": {"source_sentence": "a", "sentences": ["b"]}},
    "vertex": {"instances": [{"inputs": "a"}]}, "tokenize": {"inputs": ["a"]},
    "decode": {"ids": [101]}, "all": {"inputs": ["a"]},
    "cohere": {"model": MODEL, "texts": ["a"]}, "ollama": {"model": MODEL, "input": ["a"]},
}  # fmt: skip
# Where it holds its texts, and the key of dimensions.
FIELD = {
    "openai": "input", "tei": "inputs", "root": "inputs", "nomic": "texts", "all": "inputs",
    "cohere": "texts", "ollama": "input",
}  # fmt: skip
# ollama's answers to no input are empty, and it reads a body of any content type
STRICT = [dialect for dialect in PATHS if dialect != "ollama"]
WIDE = {
    "openai": "dimensions",
    "tei": "dimensions",
    "root": "dimensions",
    "nomic": "dimensionality",
    "cohere": "output_dimension",
    "ollama": "dimensions",
}
NOT_JSON = {"nomic": 422}
INVALID = {"openai": 400, "cohere": 400, "ollama": 400}  # the others: 422
EMPTY = {"nomic": 422}  # the others: 400


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InThread]:
    with in_thread(tiny(tmp_path_factory.mktemp("bad")), max_length=64) as found:
        yield found
        assert found.metric("nomicbert_internal_errors_total") == 0


def post(server: InThread, dialect: str, body: Any, **headers: str) -> Reply:
    return server.call(PATHS[dialect], body, headers=JSON | headers)


def refused(reply: Reply, dialect: str, status: int, kind: str, param: str | None = None) -> str:
    """Check status, headers and form of an error; return its message."""
    assert reply.status == status, reply.body[:300]
    assert reply.headers["content-type"] == "application/json"
    assert "x-request-id" in reply.headers
    assert len(reply.body) < 3000
    found = reply.json
    if dialect == "openai":
        assert list(found) == ["error"]
        error = found["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == (
            "not_found_error" if status == 404 else "invalid_request_error"
        )  # fmt: skip
        assert error["code"] == kind
        assert error["param"] == param
        return str(error["message"])
    if dialect == "nomic":
        assert list(found) == ["detail"]
        (detail,) = found["detail"]
        assert set(detail) == {"loc", "msg", "type"}
        assert detail["loc"] == ["body", *([param] if param else [])]
        assert detail["type"] == kind
        return str(detail["msg"])
    if dialect == "cohere":
        assert list(found) == ["message"]
        return str(found["message"])
    if dialect == "ollama":
        assert list(found) == ["error", "detail"][: 1 + (kind == "too_long")]
        return str(found["detail" if kind == "too_long" else "error"])
    assert set(found) == {"error", "error_type"}
    assert found["error_type"] == ("Empty" if kind == "empty" else "Validation")
    assert found["error"].startswith("Input validation error: ") == (
        kind in ("invalid", "too_long")
    )
    return str(found["error"])


def broken(dialect: str) -> dict[str, bytes]:
    """Bodies that are no JSON, made of one that is right."""
    right = json.dumps(RIGHT[dialect]).encode()
    found = {
        "nothing": b"", "letters": b"hello", "NUL bytes": b"\0" * 20, "cut off": right[:-1],
        "a tail": right + b" x", "two bodies": right * 2, "a BOM": b"\xef\xbb\xbf" + right,
        "single quotes": right.replace(b'"', b"'"), "UTF-16": right.decode().encode("utf-16"),
        "a comment": right.replace(b"{", b"{/* */", 1),
    }  # fmt: skip
    for name, tail in {
        "a comma": b"", "NaN": b'"x": NaN', "Infinity": b'"x": -Infinity', "hex": b'"x": 0x10',
        "a key only": b'"x"', "no quotes": b"x: 1", "Python": b'"x": None', "zeros": b'"x": 007',
    }.items():  # fmt: skip
        found[name] = right[:-1] + b"," + tail + b"}"
    if b'"a"' in right:
        for name, text in {
            "no UTF-8": b'"\xff\xfe"', "a raw line break": b'"a\nb"', "an escape": b'"\\x41"',
            "half a pair": b'"\\ud800 and more"', "the other half": b'"\\udc00 and more"',
        }.items():  # fmt: skip
            found[name] = right.replace(b'"a"', text)
    return found


BROKEN = [(dialect, name) for dialect in PATHS for name in broken(dialect)]


@pytest.mark.parametrize(("dialect", "name"), BROKEN)
def test_what_is_not_json(server: InThread, dialect: str, name: str) -> None:
    reply = post(server, dialect, broken(dialect)[name])
    message = refused(reply, dialect, NOT_JSON.get(dialect, 400), "not_json")
    assert message.startswith("the body is not JSON: ")


@pytest.mark.parametrize("dialect", PATHS)
def test_the_right_bodies(server: InThread, dialect: str) -> None:
    assert post(server, dialect, RIGHT[dialect]).status == 200


@pytest.mark.parametrize("dialect", PATHS)
@pytest.mark.parametrize("body", [b"[]", b"null", b'"text"', b"1", b"true", b"[{}]", b"1e999"])
def test_json_of_another_type(server: InThread, dialect: str, body: bytes) -> None:
    status = INVALID.get(dialect, 422)
    refused(post(server, dialect, body), dialect, status, "invalid")


@pytest.mark.parametrize("dialect", PATHS)
def test_deep_nesting(server: InThread, dialect: str) -> None:
    deep = b"[" * 100_000
    for body in (deep, deep + b"]" * 100_000, b'{"x":' + deep, b'{"a":' * 100_000):
        reply = post(server, dialect, body)
        assert reply.status in (400, 422)
    for field in (*RIGHT[dialect], "unheard"):
        inner = b'"%b":%b%b' % (field.encode(), deep, b"]" * 100_000)
        reply = post(
            server, dialect, json.dumps(RIGHT[dialect]).encode()[:-1] + b"," + inner + b"}"
        )
        assert reply.status in (400, 422)


@pytest.mark.parametrize("dialect", STRICT)
def test_a_missing_field(server: InThread, dialect: str) -> None:
    field = FIELD.get(dialect) or next(iter(RIGHT[dialect]))
    body = {key: value for key, value in RIGHT[dialect].items() if key != field}
    reply = post(server, dialect, body | {"unheard": 1})
    message = refused(reply, dialect, INVALID.get(dialect, 422), "invalid", field)
    assert f"`{field}`" in message


@pytest.mark.parametrize("dialect", FIELD)
@pytest.mark.parametrize("value", [None, 1, True, 1.5, {"a": "b"}, [None], [1.5], [True], [{}]])
def test_texts_of_another_type(server: InThread, dialect: str, value: Any) -> None:
    if dialect == "ollama" and value is None:
        assert post(server, dialect, RIGHT[dialect] | {"input": None}).json["embeddings"] == []
        return
    reply = post(server, dialect, RIGHT[dialect] | {FIELD[dialect]: value})
    param = FIELD[dialect]
    if dialect == "root" and isinstance(value, dict):
        param = "inputs"  # sentences without sentences
    refused(reply, dialect, INVALID.get(dialect, 422), "invalid", param)


WRONG_VALUES: dict[str, dict[str, list[Any]]] = {
    "openai": {
        "model": [1, [], {}], "encoding_format": ["hex", "", 1, "x" * 10_000], "on_long": [1, "x"],
        "prompt_name": [1, "none", "x" * 10_000], "normalize": [1, "true"], "report": ["yes", 0],
        "max_length": ["1", 1.0, True, 0, 10**30], "embed_dtype": ["int4", "", 1, ["int8"]],
    },
    "tei": {
        "truncate": [1, "true"], "truncation_direction": ["Up", 1, "LEFT"], "normalize": ["x", 0],
        "prompt_name": [1, "none"], "on_long": [[], "start"],
    },
    "nomic": {
        "model": [1], "task_type": [1, "separation"], "long_text_mode": ["end", 1],
        "max_tokens_per_text": ["1", 0, -5, 1.5, True], "report": [1], "on_long": ["x"],
    },
}  # fmt: skip
VALUES = [
    (dialect, key, value)
    for dialect, keys in WRONG_VALUES.items()
    for key, values in keys.items()
    for value in values
]


@pytest.mark.parametrize(("dialect", "key", "value"), VALUES)
def test_wrong_values(server: InThread, dialect: str, key: str, value: Any) -> None:
    reply = post(server, dialect, RIGHT[dialect] | {key: value})
    refused(reply, dialect, INVALID.get(dialect, 422), "invalid", key)


@pytest.mark.parametrize("dialect", WIDE)
@pytest.mark.parametrize(
    "text", ["0", "-1", "65", "true", "0.0", "1.5", "1e2", '"8"', "[8]", "1" + "0" * 30, "9" * 5000]
)
def test_wrong_dimensions(server: InThread, dialect: str, text: str) -> None:
    body = json.dumps(RIGHT[dialect])[:-1] + f', "{WIDE[dialect]}": {text}}}'
    reply = post(server, dialect, body.encode())
    refused(reply, dialect, INVALID.get(dialect, 422), "invalid", WIDE[dialect])


@pytest.mark.parametrize("dialect", WIDE)
def test_whole_numbers_with_a_point(server: InThread, dialect: str) -> None:
    """JSON has one kind of numbers; to JSON Schema 8.0 is an integer."""
    whole = json.dumps(RIGHT[dialect])[:-1] + f', "{WIDE[dialect]}": 8}}'
    same = {"x-request-id": "same"}  # Cohere's answers have it

    def answer(text: str) -> Any:
        reply = post(server, dialect, whole.replace(": 8}", f": {text}}}").encode(), **same)
        assert reply.status == 200
        found = reply.json
        return found | {"total_duration": 0} if dialect == "ollama" else found

    for text in ("8.0", "0.8e1", "80e-1"):
        assert answer(text) == answer("8")
    large = whole.replace(": 8}", ': 8.0, "x": "%s"}' % ("x" * 70_000)).encode()
    assert post(server, dialect, large).status == INVALID.get(dialect, 422)


@pytest.mark.parametrize("dialect", [*(name for name in FIELD if name != "ollama"), "tokenize"])
def test_an_empty_list(server: InThread, dialect: str) -> None:
    field = FIELD.get(dialect, "inputs")
    reply = post(server, dialect, RIGHT[dialect] | {field: []})
    message = refused(reply, dialect, EMPTY.get(dialect, 400), "empty", field)
    assert message == f"`{field}` cannot be empty"


@pytest.mark.parametrize("dialect", [*FIELD, "tokenize"])
def test_empty_texts_are_embedded(server: InThread, dialect: str) -> None:
    reply = post(server, dialect, RIGHT[dialect] | {FIELD.get(dialect, "inputs"): ["", "a", ""]})
    assert reply.status == 200
    found = reply.json
    rows = found if isinstance(found, list) else found.get("data") or found["embeddings"]
    rows = rows["float"] if dialect == "cohere" else rows
    assert len(rows) == 3
    assert rows[0] != rows[1]
    if dialect != "openai":
        assert rows[0] == rows[2]


TOO_LONG = {
    "openai": {"input": ["a", LONG]}, "tei": {"inputs": ["a", LONG], "truncate": False},
    "root": {"inputs": ["a", LONG], "truncate": False},
    "all": {"inputs": ["a", LONG], "truncate": False},
    "nomic": {"texts": ["a", LONG], "on_long": "error"},
    "cohere": {"texts": ["a", LONG], "truncate": "NONE"},
    "ollama": {"input": ["a", LONG], "truncate": False},
}  # fmt: skip


@pytest.mark.parametrize("dialect", TOO_LONG)
def test_a_text_that_is_too_long(server: InThread, dialect: str) -> None:
    reply = post(server, dialect, RIGHT[dialect] | TOO_LONG[dialect])
    kind = {"openai": "context_length_exceeded"}.get(dialect, "too_long")
    message = refused(reply, dialect, INVALID.get(dialect, 422), kind, FIELD[dialect])
    assert "at most 64 tokens. Given: " in message


@pytest.mark.parametrize("dialect", ["openai", "nomic"])
def test_an_unknown_model(server: InThread, dialect: str) -> None:
    reply = post(server, dialect, RIGHT[dialect] | {"model": "gpt"})
    if dialect == "openai":
        refused(reply, dialect, 404, "model_not_found", "model")
    else:
        refused(reply, dialect, 422, "unknown_model", "model")
    assert post(server, "tei", {"inputs": "a", "model": "gpt"}).status == 200  # TEI ignores it


@pytest.mark.parametrize("dialect", STRICT)
@pytest.mark.parametrize(
    "media",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "application/js",
     "application/json, text/plain", "application/jsonl"],
)  # fmt: skip
def test_another_content_type(server: InThread, dialect: str, media: str) -> None:
    body = json.dumps(RIGHT[dialect]).encode()
    reply = server.call(PATHS[dialect], body, headers={"content-type": media})
    refused(reply, dialect, 415, "content_type")
    assert server.call(PATHS[dialect], body, headers={}).status == 415


@pytest.mark.parametrize("dialect", PATHS)
@pytest.mark.parametrize(
    "media", ["application/json; charset=utf-8", "Application/JSON", " application/json ;x"]
)
def test_content_types_that_are_json(server: InThread, dialect: str, media: str) -> None:
    body = json.dumps(RIGHT[dialect]).encode()
    assert server.call(PATHS[dialect], body, headers={"content-type": media}).status == 200


@pytest.mark.parametrize("dialect", PATHS)
@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
def test_wrong_methods(server: InThread, dialect: str, method: str) -> None:
    reply = server.call(PATHS[dialect], RIGHT[dialect], method=method)
    assert reply.status == 405
    assert "POST" in reply.headers["allow"].split(", ")


@pytest.mark.parametrize("dialect", FIELD)
def test_ten_megabytes_of_text(server: InThread, dialect: str) -> None:
    text = "word \0 " * 1_500_000
    field = FIELD[dialect]
    short = RIGHT[dialect] | {field: [text], "on_long": "end"}
    assert post(server, dialect, short).status == 200
    error = post(server, dialect, RIGHT[dialect] | {field: [text], "on_long": "error"})
    assert error.status == INVALID.get(dialect, 422)
    assert "at most 64 tokens. Given: more in text 0" in error.body.decode()


def test_ten_megabytes_in_other_places(server: InThread) -> None:
    text = "x" * 10_000_000
    for key in ("model", "encoding_format", "prompt_name", "task_type", "on_long", "user", text):
        reply = post(server, "openai", RIGHT["openai"] | {key: text})
        assert reply.status == (200 if key in ("user", text) else 404 if key == "model" else 400)
        assert key in ("user", text) or len(reply.body) < 3000
    digits = b'{"model":"%b","input":"a","dimensions":%b}' % (MODEL.encode(), b"1" * 10_000_000)
    assert post(server, "openai", digits).status == 400
    floats = b'{"inputs":"a","x":0.%b}' % (b"1" * 10_000_000)
    assert post(server, "tei", floats).status in (200, 400)
