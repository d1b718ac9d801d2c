"""GET /openapi.json: the routes with bodies, described in OpenAPI 3.1.

Schemas come from the structs that the bodies are read with. What several lists may hold is stated
list by list, since a union of element types would allow mixtures that are refused.
"""

from typing import Any

import msgspec

from nomicbert import __version__
from nomicbert.serve import nomic, openai, tei, tei_tokens
from nomicbert.serve.answers import Answer, as_json
from nomicbert.serve.exchange import Exchange
from nomicbert.serve.service import Service

STRING = {"type": "string"}
IDS = {"type": "array", "items": {"type": "integer"}, "minItems": 1}
INPUTS = {
    "anyOf": [
        STRING,
        {"type": "array", "items": STRING, "minItems": 1},
        IDS,
        {"type": "array", "items": IDS, "minItems": 1},
    ]
}
NUMBERS = {"type": "array", "items": {"type": "number"}}
VECTORS = {"type": "array", "items": NUMBERS}
USAGE = {
    "type": "object",
    "properties": {
        "prompt_tokens": {"type": "integer"},
        "total_tokens": {"type": "integer"},
        "truncated_texts": {"type": "integer"},
    },
    "required": ["prompt_tokens", "total_tokens"],
}
# path -> struct of the body, summary, schema of the answer
BODIES: dict[str, tuple[type[msgspec.Struct], str, dict[str, Any]]] = {
    "/v1/embeddings": (
        openai.EmbeddingsRequest,
        "Embed texts (OpenAI)",
        {
            "type": "object",
            "properties": {
                "object": {"const": "list"},
                "data": {"type": "array", "items": {"type": "object"}},
                "model": STRING,
                "usage": USAGE,
            },
            "required": ["object", "data", "model", "usage"],
        },
    ),
    "/v1/embedding/text": (
        nomic.TextRequest,
        "Embed texts (nomic)",
        {
            "type": "object",
            "properties": {"embeddings": VECTORS, "usage": USAGE, "model": STRING},
            "required": ["embeddings", "usage", "model"],
        },
    ),
    "/embed": (tei.EmbedRequest, "Embed texts (TEI)", VECTORS),
    "/embed_all": (
        tei.EmbedRequest,
        "Hidden states of every token (TEI)",
        {"type": "array", "items": VECTORS},
    ),
    "/similarity": (tei.SimilarityRequest, "Cosines of one sentence to others (TEI)", NUMBERS),
    "/vertex": (tei.VertexRequest, "Several bodies of /embed (TEI)", {"type": "object"}),
    "/tokenize": (
        tei_tokens.TokenizeRequest,
        "Tokens of texts (TEI)",
        {"type": "array", "items": {"type": "array", "items": {"type": "object"}}},
    ),
    "/decode": (
        tei_tokens.DecodeRequest,
        "Text of token ids (TEI)",
        {"type": "array", "items": STRING},
    ),
}
PLAIN = {
    "/v1/models": "Names of the models",
    "/info": "Facts about the first model",
    "/health/live": "Whether the server lives",
    "/health/ready": "Whether the server is ready",
}
# Statuses besides 200; each with a JSON body.
STATUSES = ("400", "401", "408", "412", "413", "415", "422", "424", "429", "500", "503")


async def document(_service: Service, _exchange: Exchange) -> Answer:
    """GET /openapi.json."""
    return as_json(describe())


def describe() -> dict[str, Any]:
    """The document."""
    structs = [struct for struct, _, _ in BODIES.values()]
    found, components = msgspec.json.schema_components(
        structs, ref_template="#/components/schemas/{name}"
    )
    _state_inputs(components)
    paths: dict[str, Any] = {}
    for (path, (_, summary, answer)), body in zip(BODIES.items(), found, strict=True):
        content = {"application/json": {"schema": body}}
        paths[path] = {
            "post": {
                "summary": summary,
                "requestBody": {"required": True, "content": content},
                "responses": _responses(answer),
            }
        }
    for path, summary in PLAIN.items():
        paths[path] = {"get": {"summary": summary, "responses": _responses({"type": "object"})}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "nomicbert", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _responses(answer: dict[str, Any]) -> dict[str, Any]:
    def response(text: str, schema: dict[str, Any]) -> dict[str, Any]:
        return {"description": text, "content": {"application/json": {"schema": schema}}}

    refused = {status: response("refused", {"type": "object"}) for status in STATUSES}
    return {"200": response("answered", answer), **refused}


def _state_inputs(components: dict[str, Any]) -> None:
    for struct, field in (("EmbeddingsRequest", "input"), ("EmbedRequest", "inputs")):
        components[struct]["properties"][field] = INPUTS
    components["DecodeRequest"]["properties"]["ids"] = {
        "anyOf": [IDS, {"type": "array", "items": IDS, "minItems": 1}]
    }
