"""Regexes of tokenizers in use are let through; slow ones are found."""

from __future__ import annotations

import pytest

from nomicbert.text.regex_limits import LONGEST, fault

REPEATED = "repeats a group with repetitions or alternatives"
SEVERAL = "has several repetitions before something that must match"
LETTERS = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{M}]*[\p{Ll}\p{Lm}\p{M}]+(?i:'s|'t|'re|'ve)?"


@pytest.mark.parametrize(
    "regex",
    [
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
        rf"{LETTERS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"[!\"#\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}]+[\r\n]*",
        r"<\|startoftext\|>|<\|endoftext\|>|'s|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
        r"(\[[^\]]+]|Br?|Cl?|N|O|\(|\)|\.|=|\+|\\|\/|\?|>>?|\*|\$|\%[0-9]{2}|[0-9])",
        r" ?[^(\s|[.,!?…。，、।])]+",
        r"(\\.|[0-9])",
        r"(?:[a+b|c])+",
        r"\d+\.\d+",
        r"(?:\+|-)?\d{1,3}(?:st|nd|rd|th)?(?:,|\.)?",
        r"(?=[A-Z][a-z])|\p{Han}{1,200}",
        r"(?=(\d{3})+(?!\d))",
        r"\d+(?:,\d{3})*(?:\.\d+)?",
        " {2,}",
        "",
        ")",
    ],
)
def test_regexes_in_use_have_no_fault(regex: str) -> None:
    assert fault(regex) is None


@pytest.mark.parametrize(
    ("regex", "found"),
    [
        ("(a+)+b", REPEATED),
        ("(a|a)*", REPEATED),
        ("((ab)*c)*", REPEATED),
        ("(?:a?)*", REPEATED),
        ("(a{2,}){3}", REPEATED),
        (r"(?:\(x|\[y+])+", REPEATED),
        ("(?<name>a*)+", REPEATED),
        (r"\w*\w*!", SEVERAL),
        (r"(?=\w*\w*!)x|.", SEVERAL),
        (r"(?:a*|b)(?:c|d*)!", SEVERAL),
        (r"(a*b*)\b", SEVERAL),
        (r"\s+\S*(?:x)", SEVERAL),
        (r"\s+\S*(?:x)?\d{3}", SEVERAL),
        ("a{1,99}a{1,99}b", SEVERAL),
        ("a{5,}a{,99}b", SEVERAL),
        ("(ab)*(ab)*c", SEVERAL),
        ("a*?a*+a", SEVERAL),
        ("a?" * 30 + "a" * 30, SEVERAL),
        ("a{0,9}" * 20 + "b", SEVERAL),
        ("(?:a|a)" * 30 + "b", SEVERAL),
        ("a*" + "a?" * 10 + "b", SEVERAL),
        ("a" * (LONGEST + 1), "has 2,001 characters"),
    ],
)
def test_slow_regexes_are_found(regex: str, found: str) -> None:
    assert fault(regex) == found
