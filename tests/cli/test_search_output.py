"""What `nomicbert search` prints: never wider than the terminal, and nothing that controls it."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nomicbert.cli.search_output import (
    Answer,
    Hit,
    Report,
    _wrapped,
    as_json,
    as_text,
    columns_of,
    place_of,
)


def hit(rank: int = 1, text: str | None = "Cats purr.", **settings: Any) -> Hit:
    known: dict[str, Any] = {
        "score": 0.71234,
        "reranker_score": None,
        "row": 4,
        "where": "notes/cats.md:12",
        "fields": {},
    }
    return Hit(rank=rank, text=text, **{**known, **settings})


def test_a_ranking_at_40_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    hits = [
        hit(
            text="Cats\nThey purr when they are content, and when they are not, which few know. "
            * 3
        ),
        hit(10, "Short.", where="a/very/long/path/to/a/file/of/notes.md:1234", reranker_score=-3.2),
    ]
    assert as_text([Answer("Why?", hits)]).splitlines() == [
        " 1  0.712  notes/cats.md:12",
        "    Cats They purr when they are",
        "    content, and when they are not,",
        "    which few know. Cats They purr ...",
        "10  -3.200 (0.712)  a/very/long/path/to/",
        "                    a/file/of/notes.md:1",
        "                    234",
        "    Short.",
    ]


def test_json_has_no_numbers_of_its_own() -> None:
    fields = {"a": float("nan"), "b": [1.5, {"c": float("-inf")}]}
    report = Report("v", 1, 8, "m", False, None, [Answer("Why?", [hit(fields=fields)])])
    found = json.loads(as_json(report), parse_constant=pytest.fail)
    assert found["answers"][0]["results"][0]["fields"] == {"a": "nan", "b": [1.5, {"c": "-inf"}]}


def test_several_questions_have_headings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = as_text([Answer("Why?", [hit()]), Answer("How?", [hit()])])
    ranking = " 1  0.712  notes/cats.md:12\n    Cats purr."
    assert shown == f"Why?\n{ranking}\n\nHow?\n{ranking}"


def test_nothing_moves_the_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    shown = as_text([Answer("?", [hit(text="a\x1b[2Jb\r\x07c\u202ed", where="\x1b]0;x\x07.md:1")])])
    assert [c for c in shown if not c.isprintable() and c != "\n"] == []


def test_rows_without_their_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    fields = {"source": "a.jsonl", "row": 3, "title": "Cats", "year": 1999}
    assert as_text([Answer("?", [hit(text=None, fields=fields)])]).endswith(
        "\n    title: Cats year: 1999"
    )


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"source": "a.md", "line": 7, "row": 2, "id": "x"}, "a.md:7"),
        ({"source": "a.jsonl", "line": None, "row": 2}, "a.jsonl:3"),
        ({"source": "a.jsonl", "row": 2, "id": "x"}, "x"),
        ({"id": 0}, "0"),
        ({}, "row 5"),
    ],
)
def test_what_names_a_row(fields: dict[str, Any], where: str) -> None:
    assert place_of(fields, 4) == where


@given(text=st.text("ab 语é\u0301\n", max_size=200), width=st.integers(2, 30))
def test_lines_fit_and_keep_every_character(text: str, width: int) -> None:
    lines = list(_wrapped(text, width))
    assert all(line and columns_of(line) <= width for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())


def test_the_document_has_every_field() -> None:
    day = datetime.date(2026, 12, 1)
    report = Report("v", 5, 3, "m", True, None, [Answer("q?", [hit(fields={"day": day})])])
    assert json.loads(as_json(report)) == {
        "vectors": "v",
        "rows": 5,
        "dimension": 3,
        "model": "m",
        "bits": True,
        "reranker": None,
        "answers": [
            {
                "question": "q?",
                "results": [
                    {
                        "rank": 1,
                        "score": 0.71234,
                        "reranker_score": None,
                        "row": 4,
                        "where": "notes/cats.md:12",
                        "text": "Cats purr.",
                        "fields": {"day": "2026-12-01"},
                    }
                ],
            }
        ],
    }
