r"""Lines of Markdown or plain text -> passages: paragraphs below their headings, short enough.

    # Cats              "Cats\nThey purr."              line 2
    They purr.     ->   "Cats > Food\nFish.\n\nMice."   line 4
    ## Food
    Fish.

    Mice.

Where in the flow: `passages` reads the lines of a file and makes rows of these passages. Paragraphs
of one section are joined up to LONGEST bytes. Longer ones are cut behind a sentence, a fenced block
of code at the end of a line. Memory holds one passage, whatever the input.

Source: CommonMark 0.31: headings (4.2, 4.3), fences (4.5), thematic breaks (4.1); the front matter
of Jekyll and Hugo.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import NamedTuple

# Bytes of a passage, at most: 150 tokens of plain English, 250 of technical text or Chinese. A
# constant, so that the rows of a file do not depend on the model; few take less than 256 tokens.
LONGEST = 640
# Of them, bytes of the headings; a longer line is text, whatever it begins with.
HEADING = 160
# Lines of front matter, at most; more are text between two thematic breaks.
FRONT = 100

ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$")
UNDERLINE = re.compile(r" {0,3}(?:(=+)|-+)[ \t]*$")
BREAK = re.compile(r" {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$")
FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})")
CLOSERS = {"---": ("---", "..."), "+++": ("+++",)}
SETTING = re.compile(r"[\w-]+[ \t]*[:=]")
TITLE = re.compile(r"title[ \t]*[:=][ \t]*(.+)", re.IGNORECASE)
# Behind the end of a sentence; Chinese needs no space there.
SENTENCE = re.compile(r"[.!?…][\"')\]”»]*\s|[。！？]")


class Line(NamedTuple):
    """A line, or a piece of a long one.

    Attributes:
        number: from 1.
        text: without its end.
        begins: whether the line begins here.
        problem: why it is no text; empty if it is one.
    """

    number: int
    text: str
    begins: bool = True
    problem: str = ""


class Passage(NamedTuple):
    """A text to embed.

    Attributes:
        line: number of its first line below the headings, from 1.
        text: the headings, joined by " > ", and the paragraphs below.
    """

    line: int
    text: str


class Passages:
    """Takes the lines of a file one by one, and returns passages as they are complete."""

    def __init__(self, title: str = "") -> None:
        """`title`: of the whole file, above all headings; empty for none."""
        self._headings = [(0, title)] if title else []
        self._unused: int | None = None  # line of the last heading while nothing follows it
        self._paragraph, self._line = "", 0
        self._lines = 0  # of the paragraph
        self._fence = ""
        self._body, self._first = "", 0
        self._ready: list[Passage] = []

    def add(self, line: Line) -> list[Passage]:
        """The passages that are complete when this line has been seen."""
        if not line.begins:
            self._extend(line.number, line.text, "")
        elif self._fence:
            self._extend(line.number, line.text, "\n")
            mark = line.text.strip()
            if mark.startswith(self._fence) and not mark.strip(self._fence[0]):
                self._end_paragraph()
        elif not line.text.strip():
            self._end_paragraph()
        elif len(line.text.encode()) <= HEADING and (found := ATX.match(line.text)):
            self._end_paragraph()
            self._head(len(found[1]), found[2] or "", line.number)
        elif self._is_heading and (found := UNDERLINE.match(line.text)):
            title, number = self._paragraph.strip(), self._line
            self._paragraph, self._lines = "", 0
            self._head(1 if found[1] else 2, title, number)
        elif BREAK.match(line.text):
            self._end_paragraph()
        elif found := FENCE.match(line.text):
            self._end_paragraph()
            self._fence = found[1]
            self._extend(line.number, line.text, "\n")
        else:
            self._extend(line.number, line.text, "\n")
        return self._take()

    def end(self) -> list[Passage]:
        """The passages that are left at the end of the file, or before a line that is no text."""
        self._end_paragraph()
        self._end_passage()
        self._end_section()
        return self._take()

    def _take(self) -> list[Passage]:
        ready, self._ready = self._ready, []
        return ready

    @property
    def _is_heading(self) -> bool:
        """Whether the paragraph so far is a heading if it is underlined."""
        return self._lines == 1 and len(self._paragraph.encode()) <= HEADING

    @property
    def _heading(self) -> str:
        """The headings above, without the outermost ones if they are too long."""
        texts = [text for _, text in self._headings]
        while len(texts) > 1 and len(" > ".join(texts).encode()) > HEADING:
            del texts[0]
        return _prefix(" > ".join(texts), HEADING)

    @property
    def _room(self) -> int:
        """Bytes of a body."""
        return LONGEST - len(self._heading.encode()) - 1

    def _head(self, level: int, text: str, line: int) -> None:
        self._end_passage()
        if self._headings and self._headings[-1][0] >= level:
            self._end_section()
        while self._headings and self._headings[-1][0] >= level:
            del self._headings[-1]
        if text and [one for _, one in self._headings[-1:]] != [text]:
            self._headings.append((level, text))
        self._unused = line

    def _end_section(self) -> None:
        """A heading with nothing below it is a passage too."""
        if self._unused is not None and self._heading:
            self._ready.append(Passage(self._unused, self._heading))
        self._unused = None

    def _extend(self, line: int, text: str, join: str) -> None:
        """Add to the paragraph; cut off what is too long for a passage."""
        if self._paragraph:
            self._paragraph += join + text
        else:
            self._paragraph, self._line = text, line
        self._lines += bool(join)
        room = self._room
        while len(self._paragraph.encode()) > room:
            head = _cut(self._paragraph, room, bool(self._fence))
            tail = self._paragraph[len(head) :]
            self._add_paragraph(head)
            behind = tail.lstrip("\n") if self._fence else tail.lstrip()
            skipped = tail[: len(tail) - len(behind)]
            self._line += head.count("\n") + skipped.count("\n")
            self._paragraph = behind
            self._lines = max(2, self._lines)  # no heading any more

    def _end_paragraph(self) -> None:
        if self._paragraph.strip():
            self._add_paragraph(self._paragraph)
        self._paragraph, self._lines, self._fence = "", 0, ""

    def _add_paragraph(self, text: str) -> None:
        text = text.rstrip()
        if self._body and len(f"{self._body}\n\n{text}".encode()) > self._room:
            self._end_passage()
        if self._body:
            self._body += f"\n\n{text}"
        else:
            self._body, self._first = text, self._line
        self._unused = None

    def _end_passage(self) -> None:
        if self._body:
            heading = self._heading
            text = f"{heading}\n{self._body}" if heading else self._body
            self._ready.append(Passage(self._first, text))
        self._body = ""


def front_matter(lines: Iterable[Line]) -> tuple[str, Iterator[Line]]:
    """The title that a file's front matter states, and the lines behind it.

    Returns: "" for a file without a title; all lines of a file without front matter.
    """
    rest = iter(lines)
    begin = list(islice(rest, 1))
    closers = CLOSERS.get(begin[0].text.rstrip(), ()) if begin else ()
    title = ""
    for line in islice(rest, FRONT if closers else 0):
        begin.append(line)
        if line.text.rstrip() in closers:
            return title, rest
        if len(begin) == 2 and not SETTING.match(line.text):
            break
        if found := TITLE.match(line.text):
            title = found[1].strip().strip("\"'")
    return "", chain(begin, rest)


def _cut(text: str, most: int, code: bool) -> str:
    """The first part of a text: at most `most` bytes, at least a character, up to a good place."""
    fits = _prefix(text, most)
    ends = [] if code else [found.end() for found in SENTENCE.finditer(fits)]
    places = (ends[-1] if ends else 0, fits.rfind("\n"), fits.rfind(" "))
    return fits[: next((at for at in places if at > len(fits) // 2), len(fits))]


def _prefix(text: str, most: int) -> str:
    """As many whole characters as fit into `most` bytes."""
    raw = text.encode()
    return text if len(raw) <= most else raw[:most].decode(errors="ignore")
