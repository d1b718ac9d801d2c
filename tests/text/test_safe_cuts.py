"""safe_cuts: the first ids of a cut text are those of the whole text, at every cut.

The expected ids come from the tokenizers library on whole texts.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer

from nomicbert.text.safe_cuts import Cuts
from nomicbert.text.tokenizer import Tokenizer
from tests.support.odd_tokenizers import COMMON, CUT, MAIN, WHOLE, tight_unigram
from tests.support.vocabularies import HANZI, WORDS

ATOMS = [
    *(
        " ",
        "  ",
        " " * 50,
        "\n",
        "\t",
        "\r\n",
        "\u3000",
        "\xa0",
        "\u2003",
        "\u2028",
        "\x85",
        "\x1c",
    ),
    *("\u200b", "\u200d", "\ufeff", "\u00ad", "\ufe0f", "\x00", "\x07", "\ufffd", "▁", "_", "@x@"),
    *("[SEP]", "</s>", "<mask>", " <mask>", "<unk>", "[MASK]", "[unused3]", ".", ",", "。", "'"),
    *(
        "fox",
        "fox\n",
        "fox\tjump",
        "FOX",
        "language",
        "learning",
        "search_",
        "jump",
        "a",
        "1",
        "½",
        "²",
        "①",
        "x" * 101,
    ),
    *("\u0301", "\u0327", "\u3099", "é", "e\u0301", "Å", "ß", "İ", "Σ", "ΟΔΟΣ", "ﬁ", "㍿", "㈱"),
    *("北", "北京", "深度学习", "学习", COMMON, HANZI[:30], "龘", "靐", "㐀", "\U00020000", "，"),
    *("\uf900", "\u8c48", "\u2f00", "が", "カ", "ﾊﾞ", "한", "\u1112\u1161\u11ab", "ع", "\u064e"),
    *("\ufdfa", "\ufe70", "\ufc5e", "\u037a", "\u1cf2", "\u0d4e", "हि", "न्दी", "ก", "😀", "🇩🇪"),
    *(
        "👩\u200d👩\u200d👧",
        "x fox",
        "x▁fox",
        "x \u0301fox",
        "x\u00b4fox",
        "fox北",
        "北fox",
        "_fox_",
    ),
]
chinese = st.text(alphabet=COMMON * 3 + "，龘 a", min_size=8, max_size=60)
atoms = st.sampled_from(ATOMS) | st.text(max_size=5)
# few kinds per text, so that each pair is often adjacent
kinds = st.lists(atoms, min_size=1, max_size=6)
short = chinese | kinds.flatmap(
    lambda some: st.lists(st.sampled_from([*some, " ", "fox"]), max_size=20)
).map("".join)
floods = kinds.flatmap(
    lambda some: st.lists(
        st.builds(str.__mul__, st.sampled_from(some), st.sampled_from([1, 1, 2, 9, 300])),
        max_size=30,
    )
).map("".join)
long = floods | st.lists(chinese | floods, max_size=6).map("".join)


@functools.cache
def built(name: str) -> RustTokenizer:
    return (CUT | WHOLE)[name]()


@functools.cache
def ours(name: str, lower_case: bool) -> Tokenizer:
    return Tokenizer(CUT[name](), lower_case=lower_case)


def whole_ids(rust: RustTokenizer, text: str) -> list[int]:
    ids: list[int] = rust.encode(text, add_special_tokens=False).ids
    return ids


def alike(bodies: list[list[int]]) -> list[int]:
    """The longest common prefix."""
    same = takewhile(lambda ids: len({*ids}) == 1, zip(*bodies, strict=False))
    return [ids[0] for ids in same]


@pytest.mark.parametrize("lower_case", [False, True])
@pytest.mark.parametrize("name", [*MAIN, "nmt"])
@given(text=long, limit=st.integers(2, 40) | st.integers(40, 300))
@settings(max_examples=60)
def test_ids_and_verdict(name: str, lower_case: bool, text: str, limit: int) -> None:
    tokenizer = ours(name, lower_case)
    ids = whole_ids(tokenizer.rust, text)
    room = limit - 2
    wanted = [*tokenizer.prefix, *ids[:room], *tokenizer.suffix]
    assert tokenizer.encode([text], limit) == ([wanted], [0] if len(ids) > room else [])
    fits = [*tokenizer.prefix, *ids, *tokenizer.suffix]
    assert tokenizer.encode(["", text], len(fits))[1] == []
    if ids:
        assert tokenizer.encode([text, text], len(fits) - 1)[1] == [0, 1]


@pytest.mark.parametrize("name", CUT)
@given(text=short)
@example(text="a\ufe70 fox")  # without its mark, this Arabic character becomes a space
@example(text="a \u1cf2 fox")  # and this one becomes empty
@settings(max_examples=40)
def test_every_cut_is_safe(name: str, text: str) -> None:
    """The ids on which the prefixes agree begin the ids of the whole text, for any `start`."""
    rust = built(name)
    cuts, ids = Cuts.of(rust), whole_ids(rust, text)
    for ends in {tuple(cuts.ends(text, start)) for start in range(len(text) + 1)}:
        assert ends
        agreed = alike([whole_ids(rust, text[:end]) for end in ends])
        assert agreed == ids[: len(agreed)], ends


@pytest.mark.parametrize("name", CUT)
def test_tokenizers_whose_texts_are_cut(name: str) -> None:
    cuts = Cuts.of(built(name))
    for start, end in ((2, 3), (3, 3), (4, 9), (5, 9)):
        assert cuts.ends("the river is long", start) == [end]
    assert cuts.ends("the river is long", 14) == [17]
    assert cuts.ends("fox. (fox) -- ", 4) == [4]
    # a cut next to these characters is not known to be safe
    assert cuts.ends("fox\u200b fox\u0301 \ufffd fox", 1) == [15]


def test_cuts_between_lines() -> None:
    """Cut at newlines if the tokenizer splits there or turns a newline into a space."""
    lines = ("english", "bert, cased", "nmt", "nmt, words", "strip, words")
    for name in (*lines, "strip", "no normalizer", "metaspace, wordpiece"):
        for gap in "\t\r\n":
            ends = Cuts.of(built(name)).ends("fox" + gap + "dog", 2)
            assert ends == ([3] if name in lines else [7])


@pytest.mark.parametrize("name", WHOLE)
def test_tokenizers_whose_texts_are_not_cut(name: str) -> None:
    text = "the river is long 的一是不了人我在有 x fox北 的一是不 and x fox"
    assert Cuts.of(built(name)).ends(text, 3) == [len(text)]


def test_chinese_without_spaces(seed: int) -> None:
    """Every cut and every limit. A single cut would often be wrong: later text decides the ids."""
    rust, rng = built("nmt"), random.Random(seed)
    tokenizer, cuts, wrong = ours("nmt", False), Cuts.of(rust), 0
    for _ in range(150):
        text = "".join(rng.choices(COMMON * 4 + "，", k=90))
        ids = whole_ids(rust, text)
        bodies = [whole_ids(rust, text[:end]) for end in range(len(text) + 1)]
        wrong += sum(body != ids[: len(body)] for body in bodies)
        for start in range(0, len(text), 4):
            agreed = alike([bodies[end] for end in cuts.ends(text, start)])
            assert agreed == ids[: len(agreed)]
        for room in range(1, 12):
            found, cut = tokenizer.encode([text], room + 2)
            assert (found[0][1:-1], cut) == (ids[:room], [0])
    assert wrong > 2000


@pytest.mark.parametrize("text", ["王一二三四五六，", "王，一二三四五六七", "王一二三四五六"])
def test_every_position_counts(text: str) -> None:
    rust = tight_unigram()
    tokenizer, cuts = Tokenizer(rust), Cuts.of(rust)
    for copies in (1, 2, 9):
        longer = text * copies
        ids = whole_ids(rust, longer)
        for start in range(len(longer)):
            agreed = alike([whole_ids(rust, longer[:end]) for end in cuts.ends(longer, start)])
            assert agreed == ids[: len(agreed)]
        for limit in range(1, len(ids) + 2):
            assert tokenizer.encode([longer], limit) == ([ids[:limit]], [0][: len(ids) > limit])


class Simplified:
    """A fake normalizer that changes Chinese characters."""

    def normalize_str(self, text: str) -> str:
        return text.replace("語", "语")


class Normalized:
    """A fake tokenizer with it."""

    normalizer = Simplified()


def test_no_cut_among_characters_that_are_normalised() -> None:
    pattern = Cuts.of(built("nmt")).pattern
    assert pattern is not None
    text = "語" + "一" * 5 + "語" + "一" * 20
    assert Cuts(pattern).ends(text, 0) == [*range(1, 7)]
    assert Cuts(pattern, Normalized()).ends(text, 0) == [*range(8, 14)]
    assert Cuts(pattern, Normalized()).ends(text[:13], 0) == [13]


class Counting:
    """Wraps a tokenizer and counts the characters passed to it."""

    def __init__(self, rust: RustTokenizer) -> None:
        self.rust, self.characters = rust, 0

    def encode_batch_fast(self, texts: Sequence[str], **keywords: Any) -> Any:
        self.characters += sum(map(len, texts))
        return self.rust.encode_batch_fast(texts, **keywords)


def english(characters: int) -> str:
    return " ".join(random.Random(1).choices(WORDS, k=characters // 2))[:characters]


def clauses(characters: int) -> str:
    """Chinese without spaces, with some punctuation."""
    rng = random.Random(1)
    some = ["".join(rng.choices(HANZI, k=rng.randint(5, 18))) + "，" for _ in range(500)]
    return "".join(rng.choices(some, k=characters // 6))[:characters]


@pytest.mark.parametrize("write", [english, clauses])
@pytest.mark.parametrize("limit", [128, 512, 8192])
@pytest.mark.parametrize("name", MAIN)
def test_a_long_text_costs_no_more_than_its_beginning(
    name: str, limit: int, write: Callable[[int], str]
) -> None:
    tokenizer = Tokenizer(MAIN[name]())
    counting = tokenizer.rust = Counting(tokenizer.rust)  # type: ignore[assignment]
    given = {}
    for characters in (10_000, 1_000_000):
        counting.characters = 0
        (ids,), _ = tokenizer.encode([write(characters)], limit)
        given[characters] = counting.characters
    assert len(ids) == limit
    assert given[10_000] <= 10_000
    assert given[1_000_000] < 5 * given[10_000]
