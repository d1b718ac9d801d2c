"""Text files and JSONL, line by line; documents."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nomicbert.bulk.inputs import lines
from nomicbert.bulk.inputs.rows import Position
from tests.support.bulk_inputs import feed_of, read_all, rejects_of, rows_of

LINES = {
    "newline at the end": (b"a\nb\n", ["a", "b"]),
    "none at the end": (b"a\nb", ["a", "b"]),
    "blank lines": (b"\na\n\n\nb\n\n", ["", "a", "", "", "b", ""]),
    "blank lines only": (b"\n\r\n\n", ["", "", ""]),
    "crlf": (b"a\r\n\r\nb\r\n", ["a", "", "b"]),
    "a carriage return at the end": (b"a\r\nb\r", ["a", "b\r"]),
    "carriage returns inside": (b"a\rb\r\r\nc", ["a\rb\r", "c"]),
    "byte order mark": (b"\xef\xbb\xbfa\nb", ["a", "b"]),
    "byte order mark and nothing": (b"\xef\xbb\xbf", []),
    "byte order mark and a blank line": (b"\xef\xbb\xbf\n", [""]),
    "the mark further down is a character": (b"a\n\xef\xbb\xbfb", ["a", "\ufeffb"]),
    "nothing": (b"", []),
    "one blank line": (b"\n", [""]),
    "blanks are kept": (b"  a \t\n ", ["  a \t", " "]),
    "other line ends are characters": (
        "a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g\n".encode(),
        ["a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g"],
    ),
    "chinese": ("你好\n世界".encode(), ["你好", "世界"]),
    "a nul": (b"a\0b\n", ["a\0b"]),
}


@pytest.mark.parametrize("case", LINES)
def test_every_line_of_a_text_file_is_a_text(case: str, tmp_path: Path) -> None:
    content, expected = LINES[case]
    (path := tmp_path / "a.txt").write_bytes(content)
    taken, rest = read_all(feed_of(path))
    rows = [entry.row for entry in taken]
    assert [row.text for row in rows] == expected
    assert [row.fields for row in rows] == [{"text": text} for text in expected]
    assert [row.number for row in rows] == list(range(len(expected)))
    assert [row.where for row in rows] == [f"{path}, line {i + 1}" for i in range(len(expected))]
    assert sum(row.size for row in rows) == len(content) * bool(expected)
    assert rest == (Position(0, len(expected), len(content)), 0, [])


@given(st.lists(st.text().filter(lambda text: "\n" not in text and not text.endswith("\r"))))
def test_any_texts_round_trip(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    content = b"\xef\xbb\xbf" + b"".join(text.encode() + b"\n" for text in texts)
    (path := tmp_path_factory.getbasetemp() / "any.txt").write_bytes(content)
    assert [row.text for row in rows_of(path)] == texts


def test_the_text_of_a_text_file_has_the_name_of_the_field(tmp_path: Path) -> None:
    (path := tmp_path / "a.txt").write_bytes(b"a\n")
    fields = {
        "field": rows_of(path, field="body")[0].fields,
        "carried": rows_of(path, field="body", columns=["id", "body"])[0].fields,
        "not carried": rows_of(path, columns=["id"])[0].fields,
    }
    assert fields == {"field": {"body": "a"}, "carried": {"body": "a"}, "not carried": {}}


def test_jsonl_rows_keep_their_object(tmp_path: Path) -> None:
    objects = [
        '{"id": 7, "text": "a", "score": 1.50, "tags": ["x", {"y": null}]}',
        ' {"text":"\\u4f60\\ud83d\\ude00","big":123456789012345678901234567890} ',
        '{"text": "", "title": "两\u2028行"}',
    ]
    (path := tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(objects).encode())
    rows = rows_of(path)
    assert [row.text for row in rows] == ["a", "你😀", ""]
    assert [row.line for row in rows] == [line.strip() for line in objects]
    assert [row.fields for row in rows] == [json.loads(line) for line in objects]
    assert [row.where for row in rows] == [f"{path}, line {number}" for number in (1, 2, 3)]
    assert sum(row.size for row in rows) == path.stat().st_size


def test_blank_lines_of_jsonl_are_skipped_and_counted(tmp_path: Path) -> None:
    content = b'\n{"text": "a"}\n\n \t\r\n{"text": "b"}\n\n'
    (path := tmp_path / "a.jsonl").write_bytes(content)
    taken, rest = read_all(feed_of(path))
    assert [(entry.row.text, entry.row.number, entry.skipped) for entry in taken] == [
        ("a", 1, 1),
        ("b", 4, 2),
    ]
    assert [entry.row.size for entry in taken] == [15, 19]  # blank lines before included
    assert rest == (Position(0, 6, len(content)), 1, [])
    (blank := tmp_path / "blank.jsonl").write_bytes(b"\n\n")
    assert read_all(feed_of(blank)) == ([], (Position(0, 2, 2), 2, []))


def test_another_field_and_chosen_columns(tmp_path: Path) -> None:
    (path := tmp_path / "a.jsonl").write_bytes(b'{"text": 1, "body": "a", "id": null}\n')
    (row,) = rows_of(path, field="body")
    assert (row.text, row.fields) == ("a", {"text": 1, "body": "a", "id": None})
    (row,) = rows_of(path, field="body", columns=["id", "no", "text"])
    assert (row.text, row.fields) == ("a", {"id": None, "text": 1})
    (row,) = rows_of(path, field="body", columns=())
    assert (row.text, row.fields) == ("a", {})


def test_nulls_by_policy(tmp_path: Path) -> None:
    content = b'{"text": "a"}\n{"text": null, "b": 1}\n{"text": "c"}\n{"text": null}\n'
    (path := tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"a.jsonl, line 2: the field 'text' must be a string, not null \(--on-nu"
    ):
        rows_of(path)
    rows = rows_of(path, on_null="empty")
    assert [row.text for row in rows] == ["a", "", "c", ""]
    assert rows[1].fields == {"text": None, "b": 1}
    taken, rest = read_all(feed_of(path, on_null="skip"))
    assert [(entry.row.text, entry.skipped) for entry in taken] == [("a", 0), ("c", 1)]
    assert rest.skipped == 1


GOOD = b'{"text": "a"}\n'
BROKEN = {
    "not json": (b"{'text': 1}", "not JSON: .* at column 2"),
    "cut": (b'{"text": "a"', "not JSON: .* at column 13"),
    "two objects": (b'{"text": "a"} {}', "not JSON: .* at column 15"),
    "array": (b'["a"]', "must be a JSON object, not an array"),
    "string": (b'"a"', "must be a JSON object, not a string"),
    "number": (b"1e3", "must be a JSON object, not a number"),
    "null": (b"null", "must be a JSON object, not null"),
    "no field": (b'{"title": "a", "id": 1}', "no field 'text' among 'title', 'id':.*--field"),
    "no field at all": (b"{}", "no field 'text' among none:"),
    "many fields": (
        json.dumps({f"f{i}": 0 for i in range(11)}).encode(),
        r"among 'f0', .*'f9', \.\.\.:",
    ),
    "field a number": (b'{"text": 1}', "'text' must be a string, not a number"),
    "field true": (b'{"text": true}', "'text' must be a string, not true or false"),
    "field null": (b'{"text": null}', "'text' must be a string, not null"),
    "field an object": (b'{"text": {}}', "'text' must be a string, not an object"),
    "half a surrogate pair": (b'{"text": "\\ud83d"}', "half of a surrogate pair"),
    "half of one elsewhere": (b'{"text": "a", "b": ["\\uDE00"]}', "half of a surrogate pair"),
    "too deep": (b'{"text": ' + b"[" * 100_000, "nested too deeply"),
    "too many digits": (
        b'{"text": "a", "b": ' + b"7" * 5000 + b"}",
        "an integer has more than 4",
    ),
    "beyond float64": (b'{"text": "a", "b": [-1.5e400]}', "the number -1.5e400 is beyond float64$"),
    "a blank that is none in JSON": ("\xa0\x0c".encode(), "not JSON: .* at column 1"),
    "latin-1": ('{"text": "é"}'.encode("latin-1"), r"byte 11 \(0xe9\) is not UTF-8: convert the"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_invalid_line_is_named_or_rejected(case: str, tmp_path: Path) -> None:
    line, message = BROKEN[case]
    (path := tmp_path / "a.jsonl").write_bytes(GOOD + line + b"\n" + GOOD)
    feed = feed_of(path)
    assert next(feed) == "a"
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}, line 2: .*{message}"):
        next(feed)
    assert not feed.finished
    (reject,) = rejects_of(path)
    assert (reject.name, reject.number) == (str(path), 1)
    assert re.search(message, reject.problem)
    assert reject.content == line.decode(errors="replace")
    assert [row.number for row in rows_of(path, on_error="skip")] == [0, 2]


def test_a_line_of_text_that_is_not_utf8(tmp_path: Path) -> None:
    (path := tmp_path / "a.txt").write_bytes(b"a\n\nb\xffc\nd")
    feed = feed_of(path)
    assert [next(feed), next(feed)] == ["a", ""]
    with pytest.raises(ValueError, match=r"a.txt, line 3: byte 2 \(0xff\) is not UTF-8"):
        next(feed)
    taken, _ = read_all(feed_of(path, on_error="skip"))
    assert [entry.row.text for entry in taken] == ["a", "", "d"]
    assert [reject.content for reject in taken[2].rejects] == ["b\ufffdc"]


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MOST_BYTES", 10)
    (path := tmp_path / "a.txt").write_bytes(b"12345678\n1234567890\n")
    feed = feed_of(path, on_error="skip")
    assert next(feed) == "12345678"
    with pytest.raises(ValueError, match=r"a.txt, line 2 has more than 10 bytes"):
        next(feed)


def test_a_document_is_one_text(tmp_path: Path) -> None:
    (path := tmp_path / "a.md").write_bytes("\ufeff# Title\r\n\nwörds\n".encode())
    (empty := tmp_path / "empty.md").write_bytes(b"")
    taken, rest = read_all(feed_of(path, empty, form="document"))
    first, second = (entry.row for entry in taken)
    assert (first.text, first.number) == ("# Title\r\n\nwörds\n", 0)
    assert first.fields == {"text": first.text}
    assert (first.size, first.after) == (path.stat().st_size, Position(0, 1, None))
    assert (second.text, second.after, rest.after) == ("", Position(1, 1, None), second.after)
    resumed = feed_of(path, empty, form="document", start=first.after)
    assert list(resumed) == [""]


def test_a_document_that_is_not_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path := tmp_path / "a.md").write_bytes(b"ab\xe9")
    with pytest.raises(ValueError, match=r"a.md, row 1: byte 3 \(0xe9\) is not UTF-8"):
        rows_of(path, form="document")
    assert [reject.content for reject in rejects_of(path, form="document")] == ["ab\ufffd"]
    monkeypatch.setattr(lines, "MOST_BYTES", 3)
    with pytest.raises(ValueError, match=r"a.md has more than 3 bytes, too many for one text"):
        rows_of(path, form="document")
