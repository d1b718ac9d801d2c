"""Names on the map: of groups where most of their points are, or of regions by their words.

    weight of a word = (share of a region's texts with it) x log(n / number of texts with it)

Where in the flow: `write_map` names regions where no column gives groups. Regions are those of the
plane, not of the vectors, because a name stands for the place where it is read.

Source: Sparck Jones 1972, doi:10.1108/eb026526 (the logarithm).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nomicbert.bulk.map.colours import MOST_GROUPS, Groups, grouped
from nomicbert.bulk.projection import SEED, Floats

WORDS = 3
# Words are looked for in so many characters of a text.
MOST_TEXT = 1000
MOST_WORDS = 20_000
MOST_LABEL = 40


@dataclass(frozen=True)
class Label:
    """A name at a place of the map, for the points of a group."""

    x: float
    y: float
    text: str
    group: int


def labels_of(places: Floats, groups: Groups) -> list[Label]:
    """A label at the median of each group but that of the rest, the largest group first.

    Args:
        places: (n, 2).
        groups: of the n points.
    """
    found = []
    for index, group in enumerate(groups.groups):
        if not group.rest and group.count and group.name:
            x, y = np.median(places[groups.codes == index], axis=0)
            short = (
                group.name[: MOST_LABEL - 1] + "…" if len(group.name) > MOST_LABEL else group.name
            )
            found.append(Label(float(x), float(y), short, index))
    return found


def regions(places: Floats, texts: Sequence[str | None] | None) -> Groups:
    """Groups of points that are close to each other on the map, named by their words.

    Args:
        places: (n, 2).
        texts: of the n points; None if there are none: the regions are numbered.
    """
    from sklearn.cluster import KMeans

    distinct = len(np.unique(places, axis=0))
    count = min(distinct, MOST_GROUPS, 1 + int(np.sqrt(len(places)) / 3))
    codes = KMeans(count, n_init=4, random_state=SEED).fit_predict(places).astype(np.int64)
    names = [""] * count if texts is None else _names(texts, codes, count)
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        seen[name] = seen.get(name, 0) + 1
        if not name:
            names[index] = f"region {index + 1}"
        elif seen[name] > 1:
            names[index] = f"{name} ({seen[name]})"
    return grouped("regions of the map", names, codes)


def _names(texts: Sequence[str | None], codes: Any, count: int) -> list[str]:
    from sklearn.feature_extraction.text import CountVectorizer

    reader = CountVectorizer(
        binary=True,
        stop_words="english",
        token_pattern=r"(?u)\b[^\W\d_]{2,}\b",
        max_features=MOST_WORDS,
        dtype=np.int32,
    )
    try:
        table = reader.fit_transform([text or "" for text in texts])
    except ValueError:  # of texts without a word
        return [""] * count
    words = reader.get_feature_names_out()
    total = np.asarray(table.sum(axis=0)).ravel()
    names = []
    for index in range(count):
        inside = table[codes == index]
        share = np.asarray(inside.sum(axis=0)).ravel() / max(1, inside.shape[0])
        weight = share * np.log((1 + len(texts)) / total)
        names.append(", ".join(_best(words, weight)))
    return names


def _alike(a: str, b: str) -> bool:
    """Whether two words begin alike, as forms of one word do."""
    return a[:4] == b[:4] or a.startswith(b) or b.startswith(a)


def _best(words: Any, weight: Any) -> list[str]:
    """The words of most weight, without those that begin alike ("file", "files")."""
    chosen: list[str] = []
    for at in np.argsort(-weight, kind="stable")[: 5 * WORDS]:
        word = str(words[at])
        if weight[at] > 0 and not any(_alike(word, other) for other in chosen):
            chosen.append(word)
        if len(chosen) == WORDS:
            break
    return chosen
