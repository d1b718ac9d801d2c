"""JSON Schemas that several parts of GET /openapi.json use."""

from collections.abc import Iterable
from typing import Any

Schema = dict[str, Any]

NULL: Schema = {"type": "null"}
STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
OBJECT: Schema = {"type": "object"}
NUMBERS: Schema = {"type": "array", "items": NUMBER}
VECTORS: Schema = {"type": "array", "items": NUMBERS}
TEXTS: Schema = {"type": "array", "items": STRING, "minItems": 1}


def or_null(schema: Schema) -> Schema:
    """What the schema accepts, and null."""
    return {"anyOf": [schema, NULL]}


def whole(least: int, most: int | None = None) -> Schema:
    """An integer in a range."""
    found = {"type": "integer", "minimum": least}
    return found if most is None else found | {"maximum": most}


def one_of(values: Iterable[str] | None) -> Schema:
    """One of these texts; any if they are not known. Of no texts there is null only."""
    if values is None:
        return STRING
    found = [*values]
    return {"enum": found} if found else NULL


def one_or_null(values: Iterable[str] | None) -> Schema:
    """`one_of`, and null."""
    found = one_of(values)
    return NULL if found is NULL else or_null(found)


def direction(cuts_start: bool | None) -> Schema:
    """TEI's `truncation_direction`: the side that texts lose, where it is known."""
    sides = {None: ("Left", "Right", "left", "right"), True: ("Left", "left")}
    return one_or_null(sides.get(cuts_start, ("Right", "right")))
