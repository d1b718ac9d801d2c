"""JSON arrays and concatenated objects, read in a window."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nomicbert.bulk.inputs import json_rows
from nomicbert.bulk.inputs.rows import Position
from tests.support.bulk_inputs import feed_of, read_all, rejects_of, rows_of


def path_of(folder: Path, content: bytes) -> Path:
    (path := folder / "a.json").write_bytes(content)
    return path


FILES = {
    "nothing": (b"", []),
    "byte order mark and nothing": (b"\xef\xbb\xbf", []),
    "blanks": (b" \r\n\t ", []),
    "empty array": (b" [ ] \n", []),
    "array": (b'[{"text": "a"}, {"text": "b"}]', ["a", "b"]),
    "byte order mark": (b'\xef\xbb\xbf[{"text": "a"}]', ["a"]),
    "array in lines": (
        b'[\r\n  {\r\n    "text": "a"\r\n  }\r\n  ,{"text": "b"}\r\n]\r\n',
        ["a", "b"],
    ),
    "one object": (b'{"text": "a"}', ["a"]),
    "objects": (b'{"text": "a"}{"text": "b"}\n\n {"text":\n"c"}\n', ["a", "b", "c"]),
    "characters": ('[{"text": "[{ä\\"\\ud83d\\ude00你\\\\"}]'.encode(), ['[{ä"😀你\\']),
}


@pytest.mark.parametrize("chunk", [1, 7, 1 << 18])
@pytest.mark.parametrize("case", FILES)
def test_files(case: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "CHUNK", chunk)
    content, expected = FILES[case]
    taken, rest = read_all(feed_of(path_of(tmp_path, content)))
    assert [entry.row.text for entry in taken] == expected
    assert rest == (Position(0, len(expected), None), 0, [])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.lists(st.fixed_dictionaries({"text": st.text(), "more": VALUES}), max_size=5),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, 1]),
    st.integers(1, 40),
)
def test_any_objects_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    objects: list[dict[str, Any]],
    array: bool,
    ascii_only: bool,
    indent: int | None,
    chunk: int,
) -> None:
    written = [json.dumps(found, ensure_ascii=ascii_only, indent=indent) for found in objects]
    content = f"[{','.join(written)}]" if array else "".join(written)
    path = path_of(tmp_path_factory.getbasetemp(), content.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows, "CHUNK", chunk)
        rows = rows_of(path)
    assert [row.fields for row in rows] == objects
    assert [row.number for row in rows] == list(range(len(objects)))


ELEMENTS = {
    "number": (b"12", "it must be a JSON object, not a number"),
    "number at the end": (b"-1.5e3", "it must be a JSON object, not a number"),
    "string": (b'"a"', "it must be a JSON object, not a string"),
    "array": (b"[{}]", "it must be a JSON object, not an array"),
    "null": (b"null", "it must be a JSON object, not null"),
    "no field": (b'{"title": 1}', "there is no field 'text' among 'title': .*--field"),
    "field null": (b'{"text": null}', "the field 'text' must be a string, not null"),
    "half a surrogate pair": (b'{"text": "\\ud83d"}', "half of a surrogate pair"),
    "too many digits": (
        b'{"text": "a", "b": ' + b"7" * 5000 + b"}",
        "an integer has more than 4",
    ),
    "beyond float64": (b'{"text": "a", "b": [-1.5e400]}', "the number -1.5e400 is beyond float64$"),
    "latin-1": (b'{"text": "a\xe9"}', r"byte 12 \(0xe9\) is not UTF-8"),
    "latin-1 elsewhere": ('{"ä": "'.encode() + b'\xff"}', r"byte 9 \(0xff\) is not UTF-8"),
}


@pytest.mark.parametrize("chunk", [1, 1 << 18])
@pytest.mark.parametrize("case", ELEMENTS)
def test_an_element_that_cannot_be_used_is_named_or_rejected(
    case: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_rows, "CHUNK", chunk)
    element, message = ELEMENTS[case]
    path = path_of(tmp_path, b'[{"text": "a"}, ' + element + b', {"text": "b"}]')
    feed = feed_of(path)
    assert next(feed) == "a"
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}, row 2: .*{message}"):
        next(feed)
    (reject,) = rejects_of(path)
    assert (reject.number, reject.content) == (1, element.decode(errors="replace"))
    assert [row.number for row in rows_of(path, on_error="skip")] == [0, 2]


FATAL = {
    "syntax": (b'[{"text": "a"}, {text: 1}]', "row 2: not JSON: Expecting property name.* at "
               "character 18 of the file"),
    "no comma": (b'[{"text": "a"} {"text": "b"}]', "row 1: not JSON: Expecting ',' or ']' at "
                 "character 16 of the file"),
    "comma at the end": (b'[{"text": "a"},]', "row 2: not JSON: .* at character 1[56] of the file"),
    "cut in an element": (b'[{"text": "a"}, {"text": "b', "row 2: not JSON: Unterminated string "
                          "starting at at character 26 of the file"),
    "cut between elements": (b'[{"text": "a"},', " is cut short: its array does not end$"),
    "cut behind an element": (b'[{"text": "a"}', " is cut short: its array does not end$"),
    "cut object": (b'{"text": "a"}\n{"text": ', "row 2: not JSON: Expecting value at character 2"),
    "more behind the array": (b'[{"text": "a"}]\n{}', "row 2: not JSON: Extra data at char"),
    "a raw newline": (b'[{"text": "a"}, {"text": "b\n"}]', "row 2: not JSON: Invalid control char"),
    "bytes between elements": (b'[{"text": "a"}, \xff{}]', "row 2: not JSON: Expecting value"),
    "too deep": (b'[{"text": "a"}, {"b": ' + b"[" * 100_000, "row 2: the object is nested too "),
}  # fmt: skip


@pytest.mark.parametrize("chunk", [1, 1 << 18])
@pytest.mark.parametrize("case", FATAL)
def test_rows_behind_an_error_of_syntax_cannot_be_found(
    case: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, message = FATAL[case]
    if chunk == 1 and len(content) > 1000:
        chunk = 1000
    monkeypatch.setattr(json_rows, "CHUNK", chunk)
    path = path_of(tmp_path, content)
    feed = feed_of(path, on_error="skip")
    assert next(feed) == "a"
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}.*{message}"):
        next(feed)
    assert not feed.finished


def test_an_element_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "CHUNK", 8)
    monkeypatch.setattr(json_rows, "MOST_BYTES", 30)
    path = path_of(tmp_path, b'[{"text": "a"}, {"text": "' + b"b" * 100 + b'"}]')
    with pytest.raises(ValueError, match=r"a.json, row 2 has more than 30 characters"):
        rows_of(path, on_error="skip")


def test_a_number_that_the_window_cuts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first part alone may be beyond float64."""
    monkeypatch.setattr(json_rows, "CHUNK", 1)
    number = b"1" + b"0" * 400 + b".0e-390"
    (row,) = rows_of(path_of(tmp_path, b'[{"text": "a", "b": ' + number + b"}]"))
    assert row.fields == {"text": "a", "b": 1e10}


def test_sizes_add_up(tmp_path: Path) -> None:
    objects = [{"text": "ä" * number} for number in range(50)]
    content = json.dumps(objects, ensure_ascii=False).encode()
    path = path_of(tmp_path, content)
    rows = rows_of(path)
    assert sum(row.size for row in rows) == pytest.approx(len(content), abs=2)
    assert rows[40].size == pytest.approx(len("ä".encode() * 40) + 14, rel=0.1)
    rest = rows_of(path, start=rows[39].after)
    assert sum(row.size for row in rest) == pytest.approx(sum(r.size for r in rows[40:]), abs=2)


def test_syntax_errors_are_found_without_reading_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only an error at the end of the window may be the window's."""
    monkeypatch.setattr(json_rows, "MOST_BYTES", 100_000)
    monkeypatch.setattr(json_rows, "CHUNK", 1000)
    path = path_of(tmp_path, b'[{"text" "a"}, ' + b'{"text": "b"}, ' * 100_000 + b"{}]")
    with pytest.raises(ValueError, match="row 1: not JSON: Expecting ':' delimiter"):
        rows_of(path)
