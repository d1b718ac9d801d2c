"""Files of lines -> rows: plain text and JSONL; and whole files as one text each.

Where in the flow: `open_rows` calls these readers with an open file.
Source: jsonlines.org (UTF-8, one JSON value per line, lines end with a line feed).
"""

import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

from nomicbert.bulk.inputs.decoding import decode
from nomicbert.bulk.inputs.formats import BOM
from nomicbert.bulk.inputs.opening import MOST_BYTES, Opened
from nomicbert.bulk.inputs.rows import Entry, Position, Reject, Row, Span
from nomicbert.bulk.inputs.selection import Selection, kind_of, not_utf8

# A line -> its text (None: skip), the carried fields, and the object as it was read.
Parse = Callable[[str], tuple[str | None, dict[str, Any], str | None]]


def text_parser(selection: Selection) -> Parse:
    """Every line is a text, also the blank one; it is carried under the text field's name."""
    field = selection.field
    if selection.columns is None or field in selection.columns:
        return lambda line: (line, {field: line}, None)
    return lambda line: (line, {}, None)


def jsonl_parser(selection: Selection) -> Parse:
    """Every line is an object; blank lines are skipped."""
    text, carried = selection.text, selection.carried

    def parse(line: str) -> tuple[str | None, dict[str, Any], str | None]:
        line = line.strip(" \t\r\n")
        if not line:
            return None, {}, None
        fields = parse_object(line)
        return text(fields), carried(fields), line

    return parse


def parse_object(line: str) -> dict[str, Any]:
    """A JSON object.

    Raises: ValueError: it is none, or holds half of a surrogate pair or a number out of range.
    """
    found = decode(line)
    if "\\u" in line:  # only an escape can produce a lone surrogate
        try:
            json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError("an escape is half of a surrogate pair, not valid Unicode") from error
    if not isinstance(found, dict):
        raise ValueError(f"the line must be a JSON object, not {kind_of(found)}")
    return found


def read_lines(opened: Opened, span: Span, unit: int, parse: Parse) -> Iterator[Entry]:
    """The rows of a file of lines.

    Args:
        opened: the file, at its start.
        span: the rows to read.
        unit: index of the span, for positions.
        parse: reads a line.

    Yields: the rows, those that cannot be used, and the position behind them.
    Raises: ValueError: a line without end. OSError: reading failed.
    """
    name, offsets, number = opened.name, opened.offsets, span.first
    lines = iter(partial(opened.file.readline, MOST_BYTES), b"")
    if offsets and span.offset is not None:
        offset = opened.file.seek(span.offset)
    else:
        offset = sum(map(len, islice(lines, span.first)))
    counted = int(offset * opened.ratio)  # bytes of the input up to the row before
    for raw in lines if span.stop is None else islice(lines, max(0, span.stop - number)):
        offset += len(raw)
        if len(raw) == MOST_BYTES:
            raise ValueError(f"{name}, line {number + 1} has more than {MOST_BYTES:,} bytes")
        if not number:
            raw = raw.removeprefix(BOM)
            if not raw:
                break  # the file holds nothing else
        content = raw
        if raw.endswith(b"\n"):
            content = raw[:-1].removesuffix(b"\r")
        try:
            text, fields, line = parse(content.decode())
        except UnicodeDecodeError as error:
            yield Reject(name, number, not_utf8(content, error), content.decode(errors="replace"))
        except ValueError as error:
            yield Reject(name, number, str(error), content.decode())
        else:
            if text is None:
                yield None
            else:
                after = Position(unit, number + 1, offset if offsets else None)
                size = max(0, int(offset * opened.ratio) - counted)
                counted += size
                yield Row(name, "line", number, text, fields, line, size, after)
        number += 1
    yield Position(unit, number, offset if offsets else None)


def read_document(opened: Opened, span: Span, unit: int, selection: Selection) -> Iterator[Entry]:
    """The only row of a file that is one text; arguments, yields and errors as in `read_lines`."""
    name, after = opened.name, Position(unit, 1, None)
    if not span.first and span.stop != 0:
        content = opened.file.read(MOST_BYTES)
        if len(content) == MOST_BYTES:
            raise ValueError(f"{name} has more than {MOST_BYTES:,} bytes, too many for one text")
        size = int(len(content) * opened.ratio)
        content = content.removeprefix(BOM)
        try:
            text, fields, _ = text_parser(selection)(content.decode())
        except UnicodeDecodeError as error:
            yield Reject(name, 0, not_utf8(content, error), content.decode(errors="replace"))
        else:
            assert text is not None
            yield Row(name, "row", 0, text, fields, None, size, after)
    yield after
