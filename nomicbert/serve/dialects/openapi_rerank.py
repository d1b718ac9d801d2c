"""The routes of rerankers and classifiers in OpenAPI's terms, for `openapi`."""

import msgspec

from nomicbert.serve.dialects import rerank, score, tei_rerank
from nomicbert.serve.dialects.fields import PAIR_POLICIES
from nomicbert.serve.dialects.openapi_facts import Facts
from nomicbert.serve.dialects.schemas import (
    INTEGER,
    NULL,
    NUMBER,
    OBJECT,
    STRING,
    TEXTS,
    Schema,
    direction,
    one_or_null,
    or_null,
    whole,
)

LABELS: Schema = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"score": NUMBER, "label": STRING},
        "required": ["score", "label"],
    },
}
RANKS: Schema = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"index": INTEGER, "score": NUMBER, "text": STRING},
        "required": ["index", "score"],
    },
}
RESULTS: Schema = {
    "type": "object",
    "properties": {
        "id": STRING,
        "model": STRING,
        "results": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "index": INTEGER,
                    "relevance_score": NUMBER,
                    "document": {"type": "object", "properties": {"text": STRING}},
                },
                "required": ["index", "relevance_score"],
            },
        },
        "usage": OBJECT,
        "meta": OBJECT,
    },
    "required": ["id", "model", "results", "usage", "meta"],
}
SCORES: Schema = {
    "type": "object",
    "properties": {
        "object": {"const": "list"},
        "data": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"index": INTEGER, "score": NUMBER},
                "required": ["index", "score"],
            },
        },
        "model": STRING,
        "usage": OBJECT,
    },
    "required": ["object", "data", "model", "usage"],
}
RANK_DOCUMENTS = "Rank documents by relevance to a query (Cohere)"
# As BODIES of `openapi`.
BODIES: dict[str, tuple[type[msgspec.Struct], str, Schema]] = {
    "/rerank": (
        tei_rerank.RerankRequest,
        "Rank texts by relevance to a query (TEI)",
        {"anyOf": [RANKS, RESULTS]},
    ),
    "/predict": (
        tei_rerank.PredictRequest,
        "Labels of texts and pairs (TEI)",
        {"anyOf": [LABELS, {"type": "array", "items": LABELS}]},
    ),
    "/v1/rerank": (rerank.DocumentsRequest, RANK_DOCUMENTS, RESULTS),
    "/v2/rerank": (rerank.DocumentsRequest, RANK_DOCUMENTS, RESULTS),
    "/score": (score.ScoreRequest, "Scores of pairs (vLLM)", SCORES),
    "/v1/score": (score.ScoreRequest, "Scores of pairs (vLLM)", SCORES),
}
# path -> schema of the body in place of its struct's
SCHEMAS: dict[str, Schema] = {
    "/rerank": {
        "anyOf": [
            {"$ref": "#/components/schemas/RerankRequest"},
            {
                "allOf": [
                    {"$ref": "#/components/schemas/DocumentsRequest"},
                    {"properties": {"texts": NULL}},
                ]
            },
        ]
    },
}
# That both sides must have as many texts is beyond JSON Schema.
SIDES = (
    "The first side holds 1 text, which goes with each text of the second side, or as many texts "
    "as the second side: pairs are then made in order."
)
# As ALSO of `openapi`.
ALSO = {
    "/rerank": "With `documents` in place of `texts` as Jina, vLLM and Infinity have it.",
    "/v1/rerank": "Jina's route too.",
    "/score": SIDES,
    "/v1/score": SIDES,
}


def narrower(facts: Facts) -> dict[str, dict[str, Schema]]:
    """Struct -> field -> what is accepted, where the struct can hold more."""
    on_long = or_null({"enum": [*PAIR_POLICIES]})
    model = one_or_null(facts.rerankers.names)
    positive = or_null(whole(1))
    limit = whole(facts.rerankers.shortest or 1, facts.rerankers.longest)
    sequence = {"type": "array", "items": STRING, "minItems": 1, "maxItems": 2}
    side = {"anyOf": [STRING, TEXTS, NULL]}
    return {
        "RerankRequest": {
            "texts": TEXTS,
            "truncation_direction": direction(facts.reranker.cuts_start),
            "on_long": on_long,
        },
        "PredictRequest": {
            "inputs": {
                "anyOf": [STRING, sequence, {"type": "array", "items": sequence, "minItems": 1}]
            },
            "truncation_direction": direction(facts.classifier.cuts_start),
            "on_long": on_long,
        },
        "DocumentsRequest": {
            "documents": {
                "type": "array",
                "items": {"anyOf": [STRING, {"$ref": "#/components/schemas/Document"}]},
                "minItems": 1,
            },
            "model": model,
            "top_n": positive,
            "max_tokens_per_doc": positive,
            "on_long": on_long,
        },
        "ScoreRequest": {
            **{name: side for names_of_side in score.SIDES for name in names_of_side},
            "model": model,
            "truncate_prompt_tokens": or_null({"anyOf": [{"const": -1}, limit]}),
            "on_long": on_long,
        },
    }


def sides() -> list[Schema]:
    """For `anyOf` of ScoreRequest: both sides of one name, and none of another."""
    found = []
    for names in score.SIDES:
        others = {name: NULL for other in score.SIDES if other != names for name in other}
        own = {name: {"anyOf": [STRING, TEXTS]} for name in names}
        found.append({"properties": {**others, **own}, "required": [*names]})
    return found
