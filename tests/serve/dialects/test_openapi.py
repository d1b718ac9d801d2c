"""/openapi.json: it describes the routes, and its schemas accept what the server accepts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from nomicbert import __version__
from nomicbert.serve.app import PAGES
from nomicbert.serve.dialects import openapi
from tests.support.served import MODEL, WIDTH, tiny
from tests.support.serving import InThread, in_thread


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InThread]:
    with in_thread(tiny(tmp_path_factory.mktemp("openapi"))) as found:
        yield found


@pytest.fixture(scope="module")
def document(server: InThread) -> dict[str, Any]:
    reply = server.call("/openapi.json")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    return reply.json


def test_the_document(document: dict[str, Any]) -> None:
    assert document["openapi"] == "3.1.0"
    assert document["info"] == {"title": "nomicbert", "version": __version__}
    plain = openapi.describe(openapi.Facts())  # while the models are loaded
    assert plain["paths"] == document["paths"]


def test_every_path_is_a_route(document: dict[str, Any]) -> None:
    known = {(page.path, page.method.lower()) for page in PAGES}
    described = {(path, method) for path, item in document["paths"].items() for method in item}
    assert described <= known
    bodies = {path for path, method in described if method == "post"}
    assert bodies >= {
        "/v1/embeddings", "/v1/embedding/text", "/embed", "/embed_all", "/similarity", "/vertex",
        "/tokenize", "/decode", "/rerank", "/predict", "/v1/rerank", "/v2/rerank", "/score",
        "/v1/score",
    }  # fmt: skip


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "$ref":
                yield item
            else:
                yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    found = set(references(document))
    assert len(found) >= 8
    for reference in found:
        place = document
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]


def test_what_structs_cannot_say(document: dict[str, Any]) -> None:
    """A union of item types would allow mixtures, which are refused; and so on."""
    schemas = document["components"]["schemas"]
    texts = {"type": "array", "items": {"type": "string"}, "minItems": 1}
    openai, tei = schemas["EmbeddingsRequest"], schemas["EmbedRequest"]["properties"]
    assert openai["required"] == ["input", "model"]
    for inputs in (openai["properties"]["input"], tei["inputs"]):
        assert inputs["anyOf"] == [{"type": "string"}, texts]
        assert "token ids" in inputs["description"]
    assert openai["properties"]["model"] == {"enum": [MODEL]}
    null = {"type": "null"}
    prompts = ["classification", "clustering", "search_document", "search_query"]
    assert tei["prompt_name"] == {"anyOf": [{"enum": prompts}, null]}
    width = {"type": "integer", "minimum": 1, "maximum": WIDTH}
    assert tei["dimensions"] == {"anyOf": [width, null]}
    lengths = {"type": "integer", "minimum": 3, "maximum": 8192}
    assert openai["properties"]["max_length"] == {"anyOf": [lengths, null]}
    assert schemas["TextRequest"]["properties"]["texts"] == texts
    assert schemas["EmbedAllRequest"]["properties"]["dimensions"] == null
    ids = schemas["DecodeRequest"]["properties"]["ids"]["anyOf"][0]
    assert ids["items"] == {"type": "integer", "minimum": 0, "maximum": 383}


# struct, key with a default -> route, body without the key, and a value that means something else
LONG = "word " * 2500  # 2,500 tokens: more than the trained length, less than the limit
OTHERS = {
    ("EmbeddingsRequest", "encoding_format"): ("/v1/embeddings", "base64"),
    ("EmbeddingsRequest", "normalize"): ("/v1/embeddings", False),
    ("EmbeddingsRequest", "report"): ("/v1/embeddings", True),
    ("TextRequest", "task_type"): ("/v1/embedding/text", "search_query"),
    ("TextRequest", "long_text_mode"): ("/v1/embedding/text", "truncate"),
    ("TextRequest", "report"): ("/v1/embedding/text", True),
    ("EmbedRequest", "normalize"): ("/embed", False),
    ("TokenizeRequest", "add_special_tokens"): ("/tokenize", False),
    ("DecodeRequest", "skip_special_tokens"): ("/decode", False),
}  # fmt: skip
BODIES = {
    "/v1/embeddings": {"model": MODEL, "input": ["a", "b c"]},
    "/v1/embedding/text": {"texts": ["a", LONG]},
    "/embed": {"inputs": ["a", "b c"]},
    "/tokenize": {"inputs": "a"},
}


def test_defaults_are_those_of_the_server(server: InThread, document: dict[str, Any]) -> None:
    """A default is what an absent key means: giving it changes nothing, another value does."""
    schemas = document["components"]["schemas"]
    assert set(OTHERS) == {(name, key) for name, keys in openapi.DEFAULTS.items() for key in keys}
    ids = [token["id"] for token in server.call("/tokenize", {"inputs": "a"}).json[0]]
    bodies = {**BODIES, "/decode": {"ids": ids}}
    for (name, key), (path, other) in OTHERS.items():
        default = schemas[name]["properties"][key]["default"]
        absent, given, changed = (
            server.call(path, {**bodies[path], **more}).json
            for more in ({}, {key: default}, {key: other})
        )
        assert given == absent, (name, key)
        assert changed != absent, (name, key)


def test_every_route_has_a_protocol(document: dict[str, Any]) -> None:
    tags = {
        path: operation["tags"]
        for path, item in document["paths"].items()
        for operation in item.values()
    }
    assert tags["/v1/embeddings"] == tags["/v1/models"] == ["OpenAI"]
    assert tags["/embed"] == tags["/info"] == ["TEI"]
    assert tags["/v1/embedding/text"] == ["nomic"]
    assert tags["/health/live"] == ["health"]
    for path, description in openapi.ALSO.items():
        (method,) = document["paths"][path]
        assert document["paths"][path][method]["description"] == description
        for other in re.findall(r"/[\w/]*", description):
            assert any(page.path == other for page in PAGES), other


def test_refusals_are_described(document: dict[str, Any]) -> None:
    for path, item in document["paths"].items():
        for operation in item.values():
            assert set(operation["responses"]) >= {"200", "401", "429", "503"}, path


def test_what_the_structs_of_cohere_and_ollama_cannot_say(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    null = {"type": "null"}
    texts = {"type": "array", "items": {"type": "string"}, "minItems": 1}
    cohere = schemas["CohereEmbedRequest"]
    one, other = cohere["anyOf"]  # texts, or inputs
    assert one == {"properties": {"texts": texts, "inputs": null}, "required": ["texts"]}
    assert other["required"] == ["inputs"]
    assert other["properties"]["texts"] == null
    inputs = {"$ref": "#/components/schemas/CohereInput"}
    assert other["properties"]["inputs"] == {"type": "array", "items": inputs, "minItems": 1}
    fields = cohere["properties"]
    assert fields["images"] == null
    assert fields["truncate"] == {"anyOf": [{"enum": ["NONE", "END"]}, null]}
    assert fields["model"] == {"anyOf": [{"enum": [MODEL]}, null]}
    assert fields["output_dimension"]["anyOf"][0]["maximum"] == WIDTH
    assert fields["max_tokens"]["anyOf"][0] == {"type": "integer", "minimum": 3}
    (kinds,) = (kind for kind in fields["embedding_types"]["anyOf"] if kind != null)
    assert kinds["minItems"] == 1
    assert set(kinds["items"]["enum"]) == {
        "float", "int8", "uint8", "binary", "ubinary", "base64"
    }  # fmt: skip
    content = schemas["CohereInput"]["properties"]["content"]
    assert (content["minItems"], content["maxItems"]) == (1, 1)
    assert schemas["CohereContent"]["required"] == ["type", "text"]
    known = {"enum": [MODEL, f"{MODEL}:latest"]}
    for name in ("OllamaEmbedRequest", "OllamaEmbeddingsRequest"):
        assert schemas[name]["properties"]["model"] == known
        assert schemas[name]["required"] == ["model"]
    # nothing to embed is right there
    assert schemas["OllamaEmbedRequest"]["properties"]["input"]["anyOf"][1:] == [
        {"type": "array", "items": {"type": "string"}}, null,
    ]  # fmt: skip
    wrong = schemas["EmbeddingsRequest"]["not"]["anyOf"]
    assert {"enum": ["int8", "uint8"]} in [each["properties"].get("embed_dtype") for each in wrong]
