"""Read texts from a file or standard input, line by line: plain text or JSONL.

Where in the flow: `nomicbert embed` passes a `Reader` to the embedder, which takes texts from it
window by window. The reader keeps the record of each text until its vector has been computed.
Source: jsonlines.org (UTF-8, one JSON value per line, lines end with a line feed).
"""

import json
import os
import stat
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import Any, BinaryIO

STDIN = "-"
# Name of the output field that holds the vector.
EMBEDDING = "embedding"
BOM = b"\xef\xbb\xbf"
# Suffixes of files that do not hold one text per line.
OTHER_SUFFIXES = (
    ".json", ".csv", ".tsv", ".parquet", ".npy", ".gz", ".bz2", ".xz", ".zst", ".zip",
)  # fmt: skip
# Number of field names that an error lists.
LISTED = 10
KINDS = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "true or false",
    int: "a number",
    float: "a number",
    type(None): "null",
}


class InputFormat(str, Enum):
    """Values of --input-format."""

    text = "text"
    jsonl = "jsonl"


@dataclass(frozen=True, slots=True)
class Record:
    """A line of the input.

    Attributes:
        where: input and line number (from 1), for messages.
        text: the text to embed.
        fields: all fields of the line, the text included.
        source: the fields as a JSON object; for a JSONL input the original line.
    """

    where: str
    text: str
    fields: dict[str, Any]
    source: str


# A line and the number of lines before it -> text, fields and source of its Record.
Parse = Callable[[str, int], tuple[str, dict[str, Any], str]]


def choose_input_format(source: str, given: InputFormat | None) -> InputFormat:
    """The format of an input: `given`, else by the suffix, else text.

    Raises: ValueError: the suffix belongs to another format.
    """
    if given is not None:
        return given
    suffix = os.path.splitext(source)[1].lower()
    if suffix in OTHER_SUFFIXES:
        raise ValueError(
            f"inputs are read line by line, and {source} looks like a {suffix} file: pass "
            "--input-format text or jsonl if its lines are texts"
        )
    return InputFormat.jsonl if suffix in (".jsonl", ".ndjson") else InputFormat.text


class Reader:
    """Iterator over the texts of an input; `take` returns their records, in the same order.

    Memory holds only the records that were read and not taken yet. The length hint is an estimate
    from the bytes read so far; a pipe has none.
    """

    def __init__(self, file: BinaryIO, name: str, parse: Parse) -> None:
        """`name` identifies the input in messages."""
        self.name = name
        self._file = file
        self._parse = parse
        self._start = self._size = None
        if stat.S_ISREG((found := os.fstat(file.fileno())).st_mode):
            self._start = file.tell()
            self._size = found.st_size - self._start
        self._lines = self._bytes = 0
        self._waiting: deque[Record] = deque()

    def __iter__(self) -> "Reader":
        return self

    def __next__(self) -> str:
        """The next text.

        Raises: ValueError: an invalid line; the message names it. OSError: reading failed.
        """
        record = self._read()
        if record is None:
            raise StopIteration
        self._waiting.append(record)
        return record.text

    def __length_hint__(self) -> Any:
        if self._size is None or not self._bytes:
            return NotImplemented
        return max(0, round((self._size - self._bytes) * self._lines / self._bytes))

    def take(self) -> Record:
        """Remove and return the record of the oldest text."""
        return self._waiting.popleft()

    def check_first_line(self) -> None:
        """Read one line and rewind, to find a wrong field or format early; skipped on a pipe."""
        if self._start is not None:
            self._read()
            self._file.seek(self._start)
            self._lines = self._bytes = 0

    def close(self) -> None:
        """Close the file; standard input stays open."""
        self._file.close()

    def _read(self) -> Record | None:
        try:
            raw = self._file.readline()
        except OSError as error:
            raise OSError(f"cannot read {self.name}: {error.strerror}") from error
        self._bytes += len(raw)
        if not self._lines:
            raw = raw.removeprefix(BOM)
        if not raw:
            return None
        line = raw.removesuffix(b"\n").removesuffix(b"\r")
        where = f"{self.name}, line {self._lines + 1}"
        try:
            record = Record(where, *self._parse(line.decode(), self._lines))
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{where}: byte {error.start + 1} (0x{line[error.start]:02x}) is not UTF-8: "
                "convert the input first"
            ) from error
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        self._lines += 1
        return record


def open_reader(source: str, form: InputFormat, field: str) -> Reader:
    """Open an input.

    Args:
        source: a path, or "-" for standard input.
        form: of its lines.
        field: name of the field that holds the text, for JSONL.

    Raises: ValueError: it does not exist, is a folder, or cannot be read.
    """
    name = "standard input" if source == STDIN else source
    try:
        file = open(0, "rb", closefd=False) if source == STDIN else open(source, "rb")
    except OSError as error:
        raise ValueError(f"cannot read the input {name}: {error.strerror}") from error
    return Reader(file, name, _parse_text if form is InputFormat.text else _json_parser(field))


def _parse_text(line: str, before: int) -> tuple[str, dict[str, Any], str]:
    fields = {"id": before, "text": line}
    return line, fields, json.dumps(fields, ensure_ascii=False)


def _json_parser(field: str) -> Parse:
    def parse(line: str, _before: int) -> tuple[str, dict[str, Any], str]:
        fields = _parse_object(line)
        if EMBEDDING in fields:
            raise ValueError(f"the field {EMBEDDING!r} is reserved for the vector: rename it")
        if field not in fields:
            raise ValueError(
                f"there is no field {field!r} among {_listed(fields)}: pass the name of the text's "
                "field with --field"
            )
        text = fields[field]
        if not isinstance(text, str):
            raise ValueError(f"the field {field!r} must be a string, not {KINDS[type(text)]}")
        return text, fields, line.strip()

    return parse


def _parse_object(line: str) -> dict[str, Any]:
    if not line.strip():
        raise ValueError("the line is empty: a JSONL input has an object on every line")
    try:
        found = json.loads(line)
        if "\\u" in line:  # only an escape can produce a lone surrogate
            json.dumps(found, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from error
    except UnicodeEncodeError as error:
        raise ValueError("an escape is half of a surrogate pair, not valid Unicode") from error
    except RecursionError as error:
        raise ValueError("the object is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError(f"the line must be a JSON object, not {KINDS[type(found)]}")
    return found


def _listed(fields: dict[str, Any]) -> str:
    names = ", ".join(map(repr, islice(fields, LISTED)))
    return (names + ", ..." * (len(fields) > LISTED)) or "none"
