"""The formats of inputs: how a name or the first bytes tell them.

Where in the flow: `sources` asks here for the format of every file it finds.
Source: RFC 1952 (gzip), RFC 8878 (zstd), the formats of Apache Parquet and Arrow (magic numbers);
    jsonlines.org.
"""

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


SUFFIXES = {
    ".txt": InputFormat.text,
    ".text": InputFormat.text,
    ".jsonl": InputFormat.jsonl,
    ".ndjson": InputFormat.jsonl,
    ".csv": InputFormat.csv,
    ".tsv": InputFormat.tsv,
    ".json": InputFormat.json,
    ".parquet": InputFormat.parquet,
    ".arrow": InputFormat.arrow,
    ".arrows": InputFormat.arrow,
    ".feather": InputFormat.arrow,
}
COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd"}
# Formats that compress their own columns, and need random access.
OWN_COMPRESSION = {InputFormat.parquet, InputFormat.arrow}
# Formats whose rows are lines.
OF_LINES = {InputFormat.text, InputFormat.jsonl}
# Bytes at the start of a file that recognition looks at.
HEAD = 65_536
MAGIC = {b"PAR1": InputFormat.parquet, b"ARROW1": InputFormat.arrow}
COMPRESSION_MAGIC: dict[bytes, Compression] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
BOM = b"\xef\xbb\xbf"
OBJECT = re.compile(rb"\s*\{\s*[\"}]")
ARRAY_OF_OBJECTS = re.compile(rb"\s*\[\s*\{")


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
    """The format of a file whose first bytes are `head`, up to `HEAD` of them.

    Raises: ValueError: it is not text and no known format.
    """
    for magic, form in MAGIC.items():
        if head.startswith(magic):
            return form
    head = head.removeprefix(BOM)
    if OBJECT.match(head):
        first, newline, _ = head.lstrip().partition(b"\n")
        # an object that goes on in the next line was printed with indents
        whole = not newline or first.rstrip().endswith(b"}")
        return InputFormat.jsonl if whole else InputFormat.json
    return InputFormat.json if ARRAY_OF_OBJECTS.match(head) else InputFormat.text
