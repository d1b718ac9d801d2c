"""The routes of Cohere and ollama in GET /openapi.json.

Where in the flow: `openapi` adds these bodies and what their structs cannot say to its own.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from nomicbert.serve.dialects import cohere, ollama, ollama_models
from nomicbert.serve.dialects.fields import POLICIES
from nomicbert.text.prompts import NOMIC_TASKS

Schema = dict[str, Any]

PLACE = "#/components/schemas/"
NULL: Schema = {"type": "null"}
STRING: Schema = {"type": "string"}
NUMBERS: Schema = {"type": "array", "items": {"type": "number"}}
TEXTS: Schema = {"type": "array", "items": STRING, "minItems": 1}
COHERE: Schema = {
    "type": "object",
    "properties": {
        "id": STRING,
        "response_type": {"enum": ["embeddings_by_type", "embeddings_floats"]},
        "embeddings": {"type": ["object", "array"]},
        "texts": TEXTS,
        "meta": {"type": "object"},
    },
    "required": ["id", "response_type", "embeddings", "texts", "meta"],
}
OLLAMA: Schema = {
    "type": "object",
    "properties": {
        "model": STRING,
        "embeddings": {"type": "array", "items": NUMBERS},
        "total_duration": {"type": "integer"},
        "load_duration": {"type": "integer"},
        "prompt_eval_count": {"type": "integer"},
    },
    "required": ["model", "embeddings"],
}
# path -> struct of the body, summary, schema of the answer
BODIES: dict[str, tuple[type[msgspec.Struct], str, Schema]] = {
    "/v1/embed": (cohere.CohereEmbedRequest, "Embed texts, version 1 (Cohere)", COHERE),
    "/v2/embed": (cohere.CohereEmbedRequest, "Embed texts (Cohere)", COHERE),
    "/api/embed": (ollama.OllamaEmbedRequest, "Embed texts (ollama)", OLLAMA),
    "/api/embeddings": (
        ollama.OllamaEmbeddingsRequest,
        "Embed a text (ollama)",
        {"type": "object", "properties": {"embedding": NUMBERS}, "required": ["embedding"]},
    ),
    "/api/show": (
        ollama_models.OllamaShowRequest,
        "Facts about a model (ollama)",
        {"type": "object"},
    ),
}
PLAIN = {
    "/api/tags": "Names of the models (ollama)",
    "/api/ps": "Loaded models (ollama)",
    "/api/version": "Version of the server (ollama)",
}


def narrow(
    components: dict[str, Schema],
    names: Sequence[str] | None,
    prompts: Sequence[str] | None,
    width: Schema,
    shortest: int,
) -> None:
    """State what is refused although the structs can hold it.

    Args:
        components: schemas by the names of structs, which change.
        names: of models, if others are refused.
        prompts: names of prompts, or None where models differ.
        width: of vectors: an integer in a range.
        shortest: the least number of tokens per text.
    """
    tokens: Schema = {"type": "integer", "minimum": shortest}
    policy = _or_null({"enum": [*POLICIES]})
    prompt = _or_null(STRING if prompts is None else {"enum": [*prompts]})
    types = None if prompts is None else [*dict.fromkeys((*NOMIC_TASKS, *prompts))]
    fields: dict[str, Schema] = {
        "CohereEmbedRequest": {
            "model": _or_null(STRING if names is None else {"enum": [*names]}),
            "images": NULL,
            "input_type": _or_null(STRING if types is None else {"enum": types}),
            "output_dimension": _or_null(width),
            "truncate": _or_null({"enum": ["NONE", "END"]}),
            "max_tokens": _or_null(tokens),
            "on_long": policy,
        },
        "CohereInput": {
            "content": components["CohereInput"]["properties"]["content"]
            | {"minItems": 1, "maxItems": 1},
        },
        "CohereContent": {"type": {"const": "text"}, "text": STRING},
        "OllamaEmbedRequest": {
            "input": {"anyOf": [STRING, {"type": "array", "items": STRING}, NULL]},
            "dimensions": _or_null(width),
            "prompt_name": prompt,
            "on_long": policy,
        },
        "OllamaEmbeddingsRequest": {"prompt_name": prompt, "on_long": policy},
        "OllamaOptions": {"num_ctx": _or_null(tokens)},
    }
    for name, schemas in fields.items():
        components[name]["properties"] |= schemas
    components["CohereContent"]["required"] = ["type", "text"]
    cohere_inputs = {"type": "array", "items": {"$ref": f"{PLACE}CohereInput"}, "minItems": 1}
    components["CohereEmbedRequest"]["anyOf"] = [
        _one_of("texts", TEXTS, "inputs"),
        _one_of("inputs", cohere_inputs, "texts"),
    ]
    kinds = components["CohereEmbedRequest"]["properties"]["embedding_types"]["anyOf"]
    for kind in kinds:
        if kind != NULL:
            kind["minItems"] = 1
    if names is None:
        return
    known = {"enum": [*dict.fromkeys((*names, *map(ollama_models.tagged, names)))]}
    for name in ("OllamaEmbedRequest", "OllamaEmbeddingsRequest"):
        components[name]["properties"]["model"] = known
        components[name]["required"] = ["model"]
    components["OllamaShowRequest"]["anyOf"] = [
        {"properties": {"model": known}, "required": ["model"]},
        _one_of("name", known, "model"),
    ]


def _one_of(field: str, schema: Schema, other: str) -> Schema:
    """An object with this field and without the other one."""
    return {"properties": {field: schema, other: NULL}, "required": [field]}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, NULL]}
