"""The page: texts stay texts, nothing is fetched, and the data are those of the points."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from nomicbert.bulk.map.colours import Colours, Scale, colours_of
from nomicbert.bulk.map.labels import Label
from nomicbert.bulk.map.page import page, safe_json

NASTY = [
    "</script><script>alert(1)</script>",
    "<!-- <script> & ]]> <img src=x onerror=alert(1)>",
    "line\u2028and\u2029paragraph \\ \" ' {{title}} ${x}",
    "\u0000 \x1b[31m 日本語 🙂 ‮right to left",
]
PLACES = np.array([[-1, 2], [0, 0], [3, 1], [1, 1]], np.float32)


class Parts(HTMLParser):
    """The elements of a page: their attributes, and the contents of title, style and script."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.found: dict[str, list[dict[str, str | None]]] = {}
        self.contents: dict[str, list[str]] = {}
        self.open = ""
        self.feed(content)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.setdefault(tag, []).append(dict(attrs))
        self.contents.setdefault(tag, []).append("")
        self.open = tag

    def handle_endtag(self, tag: str) -> None:
        self.open = ""

    def handle_data(self, data: str) -> None:
        if self.open:
            self.contents[self.open][-1] += data


def make(
    texts: list[str | None], colours: Colours | None = None, title: str = "A map"
) -> tuple[Parts, dict[str, Any]]:
    """A page of four points, and its data."""
    table = pa.table({"text": texts, "tag": ["a", "<b>", "a", None], "n": [1, None, 3, 1]})
    colours = colours or colours_of("tag", table["tag"])
    labels = [Label(0.0, 2.0, NASTY[0], 0)]
    content = page(PLACES, table, "text", colours, labels, title=title, summary="4 points")
    parts = Parts(content.decode("utf-8"))
    return parts, json.loads(parts.contents["script"][0])


def test_texts_are_data_only() -> None:
    parts, data = make([*NASTY], title=NASTY[0])
    assert data["text"] == NASTY
    assert data["labels"][0]["text"] == NASTY[0]
    assert [script.get("type") for script in parts.found["script"]] == ["application/json", None]
    assert "img" not in parts.found
    assert parts.contents["title"] == [NASTY[0]]
    assert parts.contents["h1"] == [NASTY[0]]
    raw = parts.contents["script"][0]
    assert not set("<>&\u2028\u2029") & set(raw)


def test_the_policy_allows_the_own_script_and_style_only() -> None:
    parts, _ = make([*NASTY])
    policy = next(
        one["content"] or ""
        for one in parts.found["meta"]
        if one.get("http-equiv") == "Content-Security-Policy"
    )
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))

    def digest(content: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"

    assert rules == {
        "default-src": "'none'",
        "script-src": digest(parts.contents["script"][1]),
        "style-src": digest(parts.contents["style"][0]),
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_nothing_of_the_page_is_elsewhere() -> None:
    parts, _ = make(["a", "b", "c", "d"])
    own = "".join(parts.contents["script"][1:] + parts.contents["style"])
    assert not re.search(r"https?:|@import|url\(|fetch\(|innerHTML|eval\(", own)
    elements = [element for same in parts.found.values() for element in same]
    links = [value for one in elements for name, value in one.items() if name in ("href", "src")]
    assert links == ["data:,"]


def test_data_of_the_points() -> None:
    _, data = make(["x" * 240, "y" * 241, None, ""])
    assert data["text"] == ["x" * 240, "y" * 239 + "…", "", ""]
    # places keep their proportions: the longer side has 20,000 steps
    assert (data["x"], data["y"]) == ([0, 5000, 20000, 10000], [10000, 0, 5000, 5000])
    assert (data["labels"][0]["x"], data["labels"][0]["y"]) == (5000, 10000)
    cells = {one["name"]: [one["values"][code] for code in one["codes"]] for one in data["columns"]}
    assert cells == {"tag": ["a", "<b>", "a", ""], "n": ["1", "", "3", "1"]}
    color = data["color"]
    assert [(one["name"], one["count"]) for one in color["groups"]] == [
        ("a", 2),
        ("<b>", 1),
        ("(none)", 1),
    ]
    assert color["codes"] == [0, 1, 0, 2]


def test_data_of_a_scale() -> None:
    values = np.array([0, np.nan, 0.123456, 1])
    _, data = make(["a", "b", "c", "d"], Scale("n", values, ("1", "<9>"), "Grey: 1."))
    assert data["color"] == {
        "kind": "scale",
        "title": "n",
        "note": "Grey: 1.",
        "values": [0, None, 0.1235, 1],
        "ends": ["1", "<9>"],
    }


def test_one_place() -> None:
    table = pa.table({"row": [0, 1]})
    content = page(
        np.zeros((2, 2), np.float32),
        table,
        None,
        colours_of("row", table["row"]),
        [],
        title="t",
        summary="s",
    )
    data = json.loads(Parts(content.decode()).contents["script"][0])
    assert (data["x"], data["y"], data["text"]) == ([0, 0], [0, 0], None)


def test_json_is_strict() -> None:
    half = "\ud800"  # of a pair
    assert json.loads(safe_json({"a": half}).encode("utf-8", "backslashreplace")) == {"a": half}
    with pytest.raises(ValueError, match="JSON compliant"):
        safe_json(float("nan"))
