"""The picture: the colours of the points are in it, and any text can be a name."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
from PIL import Image

from nomicbert.bulk.map.colours import HUES, REST, STOPS, Colours, colours_of
from nomicbert.bulk.map.labels import Label
from nomicbert.bulk.map.picture import draw

PLACES = np.array([[0, 0], [9, 0], [0, 9], [9, 9]], np.float32)


def colours_in(colours: Colours, labels: list[Label]) -> set[tuple[int, int, int]]:
    file = io.BytesIO()
    draw(file, PLACES, colours, labels, title="$\\frac$", summary="日本語")
    with Image.open(file) as image:
        assert image.size == (1650, 1125)
        points = image.crop((0, 0, 1400, 1125))  # without the legend
        return {pixel[:3] for _, pixel in points.getcolors(1 << 24) or []}


def drawn(colour: str) -> tuple[int, int, int]:
    """As the picture shows it: 85 percent on white."""
    channels = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    red, green, blue = (round(0.85 * one + 0.15 * 255) for one in channels)
    return red, green, blue


def near(wanted: tuple[int, int, int], found: set[tuple[int, int, int]]) -> bool:
    return any(max(abs(a - b) for a, b in zip(wanted, one, strict=True)) <= 2 for one in found)


def test_groups() -> None:
    """Names with a "$" are no formulas."""
    column = pa.chunked_array([["$a_{$", "b", "$a_{$", "$\\frac$"]])
    found = colours_in(colours_of("c$", column), [Label(0, 0, "$a_{$", 0), Label(0, 0, "b", 1)])
    assert [near(drawn(hue), found) for hue in HUES[:4]] == [True, True, True, False]


def test_a_scale() -> None:
    """Violet at one end, yellow at the other; the points of no value are grey."""
    column = pa.chunked_array([[1.0, 2.0, None, 9.0]])
    found = colours_in(colours_of("c", column), [])
    assert near(drawn(STOPS[0]), found)
    assert near(drawn(STOPS[-1]), found)
    assert near(drawn(REST), found)
    assert not near(drawn(HUES[0]), found)
