"""CSV and TSV."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from nomicbert.bulk.inputs import csv_rows
from nomicbert.bulk.inputs.rows import Position, Span
from tests.support.bulk_inputs import feed_of, read_all, rejects_of, rows_of


def path_of(folder: Path, content: bytes, name: str = "a.csv") -> Path:
    (path := folder / name).write_bytes(content)
    return path


FILES = {
    "plain": (b"id,text\n1,a\n2,b\n", ["a", "b"]),
    "no newline at the end": (b"id,text\n1,a\n2,b", ["a", "b"]),
    "crlf": (b"id,text\r\n1,a\r\n2,b\r\n", ["a", "b"]),
    "byte order mark": (b"\xef\xbb\xbftext,id\na,1\nb,2\n", ["a", "b"]),
    "quotes": (b'id,text\n1,"a ""b"", c"\n2,d"e\n', ['a "b", c', 'd"e']),
    "quoted newlines": (b'id,text\n1,"a\n\nb\r\nc"\n2,d\n', ["a\n\nb\r\nc", "d"]),
    "empty values": (b"id,text\n,\n,b\n", ["", "b"]),
    "header only": (b"id,text\n", []),
    "blanks": (b"id,text\n1, a \n", [" a "]),
}


@pytest.mark.parametrize("case", FILES)
def test_files(case: str, tmp_path: Path) -> None:
    content, expected = FILES[case]
    path = path_of(tmp_path, content)
    taken, rest = read_all(feed_of(path))
    assert [entry.row.text for entry in taken] == expected
    assert [entry.row.number for entry in taken] == list(range(len(expected)))
    assert rest == (Position(0, len(expected), len(content)), 0, [])


def test_values_stay_strings(tmp_path: Path) -> None:
    path = path_of(tmp_path, b"id,text,x y\n01,a,1.50\n,b,null\n")
    first, second = rows_of(path)
    assert first.fields == {"id": "01", "text": "a", "x y": "1.50"}
    assert second.fields == {"id": "", "text": "b", "x y": "null"}
    assert (first.where, second.line) == (f"{path}, row 1", None)
    (row, _) = rows_of(path, field="x y", columns=["id", "no"])
    assert (row.text, row.fields) == ("1.50", {"id": "01"})


def test_tsv(tmp_path: Path) -> None:
    path = path_of(tmp_path, b'id\ttext\n1\ta, b\n2\t"c\td\ne"\n', "a.tsv")
    assert [row.text for row in rows_of(path)] == ["a, b", "c\td\ne"]


def test_blank_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    path = path_of(tmp_path, b"\n\r\ntext,id\n\na,1\n\n\nb,2\n\n")
    taken, rest = read_all(feed_of(path))
    assert [(entry.row.text, entry.row.number, entry.skipped) for entry in taken] == [
        ("a", 1, 1),
        ("b", 4, 2),
    ]
    assert (rest.skipped, rest.after.row) == (1, 6)
    assert sum(entry.row.size for entry in taken) == len(b"\na,1\n\n\nb,2\n")


BROKEN = {
    "too few": (b"2\n", "it has 1 values, but the header names 2 columns", "2\n"),
    "too many": (b"2,b,c\n", "it has 3 values, but the header names 2 columns", "2,b,c\n"),
    "behind a quote": (b'2,"b"c\n', "not CSV: ',' expected after '\"'", '2,"b"c\n'),
    "not utf-8": (b'2,"b\nx\xe9"\n', r"byte 2 \(0xe9\) is not UTF-8: convert", '2,"b\nx\ufffd"\n'),
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_invalid_record_is_named_or_rejected(case: str, tmp_path: Path) -> None:
    record, message, content = BROKEN[case]
    path = path_of(tmp_path, b'id,text\n1,"a\nb"\n' + record + b"3,c\n")
    feed = feed_of(path)
    assert next(feed) == "a\nb"
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}, row 2: {message}"):
        next(feed)
    (reject,) = rejects_of(path)
    assert (reject.number, reject.content) == (1, content)
    assert re.match(message, reject.problem)
    assert [(row.text, row.number) for row in rows_of(path, on_error="skip")] == [
        ("a\nb", 0),
        ("c", 2),
    ]


def test_a_quote_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = path_of(tmp_path, b'id,text\n1,a\n2,"b\n3,c\n')
    (reject,) = rejects_of(path)
    assert (reject.problem, reject.content) == ("not CSV: unexpected end of data", '2,"b\n3,c\n')
    monkeypatch.setattr(csv_rows, "MOST_BYTES", 9)
    feed = feed_of(path, on_error="skip")
    assert next(feed) == "a"  # the limit is that of a row
    with pytest.raises(ValueError, match=r"a.csv: a row has more than 9 bytes: is a quote missing"):
        next(feed)


HEADERS = {
    "none": (b"", "a.csv is empty: its first line must name the columns"),
    "blank": (b"\n\n", "a.csv is empty"),
    "twice": (b"a,text,a\n1,2,3\n", "a.csv has two columns 'a': rename one"),
    "no text": (b"id,title\n1,a\n", "a.csv has no column 'text' among 'id', 'title': .*--field"),
    "not utf-8": (b"id,t\xe9xt\n", r"a.csv, header: byte 5 \(0xe9\) is not UTF-8"),
    "broken": (b'id,"te"xt\n', "a.csv, header: not CSV"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers_that_are_refused_whatever_on_error_says(case: str, tmp_path: Path) -> None:
    content, message = HEADERS[case]
    path = path_of(tmp_path, content)
    with pytest.raises(ValueError, match=message):
        feed_of(path, on_error="skip").check_first_rows()
    with pytest.raises(ValueError, match=message):
        rows_of(path, on_error="skip")


def test_long_values(tmp_path: Path) -> None:
    csv.field_size_limit(131_072)  # Python's default, which the tests before may have raised
    text = "x" * 131_073
    assert [row.text for row in rows_of(path_of(tmp_path, f"text\n{text}\n".encode()))] == [text]


def test_reading_goes_on_at_an_offset(tmp_path: Path) -> None:
    """The rows before are not read: they could not be."""
    path = path_of(tmp_path, b'text,id\n"a\nb",1\nc,2\n"d\n",3\n')
    first, second, third = rows_of(path)
    assert [first.after, second.after] == [Position(0, 1, 16), Position(0, 2, 20)]
    broken = path.read_bytes().replace(b'"a\nb",1\nc,2', b'"a"bbbbbbbb')
    path.write_bytes(broken)
    (row,) = rows_of(path, start=second.after)
    assert row == third
    (row,) = rows_of(path, spans=[Span(0, 2, 20, 3)])
    assert (row.text, row.number) == ("d\n", 2)
