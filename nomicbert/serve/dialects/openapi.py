"""GET /openapi.json: the routes with bodies, described in OpenAPI 3.1.

Schemas come from the structs that the bodies are read with. `_narrowed` adds what structs cannot
say: empty lists, and the names and limits of the loaded models.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from nomicbert import __version__
from nomicbert.runtime.hosted import SEARCH_DOCUMENT
from nomicbert.serve.dialects import (
    nomic,
    openai,
    openapi_more,
    openapi_rerank,
    tei,
    tei_tokens,
)
from nomicbert.serve.dialects.fields import POLICIES
from nomicbert.serve.http.answers import Answer, as_json
from nomicbert.serve.http.exchange import Exchange
from nomicbert.serve.scorers import ServedScorer
from nomicbert.serve.served import ServedEmbedder
from nomicbert.serve.service import Service
from nomicbert.text.prompts import NOMIC_TASKS

STRING = {"type": "string"}
TEXTS = {"type": "array", "items": STRING, "minItems": 1}
# Of lists of token ids the first and the last one are fixed, which a schema cannot say.
INPUTS = {
    "anyOf": [STRING, TEXTS],
    "description": "Also a list of token ids, or several, with the special tokens of this model.",
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
    **openapi_more.BODIES,
    **openapi_rerank.BODIES,
}
# path -> schema of the body in place of its struct's
SCHEMAS: dict[str, dict[str, Any]] = {
    "/embed_all": {"$ref": "#/components/schemas/EmbedAllRequest"},
    **openapi_rerank.SCHEMAS,
}
PLAIN = {
    "/v1/models": "Names of the models (OpenAI)",
    "/info": "Facts about the first model (TEI)",
    "/health/live": "Whether the server lives (health)",
    "/health/ready": "Whether the server is ready (health)",
    **openapi_more.PLAIN,
}
# path -> other addresses of the same route
ALSO = {
    "/v1/embeddings": "Also POST /embeddings.",
    "/embed": "Also POST / and /invocations, if the first model embeds; and they take the body of "
    "/similarity too.",
    "/rerank": "With `documents` in place of `texts` as Jina, vLLM and Infinity have it.",
    "/v1/rerank": "Jina's route too.",
    "/v1/models": "Also GET /models.",
    "/health/ready": "Also GET /health, / and /ping, which answer without a body.",
}
# struct -> what stands for a key that is absent or null, where no option of the server decides
DEFAULTS: dict[str, dict[str, object]] = {
    "EmbeddingsRequest": {"encoding_format": "float", "normalize": True, "report": False},
    "TextRequest": {
        "task_type": SEARCH_DOCUMENT, "long_text_mode": "mean", "report": False,
    },
    "EmbedRequest": {"normalize": True},
    "TokenizeRequest": {"add_special_tokens": True},
    "DecodeRequest": {"skip_special_tokens": True},
}  # fmt: skip
# Statuses besides 200; each with a JSON body.
STATUSES = ("400", "401", "404", "408", "412", "413", "415", "422", "424", "429", "500", "503")


@dataclass(frozen=True)
class Facts:
    """What the models of a server accept; None where it is not known, or differs between them.

    Attributes:
        names: of models, if others are refused.
        prompts: names of prompts.
        width: columns of a whole vector.
        lengths: the least and the most tokens per text, or pair.
        vocabulary: number of token ids.
    """

    names: Sequence[str] | None = None
    prompts: Sequence[str] | None = None
    width: int | None = None
    lengths: tuple[int, int] | None = None
    vocabulary: int | None = None


async def document(service: Service, _exchange: Exchange) -> Answer:
    """GET /openapi.json."""
    names = None if service.settings.any_model_name else [*service.names.by_name]
    facts = Facts(names)
    if service.loaded is not None and len(service.loaded.models) == 1:
        (model,) = service.loaded.models
        shortest = model.shortest if isinstance(model, ServedScorer) else model.tokenizer.shortest
        facts = Facts(
            names,
            sorted(model.facade.prompts),
            model.width if isinstance(model, ServedEmbedder) else None,
            (shortest, model.max_length),
            model.encoder.config.vocab_size,
        )
    return as_json(describe(facts))


def describe(facts: Facts) -> dict[str, Any]:
    """The document."""
    structs = [struct for struct, _, _ in BODIES.values()]
    found, components = msgspec.json.schema_components(
        structs, ref_template="#/components/schemas/{name}"
    )
    _narrowed(components, facts)
    paths: dict[str, Any] = {}
    for (path, (_, summary, answer)), body in zip(BODIES.items(), found, strict=True):
        content = {"application/json": {"schema": SCHEMAS.get(path, body)}}
        paths[path] = {
            "post": {
                **_about(path, summary),
                "requestBody": {"required": True, "content": content},
                "responses": _responses(answer),
            }
        }
    for path, summary in PLAIN.items():
        answers = {"responses": _responses({"type": "object"})}
        paths[path] = {"get": {**_about(path, summary), **answers}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "nomicbert", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _about(path: str, summary: str) -> dict[str, Any]:
    """Summary, and the protocol that ends it in parentheses as a tag."""
    found = {"summary": summary, "tags": [summary.rpartition("(")[2].removesuffix(")")]}
    return found | ({"description": ALSO[path]} if path in ALSO else {})


def _responses(answer: dict[str, Any]) -> dict[str, Any]:
    def response(text: str, schema: dict[str, Any]) -> dict[str, Any]:
        return {"description": text, "content": {"application/json": {"schema": schema}}}

    refused = {status: response("refused", {"type": "object"}) for status in STATUSES}
    return {"200": response("answered", answer), **refused}


def _narrowed(components: dict[str, Any], facts: Facts) -> None:
    """State what is refused although the structs can hold it."""
    properties = {name: schema["properties"] for name, schema in components.items()}
    prompt = _or_null({"enum": [*facts.prompts]} if facts.prompts is not None else STRING)
    width = _whole(1, facts.width)
    named = {"enum": [*facts.names]} if facts.names is not None else STRING
    right = _or_null({"enum": ["Right", "right"]})
    narrower: dict[str, dict[str, Any]] = {
        "EmbeddingsRequest": {
            "input": INPUTS,
            "model": named if facts.names is not None else _or_null(STRING),
            "dimensions": _or_null(width),
            "prompt_name": prompt,
            "task_type": prompt,
            "on_long": _or_null({"enum": [*POLICIES]}),
            "max_length": _or_null(_whole(*(facts.lengths or (1, None)))),
        },
        "TextRequest": {
            "texts": TEXTS,
            "model": _or_null(named),
            "task_type": _or_null({"enum": [*NOMIC_TASKS]}),
            "dimensionality": _or_null(width),
            "on_long": _or_null({"enum": [*POLICIES]}),
            "max_tokens_per_text": _or_null(_whole(1)),
        },
        "EmbedRequest": {
            "inputs": INPUTS,
            "prompt_name": prompt,
            "dimensions": _or_null(width),
            "truncation_direction": right,
            "on_long": _or_null({"enum": [*POLICIES]}),
        },
        "Sentences": {"sentences": TEXTS},
        "Parameters": {"prompt_name": prompt, "truncation_direction": right},
        "TokenizeRequest": {"inputs": {"anyOf": [STRING, TEXTS]}, "prompt_name": prompt},
        "DecodeRequest": {"ids": _ids(facts)},
        **openapi_rerank.narrower(facts.names, facts.lengths),
    }
    for name, fields in narrower.items():
        for field, schema in fields.items():
            properties[name][field] = schema
    for name, defaults in DEFAULTS.items():
        for field, value in defaults.items():
            properties[name][field] = {**properties[name][field], "default": value}
    properties["VertexRequest"]["instances"]["minItems"] = 1
    components["ScoreRequest"]["anyOf"] = openapi_rerank.sides()
    if facts.names is not None:
        components["EmbeddingsRequest"]["required"] = ["input", "model"]
    tokens = components["EmbedAllRequest"] = copy.deepcopy(components["EmbedRequest"])
    tokens["title"] = "EmbedAllRequest"
    tokens["properties"] |= {
        "inputs": {"anyOf": [STRING, TEXTS]},
        "dimensions": {"type": "null"},
        "on_long": _or_null({"enum": ["error", "end"]}),
    }
    for name in ("EmbeddingsRequest", "EmbedRequest"):
        # a mean of unit vectors is one
        wrong = {"normalize": {"const": False}, "on_long": {"const": "mean"}}
        components[name]["not"] = {"properties": wrong, "required": [*wrong]}
    unit = {"normalize": {"const": False}, "embed_dtype": {"enum": ["int8", "uint8"]}}
    other = components["EmbeddingsRequest"]["not"]
    components["EmbeddingsRequest"]["not"] = {
        "anyOf": [other, {"properties": unit, "required": [*unit]}]
    }
    shortest = facts.lengths[0] if facts.lengths is not None else 1
    openapi_more.narrow(components, facts.names, facts.prompts, width, shortest)


def _ids(facts: Facts) -> dict[str, Any]:
    token = _whole(0, None if facts.vocabulary is None else facts.vocabulary - 1)
    ids = {"type": "array", "items": token}
    return {"anyOf": [ids | {"minItems": 1}, {"type": "array", "items": ids, "minItems": 1}]}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _whole(least: int, most: int | None = None) -> dict[str, Any]:
    found = {"type": "integer", "minimum": least}
    return found if most is None else found | {"maximum": most}
