"""Files of Markdown or plain text -> rows: a passage each, with the line it begins at.

Where in the flow: `open_rows` calls this reader with an open file; `markdown` cuts the passages.
"""

import codecs
from collections.abc import Iterator

from nomicbert.bulk.inputs.formats import BOM
from nomicbert.bulk.inputs.markdown import Line, Passage, Passages, front_matter
from nomicbert.bulk.inputs.opening import Opened
from nomicbert.bulk.inputs.rows import LINE, Entry, Position, Reject, Row, Span
from nomicbert.bulk.inputs.selection import Selection, not_utf8

# Bytes of a line that are read at once.
PIECE = 1 << 13


def read_passages(opened: Opened, span: Span, unit: int, selection: Selection) -> Iterator[Entry]:
    """The passages of a file; arguments, yields and errors as in `lines.read_lines`.

    What is above a passage decides where it begins, so reading goes on from the start of the file.
    A line that is not UTF-8 is a row that cannot be used, and ends the passage before it.
    """
    name = opened.name
    names = {selection.field, LINE}
    if selection.columns is not None:
        names &= set(selection.columns)
    lines = _Lines(opened)
    number = counted = 0
    for found in _passages(lines):
        if span.stop is not None and number >= span.stop:
            break
        if number >= span.first:
            if isinstance(found, Line):
                yield Reject(name, number, f"line {found.number}: {found.problem}", found.text)
            else:
                fields = {selection.field: found.text, LINE: found.line}
                fields = {key: value for key, value in fields.items() if key in names}
                size = max(0, int(lines.read * opened.ratio) - counted)
                counted += size
                after = Position(unit, number + 1, None)
                yield Row(name, "row", number, found.text, fields, None, size, after)
        number += 1
    yield Position(unit, number, None)


def _passages(lines: "_Lines") -> Iterator[Passage | Line]:
    """The passages of a file, and in their places the lines that are not UTF-8."""
    title, rest = front_matter(lines)
    passages = Passages(title)
    for line in rest:
        if line.problem:
            yield from passages.end()
            yield line
        else:
            yield from passages.add(line)
    yield from passages.end()


class _Lines:
    """Iterator over the lines of a file, long ones in pieces.

    Attributes:
        read: bytes of the lines so far.
    """

    def __init__(self, opened: Opened) -> None:
        self._file = opened.file
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._number, self._begins = 0, True
        self.read = 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> Line:
        if not (raw := self._file.readline(PIECE)):
            raise StopIteration
        begins, ends = self._begins, raw.endswith(b"\n") or len(raw) < PIECE
        if not self.read:
            raw = raw.removeprefix(BOM)
        self.read += len(raw)
        self._number += begins
        self._begins = ends
        try:
            text = self._decoder.decode(raw, ends)
        except UnicodeDecodeError as error:
            self._decoder.reset()
            content = raw.decode(errors="replace").rstrip("\r\n")
            return Line(self._number, content, begins, not_utf8(error.object, error))
        return Line(self._number, text.removesuffix("\n").removesuffix("\r"), begins)
