"""/openapi.json: it describes the routes, and its schemas accept what the server accepts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from nomicbert import __version__
from nomicbert.serve.app import PAGES
from nomicbert.serve.dialects import nomic, openapi
from tests.support.checkpoints import build_checkpoint
from tests.support.rerankers import build_reranker
from tests.support.served import MODEL, WIDTH, tiny
from tests.support.serving import InThread, in_thread

PROMPT_NAMES = ["classification", "clustering", "search_document", "search_query"]
Case = tuple[str, dict[str, Any], str, Sequence[object]]


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
    assert tei["prompt_name"] == {"anyOf": [{"enum": PROMPT_NAMES}, null]}
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
    assert [each["required"] for each in wrong] == [
        ["normalize", "on_long"], ["normalize", "embed_dtype"],
    ]  # fmt: skip
    assert wrong[1]["properties"]["embed_dtype"] == {"enum": ["int8", "uint8"]}


# --- what schemas accept is what servers with other models answer ---

RERANKER, CLASSIFIER = "a-reranker", "a-classifier"
NAMES = (None, MODEL, f"{MODEL}:latest", RERANKER, CLASSIFIER, "second", "other")
PROMPTS = (None, *PROMPT_NAMES, "query", "document", "passage", "sts", "image", "")
SIDES = (None, "NONE", "START", "END")
DIRECTIONS = (None, "Left", "left", "Right", "right")
PAIR = {"query": "a", "documents": ["b", "c"]}
RANKED = {"query": "a", "texts": ["b", "c"]}
INPUT = {"input": "a", "model": MODEL}
# path, the rest of the body, a field, its values
NAMED: list[Case] = [
    ("/v1/embeddings", {"input": "a"}, "model", NAMES),
    ("/v1/embedding/text", {"texts": ["a"]}, "model", NAMES),
    ("/v2/embed", {"texts": ["a"]}, "model", NAMES),
    ("/api/embed", {"input": "a"}, "model", NAMES),
    ("/api/embeddings", {"prompt": "a"}, "model", NAMES),
    ("/api/show", {}, "model", NAMES),
    ("/api/show", {}, "name", NAMES),
    ("/rerank", PAIR, "model", NAMES),
    ("/v1/rerank", PAIR, "model", NAMES),
    ("/score", {"text_1": "a", "text_2": "b"}, "model", NAMES),
]
PROMPTED: list[Case] = [
    ("/v1/embeddings", INPUT, "prompt_name", PROMPTS),
    ("/v1/embeddings", INPUT, "task_type", PROMPTS),
    ("/v1/embedding/text", {"texts": ["a"]}, "task_type", PROMPTS),
    ("/embed", {"inputs": "a"}, "prompt_name", PROMPTS),
    ("/v2/embed", {"texts": ["a"]}, "input_type", PROMPTS),
    ("/api/embed", INPUT, "prompt_name", PROMPTS),
    ("/tokenize", {"inputs": "a"}, "prompt_name", PROMPTS),
]
LIMITED: list[Case] = [
    ("/v1/embeddings", INPUT, "dimensions", (None, 0, 1, 64, 65)),
    ("/v1/embeddings", INPUT, "max_length", (None, 2, 3, 64, 65)),
    ("/embed", {"inputs": "a"}, "dimensions", (None, 0, 1, 64, 65)),
    ("/v2/embed", {"texts": ["a"]}, "max_tokens", (None, 2, 3, 10**9)),
    ("/api/embed", INPUT, "options", (None, {}, {"num_ctx": 2}, {"num_ctx": 3})),
    ("/api/embed", INPUT, "on_long", (None, "error", "end", "chunk", "mean", "start")),
    (
        "/api/embeddings", {"prompt": "a", "model": MODEL}, "on_long",
        (None, "error", "end", "chunk", "mean", "start"),
    ),
    (
        "/score", {"text_1": "a", "text_2": "b"}, "truncate_prompt_tokens",
        (None, -1, 0, 3, 4, 64, 65),
    ),
]  # fmt: skip
CUT: list[Case] = [
    ("/v2/embed", {"texts": ["a"]}, "truncate", SIDES),
    ("/embed", {"inputs": "a"}, "truncation_direction", DIRECTIONS),
    (
        "/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b"]}}, "parameters",
        [{"truncation_direction": side} for side in DIRECTIONS],
    ),
]  # fmt: skip
PAIRS_CUT: list[Case] = [
    ("/rerank", RANKED, "truncation_direction", DIRECTIONS),
    ("/predict", {"inputs": ["a", "b"]}, "truncation_direction", DIRECTIONS),
]


def compare(server: InThread, cases: Iterable[Case]) -> dict[tuple[str, str], list[object]]:
    """A schema accepts a body if the server answers it; (path, field) -> what both accept."""
    document = server.call("/openapi.json").json
    found = {}
    for path, rest, field, values in cases:
        content = document["paths"][path]["post"]["requestBody"]["content"]
        schema = content["application/json"]["schema"] | {"components": document["components"]}
        check = jsonschema.Draft202012Validator(schema)
        accepted = []
        for value in values:
            body = {**rest, field: value}
            reply = server.call(path, body)
            assert reply.status in (200, 400, 404, 422)
            assert check.is_valid(body) == (reply.status == 200), (path, body, reply.body)
            accepted += [value] if reply.status == 200 else []
        found[path, field] = accepted
    return found


def write_json(file: Path, **changes: Any) -> None:
    old = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**old, **changes}))


def test_a_mixed_server(tmp_path: Path) -> None:
    """A name is accepted by the routes of its kind; of limits those of each kind."""
    folders = [
        build_reranker(tmp_path / CLASSIFIER, labels=3),
        tiny(tmp_path),
        build_reranker(tmp_path / RERANKER),
    ]
    with in_thread(*folders, max_length=64) as server:
        found = compare(server, [*NAMED, *PROMPTED, *LIMITED, *CUT, *PAIRS_CUT])
    assert found["/v1/embeddings", "model"] == [MODEL]
    assert found["/v2/embed", "model"] == [None, MODEL]
    assert found["/api/embed", "model"] == [MODEL, f"{MODEL}:latest"]
    assert found["/score", "model"] == found["/rerank", "model"] == [None, RERANKER]
    assert found["/tokenize", "prompt_name"] == [None]  # the classifier has none
    assert found["/api/embeddings", "on_long"] == [None, "error", "end", "chunk"]
    assert found["/score", "truncate_prompt_tokens"] == [None, -1, 4, 64]


def test_models_that_agree_and_differ(tmp_path: Path) -> None:
    """Of two embedding models a schema has what is the same; TEI's routes are of the first."""
    first, second = tiny(tmp_path), tiny(tmp_path, "second")
    with in_thread(first, second, max_length=64) as server:
        found = compare(server, [*NAMED[:7], *PROMPTED, *LIMITED[:-1]])
    assert found["/v1/embeddings", "model"] == [MODEL, "second"]
    assert found["/v1/embeddings", "dimensions"] == [None, 1, 64]
    write_json(
        second / "config_sentence_transformers.json", prompts={"query": "q: ", "document": "d: "}
    )
    with in_thread(first, second, max_length=64) as server:
        schemas = server.call("/openapi.json").json["components"]["schemas"]
        compare(server, [PROMPTED[3], PROMPTED[6]])
    text = {"anyOf": [{"type": "string"}, {"type": "null"}]}
    assert schemas["EmbeddingsRequest"]["properties"]["prompt_name"] == text
    assert schemas["TextRequest"]["properties"]["task_type"] == text | {
        "default": "search_document"
    }
    assert schemas["EmbeddingsRequest"]["properties"]["dimensions"]["anyOf"][0]["maximum"] == 64


def test_any_name(tmp_path: Path) -> None:
    with in_thread(tiny(tmp_path), any_model_name=True) as server:
        found = compare(server, NAMED[:7])
    assert all(accepted == [*NAMES] for accepted in found.values())


def test_some_prompts_and_none(tmp_path: Path) -> None:
    """A checkpoint has what its prompts give, and task types without a prompt of their own."""
    folder = build_checkpoint(tmp_path / MODEL, "bge-en")
    settings = folder / "config_sentence_transformers.json"
    write_json(settings, prompts={"query": "q: ", "sts": "s: "})
    with in_thread(folder) as server:
        found = compare(server, PROMPTED)
    assert found["/embed", "prompt_name"] == [None, "query", "sts"]
    tasks = [None, "search_document", "search_query", "query", "sts"]
    assert found["/v2/embed", "input_type"] == found["/v1/embedding/text", "task_type"] == tasks
    write_json(settings, prompts={})
    with in_thread(folder) as server:
        found = compare(server, PROMPTED)
    assert found["/embed", "prompt_name"] == [None, "query", "document"]
    tasks = [None, *PROMPT_NAMES, "query", "document"]
    assert found["/v2/embed", "input_type"] == found["/v1/embedding/text", "task_type"] == tasks


def test_checkpoints_that_cut_the_beginning(tmp_path: Path) -> None:
    embedder, reranker = tiny(tmp_path), build_reranker(tmp_path / RERANKER)
    for folder in (embedder, reranker):
        write_json(folder / "tokenizer_config.json", truncation_side="left")
    with in_thread(embedder) as server:
        found = compare(server, CUT)
        assert server.service.models[0].tokenizer.cuts_start
    assert found["/v2/embed", "truncate"] == [None, "NONE", "START"]
    assert found["/embed", "truncation_direction"] == [None, "Left", "left"]
    with in_thread(reranker) as server:
        found = compare(server, PAIRS_CUT)
    for path in ("/rerank", "/predict"):
        assert found[path, "truncation_direction"] == [None, "Left", "left"]


def test_descriptions_of_what_schemas_cannot_say(document: dict[str, Any]) -> None:
    for path in ("/score", "/v1/score"):
        assert "as many texts" in document["paths"][path]["post"]["description"]
    sagemaker = document["paths"]["/embed"]["post"]["description"]
    fields = {field.name for field in msgspec.structs.fields(nomic.SagemakerRequest)}
    assert fields == set(re.findall(r"`(\w+)`", sagemaker)) - {"embeddings"}


def test_examples_have_a_text(document: dict[str, Any]) -> None:
    """An absent text is right for ollama's routes, so it is not required; examples have one."""
    schemas = document["components"]["schemas"]
    for name, field in (("OllamaEmbedRequest", "input"), ("OllamaEmbeddingsRequest", "prompt")):
        schema = schemas[name]["properties"][field]
        assert schema["examples"]
        for example in schema["examples"]:
            assert example
            assert jsonschema.Draft202012Validator(schema).is_valid(example)
