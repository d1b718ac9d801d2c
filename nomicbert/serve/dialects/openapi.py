"""GET /openapi.json: the routes with bodies, described in OpenAPI 3.1.

Schemas come from the structs that the bodies are read with. `_narrowed` adds what structs cannot
say: empty lists, and the names and limits of the loaded models.
"""

import copy

import msgspec

from nomicbert import __version__
from nomicbert.runtime.hosted import SEARCH_DOCUMENT
from nomicbert.serve.dialects import (
    nomic,
    openai,
    openapi_cohere_ollama,
    openapi_rerank,
    tei,
    tei_tokens,
)
from nomicbert.serve.dialects.fields import POLICIES
from nomicbert.serve.dialects.openapi_facts import Accepted, Facts, facts_of
from nomicbert.serve.dialects.schemas import (
    INTEGER,
    NULL,
    NUMBERS,
    OBJECT,
    STRING,
    TEXTS,
    VECTORS,
    Schema,
    direction,
    one_of,
    one_or_null,
    or_null,
    whole,
)
from nomicbert.serve.http.answers import Answer, as_json
from nomicbert.serve.http.exchange import Exchange
from nomicbert.serve.service import Service

# Of lists of token ids the first and the last one are fixed, which a schema cannot say.
INPUTS = {
    "anyOf": [STRING, TEXTS],
    "description": "Also a list of token ids, or several, with the special tokens of this model.",
}
USAGE = {
    "type": "object",
    "properties": {
        "prompt_tokens": INTEGER,
        "total_tokens": INTEGER,
        "truncated_texts": INTEGER,
    },
    "required": ["prompt_tokens", "total_tokens"],
}
# path -> struct of the body, summary, schema of the answer
BODIES: dict[str, tuple[type[msgspec.Struct], str, Schema]] = {
    "/v1/embeddings": (
        openai.EmbeddingsRequest,
        "Embed texts (OpenAI)",
        {
            "type": "object",
            "properties": {
                "object": {"const": "list"},
                "data": {"type": "array", "items": OBJECT},
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
    "/vertex": (tei.VertexRequest, "Several bodies of /embed (TEI)", OBJECT),
    "/tokenize": (
        tei_tokens.TokenizeRequest,
        "Tokens of texts (TEI)",
        {"type": "array", "items": {"type": "array", "items": OBJECT}},
    ),
    "/decode": (
        tei_tokens.DecodeRequest,
        "Text of token ids (TEI)",
        {"type": "array", "items": STRING},
    ),
    **openapi_cohere_ollama.BODIES,
    **openapi_rerank.BODIES,
}
# path -> schema of the body in place of its struct's
SCHEMAS: dict[str, Schema] = {
    "/embed_all": {"$ref": "#/components/schemas/EmbedAllRequest"},
    **openapi_rerank.SCHEMAS,
}
PLAIN = {
    "/v1/models": "Names of the models (OpenAI)",
    "/info": "Facts about the first model (TEI)",
    "/health/live": "Whether the server lives (health)",
    "/health/ready": "Whether the server is ready (health)",
    **openapi_cohere_ollama.PLAIN,
}
# path -> other addresses of the same route
ALSO = {
    "/v1/embeddings": "Also POST /embeddings.",
    "/embed": "Also POST / and /invocations, if the first model embeds; and they take the body of "
    "/similarity too. /invocations also takes the body of nomic's SageMaker endpoints: `texts`, "
    "and `task_type`, `dimensionality`, `binary` (bits, eight to an integer) and `on_long` if "
    "wanted; the answer is an object with `embeddings`.",
    "/v1/models": "Also GET /models.",
    "/health/ready": "Also GET /health, / and /ping, which answer without a body.",
    **openapi_rerank.ALSO,
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


async def document(service: Service, _exchange: Exchange) -> Answer:
    """GET /openapi.json."""
    return as_json(describe(facts_of(service)))


def describe(facts: Facts) -> Schema:
    """The document."""
    structs = [struct for struct, _, _ in BODIES.values()]
    found, components = msgspec.json.schema_components(
        structs, ref_template="#/components/schemas/{name}"
    )
    _narrowed(components, facts)
    paths: Schema = {}
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
        answers = {"responses": _responses(OBJECT)}
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


def _about(path: str, summary: str) -> Schema:
    """Summary, and the protocol that ends it in parentheses as a tag."""
    found = {"summary": summary, "tags": [summary.rpartition("(")[2].removesuffix(")")]}
    return found | ({"description": ALSO[path]} if path in ALSO else {})


def _responses(answer: Schema) -> Schema:
    def response(text: str, schema: Schema) -> Schema:
        return {"description": text, "content": {"application/json": {"schema": schema}}}

    refused = {status: response("refused", OBJECT) for status in STATUSES}
    return {"200": response("answered", answer), **refused}


def _narrowed(components: dict[str, Schema], facts: Facts) -> None:
    """State what is refused although the structs can hold it."""
    properties = {name: schema["properties"] for name, schema in components.items()}
    for name, fields in _narrower(facts).items():
        properties[name] |= fields
    for name, defaults in DEFAULTS.items():
        for field, value in defaults.items():
            properties[name][field] = {**properties[name][field], "default": value}
    properties["VertexRequest"]["instances"]["minItems"] = 1
    components["ScoreRequest"]["anyOf"] = openapi_rerank.sides()
    if facts.needs_name:
        components["EmbeddingsRequest"]["required"] = ["input", "model"]
    tokens = components["EmbedAllRequest"] = copy.deepcopy(components["EmbedRequest"])
    tokens["title"] = "EmbedAllRequest"
    tokens["properties"] |= {
        "inputs": {"anyOf": [STRING, TEXTS]},
        "dimensions": NULL,
        "on_long": or_null({"enum": ["error", "end"]}),
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
    openapi_cohere_ollama.narrow(components, facts)


def _narrower(facts: Facts) -> dict[str, dict[str, Schema]]:
    """Struct -> field -> what is accepted, where the struct can hold more."""
    models, first = facts.embedders, facts.embedder
    policy = or_null({"enum": [*POLICIES]})
    cut = direction(first.cuts_start)
    prompt, own_prompt = one_or_null(models.prompts), one_or_null(first.prompts)
    width = or_null(whole(1, models.width))
    return {
        "EmbeddingsRequest": {
            "input": INPUTS,
            "model": (one_of if facts.needs_name else one_or_null)(models.names),
            "dimensions": width,
            "prompt_name": prompt,
            "task_type": prompt,
            "on_long": policy,
            "max_length": or_null(whole(models.shortest or 1, models.longest)),
        },
        "TextRequest": {
            "texts": TEXTS,
            "model": one_or_null(models.names),
            "task_type": one_or_null(models.tasks),
            "dimensionality": width,
            "on_long": policy,
            "max_tokens_per_text": or_null(whole(1)),
        },
        "EmbedRequest": {
            "inputs": INPUTS,
            "prompt_name": own_prompt,
            "dimensions": or_null(whole(1, first.width)),
            "truncation_direction": cut,
            "on_long": policy,
        },
        "Sentences": {"sentences": TEXTS},
        "Parameters": {"prompt_name": own_prompt, "truncation_direction": cut},
        "TokenizeRequest": {
            "inputs": {"anyOf": [STRING, TEXTS]},
            "prompt_name": one_or_null(facts.first.prompts),
        },
        "DecodeRequest": {"ids": _ids(facts.first)},
        **openapi_rerank.narrower(facts),
    }


def _ids(first: Accepted) -> Schema:
    token = whole(0, None if first.vocabulary is None else first.vocabulary - 1)
    ids = {"type": "array", "items": token}
    return {"anyOf": [ids | {"minItems": 1}, {"type": "array", "items": ids, "minItems": 1}]}
