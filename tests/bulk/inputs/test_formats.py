"""Formats by name and by content."""

from __future__ import annotations

import codecs

import pytest

from nomicbert.bulk.inputs.formats import (
    HEAD,
    compression_of_content,
    format_of_content,
    format_of_name,
)

NAMES = {
    "a.txt": ("text", None),
    "A.TXT": ("text", None),
    "a.jsonl": ("jsonl", None),
    "a.ndjson": ("jsonl", None),
    "a.csv": ("csv", None),
    "a.tsv": ("tsv", None),
    "a.json": ("json", None),
    "a.parquet": ("parquet", None),
    "a.arrow": ("arrow", None),
    "a.feather": ("arrow", None),
    "a.b/c.jsonl.gz": ("jsonl", "gzip"),
    "a.CSV.ZST": ("csv", "zstd"),
    "a.gz": (None, "gzip"),
    "a.zst": (None, "zstd"),
    "part-00000": (None, None),
    "a.md": ("text", None),
    "a.rst": (None, None),
    ".jsonl": (None, None),
    "a.jsonl.bz2": (None, None),
}


@pytest.mark.parametrize("name", NAMES)
def test_formats_by_name(name: str) -> None:
    form, compression = format_of_name(name)
    assert (form and form.value, compression) == NAMES[name]


CONTENTS = {
    "nothing": (b"", "text"),
    "words": (b"some words\n", "text"),
    "a bracket": (b"[1] a reference\n", "text"),
    "a brace": (b"{hello} world\n", "text"),
    "latin-1": ("é\n".encode("latin-1"), "text"),
    "escapes of a terminal": (b"\x1b[1mbold\x1b[0m \xe9\n", "text"),
    "object": (b'{"text": "a"}\n{"text"', "jsonl"),
    "object of a long line": (b'{"text": "' + b"a" * HEAD, "jsonl"),
    "object without fields": (b"{}\n", "jsonl"),
    "object behind blanks": (b'\n \n {"a": 1}\r\n', "jsonl"),
    "byte order mark": (b'\xef\xbb\xbf{"a": 1}\n', "jsonl"),
    "indented object": (b'{\n  "text": "a"\n}\n', "json"),
    "indented in its line": (b'{"text": "a",\r\n "b": 1}\n', "json"),
    "array": (b'[{"text": "a"}', "json"),
    "array in lines": (b' [\n  {\n"text"', "json"),
    "array of arrays": (b"[[1]]", "text"),
    "parquet": (b"PAR1\x15\x04", "parquet"),
    "arrow": (b"ARROW1\0\0\xff\xff", "arrow"),
    "control characters and a cut character": (b"\x01" + "ä".encode()[:1], "text"),
}


@pytest.mark.parametrize("case", CONTENTS)
def test_formats_by_content(case: str) -> None:
    head, expected = CONTENTS[case]
    assert format_of_content(head).value == expected


BINARY = {
    "png": (
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        "binary file of no known format, or UTF-16",
    ),
    "npy": (b"\x93NUMPY\x01\0v\0{'descr'", "binary file of no known format"),
    "zip": (b"PK\x03\x04\x14\0\0\0\x08\0\xff", "binary file of no known format"),
    "tar": (b"a.txt".ljust(100, b"\0") + b"0000644\0", "binary file of no known format, or UTF-16"),
    "utf-16 without a mark": ("text\n".encode("utf-16-le"), "or UTF-16: leave it out, convert it"),
    "utf-16": (codecs.BOM_UTF16_LE + "a\n".encode("utf-16-le"), "is UTF-16: convert it to UTF-8"),
    "utf-16 be": (codecs.BOM_UTF16_BE + "a\n".encode("utf-16-be"), "is UTF-16: convert"),
}


@pytest.mark.parametrize("case", BINARY)
def test_binary_files_are_refused(case: str) -> None:
    head, message = BINARY[case]
    with pytest.raises(ValueError, match=message):
        format_of_content(head)


def test_compressions_by_content() -> None:
    assert compression_of_content(b"\x1f\x8b\x08") == "gzip"
    assert compression_of_content(b"\x28\xb5\x2f\xfd\x04") == "zstd"
    assert compression_of_content(b"(\xb5") is None
    assert compression_of_content(b"") is None
