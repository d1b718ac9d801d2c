"""The routes of Cohere and ollama in GET /openapi.json.

Where in the flow: `openapi` adds these bodies and what their structs cannot say to its own.
"""

import msgspec

from nomicbert.serve.dialects import cohere, ollama, ollama_models
from nomicbert.serve.dialects.fields import POLICIES
from nomicbert.serve.dialects.openapi_facts import Facts
from nomicbert.serve.dialects.schemas import (
    INTEGER,
    NULL,
    NUMBERS,
    OBJECT,
    STRING,
    TEXTS,
    VECTORS,
    Schema,
    one_of,
    one_or_null,
    or_null,
    whole,
)

PLACE = "#/components/schemas/"
COHERE: Schema = {
    "type": "object",
    "properties": {
        "id": STRING,
        "response_type": {"enum": ["embeddings_by_type", "embeddings_floats"]},
        "embeddings": {"type": ["object", "array"]},
        "texts": TEXTS,
        "meta": OBJECT,
    },
    "required": ["id", "response_type", "embeddings", "texts", "meta"],
}
OLLAMA: Schema = {
    "type": "object",
    "properties": {
        "model": STRING,
        "embeddings": VECTORS,
        "total_duration": INTEGER,
        "load_duration": INTEGER,
        "prompt_eval_count": INTEGER,
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
    "/api/show": (ollama_models.OllamaShowRequest, "Facts about a model (ollama)", OBJECT),
}
PLAIN = {
    "/api/tags": "Names of the models (ollama)",
    "/api/ps": "Loaded models (ollama)",
    "/api/version": "Version of the server (ollama)",
}
# Texts of an example.
EXAMPLES = ["What is TSNE?", "Who is Laurens van der Maaten?"]
# cuts_start of the checkpoints -> Cohere's `truncate`
TRUNCATE = {None: ("NONE", "START", "END"), True: ("NONE", "START"), False: ("NONE", "END")}


def narrow(components: dict[str, Schema], facts: Facts) -> None:
    """State what is refused although the structs can hold it.

    Args:
        components: schemas by the names of structs, which change.
        facts: what the models accept.
    """
    models = facts.embedders
    tokens = or_null(whole(models.shortest or 1))
    width = or_null(whole(1, models.width))
    policy = or_null({"enum": [*POLICIES]})
    # the vectors of this route have any length, and a mean of windows has length 1
    plain = or_null({"enum": [name for name in POLICIES if name != "mean"]})
    prompt = one_or_null(models.prompts)
    types = None if models.tasks is None else [name for name in models.tasks if name != "image"]
    # ollama's bodies are right without a text too, but say little then
    texts = {"anyOf": [STRING, {"type": "array", "items": STRING}, NULL], "examples": [EXAMPLES]}
    fields: dict[str, Schema] = {
        "CohereEmbedRequest": {
            "model": one_or_null(models.names),
            "images": NULL,
            "input_type": one_or_null(types),
            "output_dimension": width,
            "truncate": one_or_null(TRUNCATE[models.cuts_start]),
            "max_tokens": tokens,
            "on_long": policy,
        },
        "CohereInput": {
            "content": components["CohereInput"]["properties"]["content"]
            | {"minItems": 1, "maxItems": 1},
        },
        "CohereContent": {"type": {"const": "text"}, "text": STRING},
        "OllamaEmbedRequest": {
            "input": texts,
            "dimensions": width,
            "prompt_name": prompt,
            "on_long": policy,
        },
        "OllamaEmbeddingsRequest": {
            "prompt": or_null(STRING) | {"examples": EXAMPLES[:1]},
            "prompt_name": prompt,
            "on_long": plain,
        },
        "OllamaOptions": {"num_ctx": tokens},
    }
    for name, schemas in fields.items():
        components[name]["properties"] |= schemas
    components["CohereContent"]["required"] = ["type", "text"]
    cohere_inputs = {"type": "array", "items": {"$ref": f"{PLACE}CohereInput"}, "minItems": 1}
    components["CohereEmbedRequest"]["anyOf"] = [
        _only("texts", TEXTS, "inputs"),
        _only("inputs", cohere_inputs, "texts"),
    ]
    kinds = components["CohereEmbedRequest"]["properties"]["embedding_types"]["anyOf"]
    for kind in kinds:
        if kind != NULL:
            kind["minItems"] = 1
    if not facts.needs_name:
        return
    names = models.names
    if names is not None:
        names = [*dict.fromkeys((*names, *map(ollama_models.tagged, names)))]
    known = one_of(names)
    for name in ("OllamaEmbedRequest", "OllamaEmbeddingsRequest"):
        components[name]["properties"]["model"] = known
        components[name]["required"] = ["model"]
    components["OllamaShowRequest"]["anyOf"] = [
        {"properties": {"model": known}, "required": ["model"]},
        _only("name", known, "model"),
    ]


def _only(field: str, schema: Schema, other: str) -> Schema:
    """An object with this field and without the other one."""
    return {"properties": {field: schema, other: NULL}, "required": [field]}
