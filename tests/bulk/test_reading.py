"""Texts from files and pipes: line ends, required JSONL fields, length hints."""

import json
import operator
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nomicbert.bulk import reading
from nomicbert.bulk.reading import InputFormat, Reader, Record, choose_input_format, open_reader


def open_bytes(folder: Path, content: bytes, form: str = "text", field: str = "text") -> Reader:
    path = folder / "input"
    path.write_bytes(content)
    return open_reader(str(path), InputFormat(form), field)


def read_all(reader: Reader) -> list[Record]:
    texts = list(reader)
    records = [reader.take() for _ in texts]
    assert [record.text for record in records] == texts
    reader.close()
    return records


LINES = {
    "newline at the end": (b"a\nb\n", ["a", "b"]),
    "none at the end": (b"a\nb", ["a", "b"]),
    "blank lines": (b"\na\n\n\nb\n\n", ["", "a", "", "", "b", ""]),
    "crlf": (b"a\r\n\r\nb\r\n", ["a", "", "b"]),
    "crlf without its lf": (b"a\r\nb\r", ["a", "b"]),
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
def test_lines_of_a_text_file(case: str, tmp_path: Path) -> None:
    content, expected = LINES[case]
    records = read_all(open_bytes(tmp_path, content))
    assert [record.text for record in records] == expected
    assert [record.fields for record in records] == [
        {"id": row, "text": text} for row, text in enumerate(expected)
    ]
    assert [json.loads(record.source) for record in records] == [r.fields for r in records]


@given(st.lists(st.text().filter(lambda text: "\n" not in text and not text.endswith("\r"))))
def test_any_texts_round_trip(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    content = b"\xef\xbb\xbf" + b"".join(text.encode() + b"\n" for text in texts)
    folder = tmp_path_factory.getbasetemp()
    assert [record.text for record in read_all(open_bytes(folder, content))] == texts


def test_jsonl_records_keep_their_line(tmp_path: Path) -> None:
    lines = [
        '{"id": 7, "text": "a", "score": 1.50, "tags": ["x", {"y": null}]}',
        ' {"text":"\\u4f60\\ud83d\\ude00","big":123456789012345678901234567890} ',
        '{"text": "", "title": "两\u2028行"}',
    ]
    content = "\r\n".join(lines).encode()
    records = read_all(open_bytes(tmp_path, b"\xef\xbb\xbf" + content, "jsonl"))
    assert [record.text for record in records] == ["a", "你😀", ""]
    assert [record.source for record in records] == [line.strip() for line in lines]
    assert [record.fields for record in records] == [json.loads(line) for line in lines]
    assert [record.where.rpartition(", ")[2] for record in records] == [
        "line 1",
        "line 2",
        "line 3",
    ]


def test_another_field(tmp_path: Path) -> None:
    reader = open_bytes(tmp_path, b'{"text": 1, "body": "a"}\n', "jsonl", "body")
    (record,) = read_all(reader)
    assert record.text == "a"
    assert record.fields == {"text": 1, "body": "a"}


GOOD = b'{"text": "a"}\n'
BROKEN = {
    "not json": (b"{'text': 1}", "not JSON: .* at column 2"),
    "cut": (b'{"text": "a"', "not JSON: .* at column 13"),
    "two objects": (b'{"text": "a"} {}', "not JSON: .* at column 15"),
    "blank": (b"  \r", "the line is empty"),
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
    "embedded already": (b'{"text": "a", "embedding": []}', "the field 'embedding' is reserved"),
    "half a surrogate pair": (b'{"text": "\\ud83d"}', "half of a surrogate pair"),
    "half of one elsewhere": (b'{"text": "a", "b": ["\\uDE00"]}', "half of a surrogate pair"),
    "too deep": (b'{"text": ' + b"[" * 100_000, "nested too deeply"),
    "latin-1": ('{"text": "é"}'.encode("latin-1"), r"byte 11 \(0xe9\) is not UTF-8"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_error_names_the_invalid_line(case: str, tmp_path: Path) -> None:
    line, message = BROKEN[case]
    reader = open_bytes(tmp_path, GOOD + line + b"\n" + GOOD, "jsonl")
    assert next(reader) == "a"
    with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path))}/input, line 2: .*{message}"):
        next(reader)
    reader.close()


def test_error_names_the_line_that_is_not_utf8(tmp_path: Path) -> None:
    reader = open_bytes(tmp_path, b"a\n\nb\xffc\n")
    assert [next(reader), next(reader)] == ["a", ""]
    with pytest.raises(ValueError, match=r"input, line 3: byte 2 \(0xff\) is not UTF-8"):
        next(reader)
    reader.close()


def test_records_are_taken_in_order_while_reading(tmp_path: Path) -> None:
    reader = open_bytes(tmp_path, b"a\nb\nc\nd\n")
    assert [next(reader), next(reader)] == ["a", "b"]
    assert reader.take().text == "a"
    assert next(reader) == "c"
    assert [reader.take().text, reader.take().text] == ["b", "c"]
    assert next(reader) == "d"
    assert reader.take().fields == {"id": 3, "text": "d"}
    assert list(reader) == []
    reader.close()


def test_length_hint(tmp_path: Path) -> None:
    reader = open_bytes(tmp_path, b"four\n" * 100)
    assert operator.length_hint(reader, -1) == -1  # unknown before the first line
    for left in range(99, -1, -1):
        next(reader)
        assert operator.length_hint(reader, -1) == left
    assert list(reader) == []
    assert operator.length_hint(reader, -1) == 0
    reader.close()
    uneven = open_bytes(tmp_path, b"1\n" * 50 + b"123456789\n" * 50)  # 600 bytes
    for _ in range(60):
        next(uneven)
    assert operator.length_hint(uneven, -1) == 120  # 400 bytes left, 200 read for 60 lines
    uneven.close()


def test_length_hint_of_a_growing_file(tmp_path: Path) -> None:
    reader = open_bytes(tmp_path, b"a\n")
    with (tmp_path / "input").open("ab") as file:
        file.write(b"b\nc\n")
    assert list(reader) == ["a", "b", "c"]
    assert operator.length_hint(reader, -1) == 0
    reader.close()


def test_pipe_is_read_line_by_line(tmp_path: Path) -> None:
    path = str(tmp_path / "pipe")
    os.mkfifo(path)
    keep = os.open(path, os.O_RDWR)  # neither side blocks in open() then
    writer = os.open(path, os.O_WRONLY)
    reader = open_reader(path, InputFormat.text, "text")
    os.write(writer, b"a\nb")
    reader.check_first_line()  # does nothing: a pipe cannot be rewound
    assert next(reader) == "a"  # "b" may have more characters to come
    assert operator.length_hint(reader, -1) == -1
    os.write(writer, b"c\n")
    assert next(reader) == "bc"
    os.close(writer)
    os.close(keep)
    assert list(reader) == []
    reader.close()


def test_the_first_line_is_checked_and_read_again(tmp_path: Path) -> None:
    reader = open_bytes(tmp_path, b"\xef\xbb\xbf" + GOOD + b"{}\n", "jsonl")
    reader.check_first_line()
    assert next(reader) == "a"
    assert operator.length_hint(reader, -1) == 0  # 3 of 20 bytes left: less than an average line
    with pytest.raises(ValueError, match="line 2:"):
        next(reader)
    reader.close()
    wrong = open_bytes(tmp_path, GOOD, "jsonl", "body")
    with pytest.raises(ValueError, match="line 1: there is no field 'body'"):
        wrong.check_first_line()
    wrong.close()


@pytest.mark.parametrize(
    ("source", "given_format", "expected"),
    [
        ("a.txt", None, "text"),
        ("a", None, "text"),
        ("-", None, "text"),
        ("a.jsonl", None, "jsonl"),
        ("A.JSONL", None, "jsonl"),
        ("a.ndjson", None, "jsonl"),
        ("a.jsonl", InputFormat.text, "text"),
        ("-", InputFormat.jsonl, "jsonl"),
        ("a.json", InputFormat.jsonl, "jsonl"),
    ],
)
def test_formats_by_suffix(source: str, given_format: InputFormat | None, expected: str) -> None:
    assert choose_input_format(source, given_format) is InputFormat(expected)


@pytest.mark.parametrize("suffix", reading.OTHER_SUFFIXES)
def test_suffixes_of_other_formats(suffix: str) -> None:
    with pytest.raises(
        ValueError, match=rf"a\{suffix} looks like a \{suffix} file.*--input-format"
    ):
        choose_input_format(f"a{suffix}", None)


def test_inputs_that_cannot_be_opened(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ValueError, match=f"cannot read the input {path}: {reason}"):
            open_reader(str(path), InputFormat.text, "text")


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs a file that fails")
def test_a_failing_read_names_the_input() -> None:
    reader = open_reader("/proc/self/mem", InputFormat.text, "text")  # no memory at address 0
    with pytest.raises(OSError, match=r"^cannot read /proc/self/mem: Input/output error$"):
        next(reader)
    reader.close()
