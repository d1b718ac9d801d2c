"""A map in headless Chromium: hover, search, legend, movement, themes, and no request."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from nomicbert.bulk.map.colours import HUES, colours_of
from nomicbert.bulk.map.labels import Label
from nomicbert.bulk.map.page import page
from tests.support.javascript import TESTS, browser, node

NASTY = "</script><script>alert(1)</script>\n<img src=x onerror=alert(1)> <b>& $x"
TEXTS = [NASTY, "a tree", "a leaf", "a boat", "a Ship", "a Ship"]
KINDS = ["t", "t", "t", "s", "s", "s"]
PLACES = np.array([[0, 0], [3, 1], [4, 3], [1, 3], [2, 4], [2, 4]], np.float32)

# the opacity of two points at one place
TWICE = 1 - (1 - 0.85) ** 2


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the reader of one page saw; starting the browser takes longer than the rest."""
    table = pa.table({"text": TEXTS, "kind": KINDS, "n": [1, None, 3, 4, 5, 6]})
    colours = colours_of("kind", table["kind"])
    labels = [Label(2.5, 2.0, "t", 0)]
    content = page(PLACES, table, "text", colours, labels, title="Things", summary="6 points")
    file = tmp_path_factory.mktemp("map") / "map.html"
    file.write_bytes(content)
    seen = node(TESTS / "map.mjs", browser(), file.as_uri())
    return {**seen, "url": file.as_uri()}


def blend(hue: str, part: float = 0.85, ground: int = 255) -> list[float]:
    return [part * int(hue[at : at + 2], 16) + (1 - part) * ground for at in (1, 3, 5)]


def near(found: list[int], wanted: list[float]) -> bool:
    return bool(np.abs(np.subtract(found, wanted)).max() <= 2)


def test_no_request_and_no_complaint(found: dict[str, Any]) -> None:
    assert found["seen"] == {
        "requests": [found["url"], found["url"]],
        "console": [],
        "errors": [],
        "dialogs": 0,
    }
    assert found["refused"] == "connect-src"


def test_points_have_the_colours_of_their_groups(found: dict[str, Any]) -> None:
    assert (found["title"], found["drawn"]) == ("Things", 6)
    first, fifth, ground = found["colours"]
    assert near(first, blend(HUES[0]))
    assert near(fifth, blend(HUES[1], TWICE))
    assert ground == [255, 255, 255]


def test_hover_shows_the_text_as_text(found: dict[str, Any]) -> None:
    hover = found["hover"]
    assert hover["found"] == {"text": NASTY, "cells": ["kind", "t", "n", "1"]}
    assert hover["kept"]
    assert hover["closed"]
    assert hover["other"]["text"] == "a Ship"


def test_search_counts_and_highlights(found: dict[str, Any]) -> None:
    search = found["search"]
    assert search["focused"]
    assert (search["count"], search["drawn"]) == ("2 of 6 points", 2)
    assert search["results"] == ["a Ship", "a Ship"]
    assert near(search["match"], blend(HUES[1], TWICE))
    assert near(search["other"], blend(HUES[0], 0.08))
    assert search["opened"] == "a Ship"
    assert search["after"] == [6, ""]


def test_the_legend_hides_groups(found: dict[str, Any]) -> None:
    legend = found["legend"]
    assert legend["names"] == [["t", "3"], ["s", "3"]]
    assert legend["hidden"] == [3, "false"]
    assert legend["found"] == "0 of 6 points"
    assert (legend["alone"], legend["all"]) == (3, 6)


def test_wheel_keys_and_drag(found: dict[str, Any]) -> None:
    move = found["move"]
    assert move["wheel"] == {"zoomed": True, "moved": 0}
    assert move["plus"]
    assert move["back"]
    assert move["key"] == 60
    assert move["drag"] == 50


def test_dark_and_light_on_a_phone(found: dict[str, Any]) -> None:
    themes = found["themes"]
    assert themes == {
        "dark": [0x10, 0x13, 0x16],
        "pressed": "true",
        "light": [255, 255, 255],
        "width": 390,
    }


def test_every_control_has_a_name(found: dict[str, Any]) -> None:
    assert found["unnamed"] == []
