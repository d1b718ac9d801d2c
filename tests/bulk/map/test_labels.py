"""Names on the map: where they stand, and which words they take."""

from __future__ import annotations

import numpy as np

from nomicbert.bulk.map.colours import Group, Groups
from nomicbert.bulk.map.labels import labels_of, regions

WORDS = ("river fish boat", "oven bread flour", "chord violin melody")


def three_places(size: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(3 * size, 2))
    middles = np.repeat([[0, 0], [90, 0], [0, 90]], size, axis=0)
    return (middles + noise).astype(np.float32)


def test_regions_are_named_by_their_words(seed: int) -> None:
    """Words of all texts, of the language and of one text are no names."""
    texts = [f"The common thing: {WORDS[n // 12]} and x{n}y" for n in range(36)]
    found = regions(three_places(12, seed), texts)
    assert [one.count for one in found.groups] == [12, 12, 12]
    assert {frozenset(one.name.split(", ")) for one in found.groups} == {
        frozenset(words.split()) for words in WORDS
    }
    assert found.names == [found.names[12 * (n // 12)] for n in range(36)]


def test_regions_without_words_are_numbered(seed: int) -> None:
    places = three_places(12, seed)
    for texts in (None, ["", None, "1 2 3"] * 12):
        names = [one.name for one in regions(places, texts).groups]
        assert sorted(names) == ["region 1", "region 2", "region 3"]


def test_words_that_begin_alike_are_one_name(seed: int) -> None:
    found = regions(three_places(12, seed), ["file files filename abc abcs"] * 12 + ["tree"] * 24)
    assert sorted(one.name for one in found.groups)[0] == "abc, file"


def test_equal_names_are_numbered(seed: int) -> None:
    found = regions(three_places(12, seed), ["tree"] * 24 + ["boat"] * 12)
    assert sorted(one.name for one in found.groups) == ["boat", "tree", "tree (2)"]


def test_few_points_are_one_region() -> None:
    for count in (1, 2, 8):
        found = regions(np.zeros((count, 2), np.float32), ["tree"] * count)
        assert [one.count for one in found.groups] == [count]


def test_labels_stand_at_medians() -> None:
    """A far point does not move them; the rest has none; long names are cut."""
    places = np.array([[0, 0], [1, 5], [99, 6], [7, 7]], np.float32)
    groups = (Group("g" * 50, 3), Group("other", 1, rest=True))
    (label,) = labels_of(places, Groups("c", groups, np.array([0, 0, 0, 1])))
    assert (label.x, label.y, label.group) == (1.0, 5.0, 0)
    assert label.text == "g" * 39 + "…"
