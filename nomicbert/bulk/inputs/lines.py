"""Files of lines -> rows: plain text, JSONL, and whole files as one text each.

Where in the flow: `open_rows` calls these readers with an open file.
Source: jsonlines.org (UTF-8, one JSON value per line, lines end with a line feed).
"""

import json
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from nomicbert.bulk.inputs.formats import BOM
from nomicbert.bulk.inputs.opening import Opened
from nomicbert.bulk.inputs.rows import Position, Reject, Row, Span
from nomicbert.bulk.inputs.selection import KINDS, Selection

# What a reader yields: a row; None for a row without a text, which the policy skips; a row that
# cannot be used; at the end the position there.
Entry = Row | Reject | Position | None
# A line -> its text (None: skip), the carried fields, and the object as it was read.
Parse = Callable[[str], tuple[str | None, dict[str, Any], str | None]]


def text_parser(selection: Selection) -> Parse:
    """Every line is a text, also the blank one; it is carried under the text field's name."""
    field, columns = selection.field, selection.columns
    if columns is None or field in columns:
        return lambda line: (line, {field: line}, None)
    return lambda line: (line, {}, None)


def jsonl_parser(selection: Selection) -> Parse:
    """Every line is an object; blank lines are skipped."""

    def parse(line: str) -> tuple[str | None, dict[str, Any], str | None]:
        line = line.strip()
        if not line:
            return None, {}, None
        fields = parse_object(line)
        return selection.text(fields), selection.carried(fields), line

    return parse


def parse_object(line: str) -> dict[str, Any]:
    """A JSON object.

    Raises: ValueError: it is none, or holds half of a surrogate pair.
    """
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


def read_lines(opened: Opened, span: Span, unit: int, parse: Parse) -> Iterator[Entry]:
    """The rows of a file of lines.

    Args:
        opened: the file, at its start.
        span: the rows to read.
        unit: index of the span, for positions.
        parse: reads a line.

    Yields: the rows, those that cannot be used, and the position behind them.
    Raises: OSError: reading failed.
    """
    file, name, seekable = opened.file, opened.name, opened.seekable
    number, offset = span.first, 0
    if seekable and span.offset is not None:
        offset = span.offset
        file.seek(offset)
    else:
        offset = sum(map(len, islice(file, span.first)))
    stop = -1 if span.stop is None else span.stop
    lines = iter(file) if stop < 0 else islice(file, max(0, stop - number))
    begin = offset  # of the row and of the skipped ones before it
    for raw in lines:
        offset += len(raw)
        try:
            content = raw[:-1] if raw.endswith(b"\n") else raw
            if content.endswith(b"\r"):
                content = content[:-1]
            if not number:
                content = content.removeprefix(BOM)
                if not content and len(raw) == len(BOM):
                    break  # the file holds nothing else
            text, fields, line = parse(content.decode())
        except UnicodeDecodeError as error:
            yield Reject(name, number, not_utf8(content, error), content.decode(errors="replace"))
        except ValueError as error:
            yield Reject(name, number, str(error), content.decode())
        else:
            if text is None:
                yield None
            else:
                after = Position(unit, number + 1, offset if seekable else None)
                size = int((offset - begin) * opened.ratio)
                begin = offset
                yield Row(name, "line", number, text, fields, line, size, after)
        number += 1
    yield Position(unit, number, offset if seekable else None)


def not_utf8(content: bytes, error: UnicodeDecodeError) -> str:
    """What to say of bytes that cannot be decoded."""
    return (
        f"byte {error.start + 1} (0x{content[error.start]:02x}) is not UTF-8: convert the input "
        "first"
    )
