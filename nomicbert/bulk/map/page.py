"""A map -> one HTML file without a request to anywhere.

Where in the flow: the end of `write_map`. The page is `map.html` with `map.css`, `map.js` and the
points as JSON inside. Its policy allows that script and style by their digests, and nothing else,
so no text can bring a script along. Importing this module needs pyarrow.

Source: Content Security Policy Level 3, W3C; the HTML standard, "restrictions for contents of
script elements" (why "<" is escaped).
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from nomicbert.bulk.map.cells import as_strings
from nomicbert.bulk.map.colours import HUES, REST, SHAPES, STOPS, Colours, Groups
from nomicbert.bulk.map.labels import Label
from nomicbert.bulk.projection import Floats

MOST_TEXT = 240
# Places are sent as integers: steps along the longer side.
STEPS = 20_000
# "<" would end the element or open a comment; the last two end lines of JavaScript, not of JSON.
UNSAFE = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})


def page(
    places: Floats,
    table: Any,
    text: str | None,
    colours: Colours,
    labels: Sequence[Label],
    *,
    title: str,
    summary: str,
) -> bytes:
    """The page in UTF-8.

    Args:
        places: (n, 2).
        table: pa.Table of n rows: what is shown for each point.
        text: the column of the text; None if there is none.
        colours: of the n points.
        labels: names on the map, the most important first.
        title: of the page.
        summary: a line below the title.
    """
    scale = STEPS / max(float(np.ptp(places, axis=0).max()), 1e-9)
    left, low = places.min(axis=0).tolist()
    x, y = np.rint((places - (left, low)) * scale).astype(int).T.tolist()
    data = {
        "x": x,
        "y": y,
        "text": as_strings(table[text], most=MOST_TEXT).to_pylist() if text else None,
        "columns": [_column(name, table[name]) for name in table.column_names if name != text],
        "color": _colour(colours),
        "labels": [
            {
                "x": (one.x - left) * scale,
                "y": (one.y - low) * scale,
                "text": one.text,
                "group": one.group,
            }
            for one in labels
        ],
        "look": {"hues": HUES, "shapes": SHAPES, "stops": STOPS, "rest": REST},
    }
    style, script = (_file(name) for name in ("map.css", "map.js"))
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    parts = {
        "title": html.escape(title),
        "summary": html.escape(summary),
        "policy": policy,
        "style": style,
        "script": script,
        "data": safe_json(data),
    }
    filled = re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _file("map.html"))
    # half of a surrogate pair becomes its escape
    return filled.encode("utf-8", "backslashreplace")


def safe_json(value: object) -> str:
    """JSON that may stand in a script element: the same values, without "<", ">" and "&"."""
    found = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return found.translate(UNSAFE)


def _column(name: str, column: Any) -> dict[str, object]:
    """Each different value once, and its number per point: sources and names repeat."""
    encoded = as_strings(column).dictionary_encode()
    values = encoded.dictionary.to_pylist()
    return {"name": name, "values": values, "codes": encoded.indices.to_pylist()}


def _colour(colours: Colours) -> dict[str, object]:
    shared = {"title": colours.title, "note": colours.note}
    if isinstance(colours, Groups):
        groups = [asdict(group) for group in colours.groups]
        return {**shared, "kind": "groups", "groups": groups, "codes": colours.codes.tolist()}
    values = [None if np.isnan(one) else round(one, 4) for one in colours.values.tolist()]
    return {**shared, "kind": "scale", "values": values, "ends": colours.ends}


def _digest(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def _file(name: str) -> str:
    return (Path(__file__).parent / name).read_text("utf-8")
