"""The routes of rerankers and classifiers in OpenAPI's terms, for `openapi`."""

from collections.abc import Sequence
from typing import Any

import msgspec

from nomicbert.serve.dialects import rerank, score, tei_rerank
from nomicbert.serve.dialects.fields import PAIR_POLICIES

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
NULL: Schema = {"type": "null"}
TEXTS: Schema = {"type": "array", "items": STRING, "minItems": 1}
NUMBER: Schema = {"type": "number"}
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
        "properties": {"index": {"type": "integer"}, "score": NUMBER, "text": STRING},
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
                    "index": {"type": "integer"},
                    "relevance_score": NUMBER,
                    "document": {"type": "object", "properties": {"text": STRING}},
                },
                "required": ["index", "relevance_score"],
            },
        },
        "usage": {"type": "object"},
        "meta": {"type": "object"},
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
                "properties": {"index": {"type": "integer"}, "score": NUMBER},
                "required": ["index", "score"],
            },
        },
        "model": STRING,
        "usage": {"type": "object"},
    },
    "required": ["object", "data", "model", "usage"],
}
# As BODIES of `openapi`.
BODIES: dict[str, tuple[type[msgspec.Struct], str, Schema]] = {
    "/rerank": (
        tei_rerank.RerankRequest,
        "Order texts by their scores beside a query (TEI)",
        {"anyOf": [RANKS, RESULTS]},
    ),
    "/predict": (
        tei_rerank.PredictRequest,
        "Labels of texts and pairs (TEI)",
        {"anyOf": [LABELS, {"type": "array", "items": LABELS}]},
    ),
    "/v1/rerank": (rerank.DocumentsRequest, "Order documents by their scores (Cohere)", RESULTS),
    "/v2/rerank": (rerank.DocumentsRequest, "Order documents by their scores (Cohere)", RESULTS),
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


def narrower(
    names: Sequence[str] | None, lengths: tuple[int, int] | None
) -> dict[str, dict[str, Schema]]:
    """Struct -> field -> what is accepted, where the struct can hold more.

    Args:
        names: of models, if others are refused.
        lengths: the least and the most tokens per pair, or None if it is not known.
    """
    on_long = _or_null({"enum": [*PAIR_POLICIES]})
    right = _or_null({"enum": ["Right", "right"]})
    model = _or_null(STRING if names is None else {"enum": [*names]})
    positive = _or_null({"type": "integer", "minimum": 1})
    least, most = lengths or (1, None)
    limit: Schema = {"type": "integer", "minimum": least}
    limit |= {} if most is None else {"maximum": most}
    sequence = {"type": "array", "items": STRING, "minItems": 1, "maxItems": 2}
    side = {"anyOf": [STRING, TEXTS, NULL]}
    return {
        "RerankRequest": {"texts": TEXTS, "truncation_direction": right, "on_long": on_long},
        "PredictRequest": {
            "inputs": {
                "anyOf": [STRING, sequence, {"type": "array", "items": sequence, "minItems": 1}]
            },
            "truncation_direction": right,
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
            "truncate_prompt_tokens": _or_null({"anyOf": [{"const": -1}, limit]}),
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


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, NULL]}
