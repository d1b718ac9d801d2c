"""The formats of inputs: how a name or the first bytes tell them.

Where in the flow: `sources` asks here for the format of every file it finds.
Source: RFC 1952 (gzip), RFC 8878 (zstd), the formats of Apache Parquet and Arrow (magic numbers);
    jsonlines.org; RFC 4180 (CSV).
"""

import codecs
import os
import re
from enum import Enum
from typing import Literal

Compression = Literal["gzip", "zstd"]


class InputFormat(str, Enum):
    """Values of --input-format."""

    text = "text"
    jsonl = "jsonl"
    csv = "csv"
    tsv = "tsv"
    json = "json"
    parquet = "parquet"
    arrow = "arrow"
    document = "document"
    passages = "passages"


SUFFIXES = {
    ".txt": InputFormat.text,
    ".text": InputFormat.text,
    ".md": InputFormat.text,
    ".markdown": InputFormat.text,
    ".jsonl": InputFormat.jsonl,
    ".ndjson": InputFormat.jsonl,
    ".csv": InputFormat.csv,
    ".tsv": InputFormat.tsv,
    ".json": InputFormat.json,
    ".parquet": InputFormat.parquet,
    ".arrow": InputFormat.arrow,
    ".feather": InputFormat.arrow,
}
COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd"}
# Formats whose rows are lines.
OF_LINES = {InputFormat.text, InputFormat.jsonl}
# Formats of Apache Arrow: read by pyarrow, columns compressed one by one.
OF_ARROW = {InputFormat.parquet, InputFormat.arrow}
DELIMITERS = {InputFormat.csv: ",", InputFormat.tsv: "\t"}
# Bytes at the start of a file that recognition looks at: more than a block of zstd, whose 128 KiB
# yield nothing before they are complete.
HEAD = 1 << 18
# An Arrow stream begins with the length of its schema instead, and has a name.
IPC_FILE = b"ARROW1"
MAGIC = {b"PAR1": InputFormat.parquet, IPC_FILE: InputFormat.arrow}
COMPRESSION_MAGIC: dict[bytes, Compression] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
BOM = codecs.BOM_UTF8
# An object or an array of objects, as far as the first characters tell.
OBJECT = re.compile(rb"\s*\{\s*[\"}]")
OBJECTS = re.compile(rb"\s*\[\s*\{")
# Beginnings that may still become an object or an array of objects.
UNDECIDED = re.compile(rb"[{[]?\s*")
# Characters that text seldom holds, unlike tab, line feed, form feed, carriage return and escape;
# NUL is in tar archives and UTF-16.
CONTROL = re.compile(rb"[\x01-\x08\x0e-\x1a\x1c-\x1f]")


def format_of_name(name: str) -> tuple[InputFormat | None, Compression | None]:
    """The format and the compression that a name's suffixes tell; None where they do not."""
    stem, suffix = os.path.splitext(name.lower())
    compression = COMPRESSIONS.get(suffix)
    if compression is not None:
        suffix = os.path.splitext(stem)[1]
    return SUFFIXES.get(suffix), compression


def compression_of_content(head: bytes) -> Compression | None:
    """The compression of a file that begins with `head`."""
    return next((kind for magic, kind in COMPRESSION_MAGIC.items() if head.startswith(magic)), None)


def format_of_content(head: bytes) -> InputFormat:
    """The format of a file.

    Args:
        head: its first bytes, up to `HEAD` of them, decompressed.

    Raises: ValueError: it is not text and no known format; the message continues the file's name.
    """
    for magic, form in MAGIC.items():
        if head.startswith(magic):
            return form
    refuse_utf16(head)
    if b"\0" in head or (CONTROL.search(head) and not _is_utf8(head)):
        raise ValueError(
            "is a binary file of no known format, or UTF-16: leave it out, convert it to UTF-8, or "
            "name its format with --input-format"
        )
    head = head.removeprefix(BOM)
    if OBJECT.match(head):
        first, newline, _ = head.lstrip().partition(b"\n")
        # an object that goes on in the next line was printed with indents
        return (
            InputFormat.json if newline and not first.rstrip().endswith(b"}") else InputFormat.jsonl
        )
    return InputFormat.json if OBJECTS.match(head) else InputFormat.text


def refuse_utf16(head: bytes) -> None:
    """Raise ValueError for a byte order mark of UTF-16; the message continues the file's name."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("is UTF-16: convert it to UTF-8 first")


def refuse_other_content(head: bytes) -> None:
    """Look at the first bytes of a file of text, whatever its name says.

    Raises: ValueError: they are UTF-16, or compressed; the message continues the file's name.
    """
    refuse_utf16(head)
    if compression := compression_of_content(head):
        suffix = next(suffix for suffix, kind in COMPRESSIONS.items() if kind == compression)
        raise ValueError(f"is compressed with {compression}: add {suffix} to its name")


def is_decided(head: bytes) -> bool:
    """Whether the first bytes of an uncompressed file tell its format, whatever follows.

    Its first line that is not blank does, and a magic number.
    """
    if head.startswith(tuple(MAGIC)):
        return True
    begin = head.removeprefix(BOM).lstrip()
    known = b"\n" in begin and UNDECIDED.fullmatch(begin) is None
    return known and compression_of_content(head) is None


def _is_utf8(head: bytes) -> bool:
    """Whether bytes are UTF-8; the last character may be cut."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return True
