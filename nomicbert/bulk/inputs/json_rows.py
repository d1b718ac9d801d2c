"""A JSON array of objects, or objects one after the other -> rows, in flat memory.

Where in the flow: `open_rows` calls this reader with an open file.
Source: RFC 8259. Python's decoder reads one value at a time from a window of the file, which grows
    only while a value does not end in it.
"""

import codecs
import json
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any, NoReturn

from nomicbert.bulk.inputs.decoding import DECODER, LENIENT, number_problem
from nomicbert.bulk.inputs.opening import MOST_BYTES, Opened
from nomicbert.bulk.inputs.rows import Entry, Position, Reject, Row, Span
from nomicbert.bulk.inputs.selection import Selection, kind_of

CHUNK = 1 << 18
# An error this close to the end of the window may come from there: the longest token that is no
# string, "-Infinity", and an escape are shorter.
NEAR_END = 16
SPACE = re.compile(r"[ \t\n\r]*")
# What bytes that are not UTF-8 become with "surrogateescape".
ESCAPED = re.compile("[\udc80-\udcff]")


class _Values:
    """Iterator over the values of a file.

    Attributes:
        number: of values before the current one.
        begin, end: where the current value is in the window.
    """

    def __init__(self, opened: Opened) -> None:
        self.number = self.begin = self.end = 0
        self._file, self._name = opened.file, opened.name
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self._number: str | None = None  # what is wrong with one in the current value
        self._window, self._is_utf8, self._complete = "", True, False
        # Characters before the window, and the bytes and characters read.
        self._before = self._bytes = self._characters = 0

    def __iter__(self) -> Iterator[Any]:
        self.number = -1
        array = self._next_character() == "["
        self.end += array
        while (character := self._next_character()) != ("]" if array else ""):
            if character and array and self.number >= 0:
                if character != ",":
                    self._fail("Expecting ',' or ']'", self.end)
                self.end += 1
                character = self._next_character()
            if not character:
                raise ValueError(f"{self._name} is cut short: its array does not end")
            self.number += 1
            yield self._value()
        self.end += array
        if self._next_character():
            self.number += 1
            self._fail("Extra data", self.end)

    def text(self) -> str:
        """The current value as it was read."""
        found = self._window[self.begin : self.end]
        return found.encode("utf-8", "surrogateescape").decode(errors="replace")

    def problem(self, value: Any) -> str | None:
        """Why the current value is no row, if so."""
        if not self._is_utf8 and (bad := ESCAPED.search(self._window, self.begin, self.end)):
            byte = len(self._window[self.begin : bad.start()].encode("utf-8", "surrogateescape"))
            return (
                f"byte {byte + 1} (0x{ord(bad[0]) - 0xDC00:02x}) is not UTF-8: convert the input "
                "first"
            )
        if self._number is not None:
            return self._number
        if not isinstance(value, dict):
            return f"it must be a JSON object, not {kind_of(value)}"
        if self._window.find("\\u", self.begin, self.end) >= 0:
            if not _can_be_encoded(json.dumps(value, ensure_ascii=False)):
                return "an escape is half of a surrogate pair, not valid Unicode"
        return None

    def bytes_before_end(self) -> float:
        """Bytes up to the end of the current value, about."""
        return (self._before + self.end) * self._bytes / max(1, self._characters)

    def _value(self) -> Any:
        while True:
            self.begin = self.end
            try:
                value, end = self._decoded()
            except json.JSONDecodeError as error:
                near = len(self._window) - error.pos < NEAR_END
                if self._complete or not (near or error.msg.startswith("Unterminated string")):
                    self._fail(error.msg, error.pos)
            except RecursionError as error:
                where = f"{self._name}, row {self.number + 1}"
                raise ValueError(f"{where}: the object is nested too deeply") from error
            else:
                if end < len(self._window) or self._complete:  # else a number may go on
                    self.end = end
                    return value
            self._grow()

    def _decoded(self) -> tuple[Any, int]:
        """The value at `begin` and its end; one with a number out of range is found too."""
        self._number = None
        try:
            return DECODER.raw_decode(self._window, self.begin)
        except json.JSONDecodeError:
            raise
        except ValueError as error:
            self._number = number_problem(error)
        return LENIENT.raw_decode(self._window, self.begin)

    def _next_character(self) -> str:
        """Move to the next character that is no space; "" at the end."""
        while True:
            match = SPACE.match(self._window, self.end)
            assert match is not None
            self.end = match.end()
            if self.end < len(self._window):
                return self._window[self.end]
            if self._complete:
                return ""
            self._grow()

    def _grow(self) -> None:
        """Drop the window up to `end` and append at least as much as is left of it."""
        left = self._window[self.end :]
        if len(left) > MOST_BYTES:
            raise ValueError(
                f"{self._name}, row {self.number + 1} has more than {MOST_BYTES:,} characters"
            )
        self._before += self.end
        raw = self._file.read(max(CHUNK, len(left)))
        self._complete = not raw
        read = self._decoder.decode(raw, self._complete)
        self._bytes += len(raw)
        self._characters += len(read)
        self._window, self.end = left + read, 0
        self._is_utf8 = _can_be_encoded(self._window)

    def _fail(self, problem: str, at: int) -> NoReturn:
        raise ValueError(
            f"{self._name}, row {self.number + 1}: not JSON: {problem} at character "
            f"{self._before + at + 1:,} of the file"
        )


def _can_be_encoded(text: str) -> bool:
    """Whether there are no lone surrogates in a text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_json(opened: Opened, span: Span, unit: int, selection: Selection) -> Iterator[Entry]:
    """The rows of a JSON file: the elements of its array, or the objects that it consists of.

    Args:
        opened: the file, at its start.
        span: the rows to read.
        unit: index of the span, for positions.
        selection: what is taken of each row.

    Yields: the rows, those that cannot be used, and the position behind them.
    Raises: ValueError: not JSON, or cut short: rows behind such a place cannot be found. OSError:
        reading failed.
    """
    name, number, counted = opened.name, 0, 0
    values = _Values(opened)
    for value in islice(values, span.stop):
        number += 1
        if number <= span.first:
            counted = int(values.bytes_before_end() * opened.ratio)
            continue
        try:
            if (problem := values.problem(value)) is not None:
                raise ValueError(problem)
            text = selection.text(value)
        except ValueError as error:
            yield Reject(name, number - 1, str(error), values.text())
            continue
        if text is None:
            yield None
            continue
        size = max(0, int(values.bytes_before_end() * opened.ratio) - counted)
        counted += size  # bytes of the input up to this row
        fields, after = selection.carried(value), Position(unit, number, None)
        yield Row(name, "row", number - 1, text, fields, None, size, after)
    yield Position(unit, number, None)
