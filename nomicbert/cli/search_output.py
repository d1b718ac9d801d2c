"""What `nomicbert search` prints: a ranking for people, or one JSON document.

Where in the flow: `search` makes an `Answer` per question and passes all of them here.
"""

import json
import math
import shutil
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from nomicbert.bulk.inputs.rows import LINE, NUMBER, ROW, SOURCE

# Columns of a terminal that are used, and those where there is none.
WIDEST, USUAL, NARROWEST = 120, 100, 20
# Lines of a text.
LINES = 3
INDENT = "    "
ELLIPSIS = " ..."


@dataclass(frozen=True)
class Hit:
    """One row of a ranking.

    Attributes:
        rank: from 1.
        score: cosine of question and text.
        reranker_score: of the reranker, which decides the order; None without one.
        row: number of the row among the vectors.
        where: its source and line, or its id.
        text: that was embedded; None if it is not stored.
        fields: the other stored columns.
    """

    rank: int
    score: float
    reranker_score: float | None
    row: int
    where: str
    text: str | None
    fields: dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """A question and what is nearest to it, best first."""

    question: str
    results: list[Hit]


@dataclass(frozen=True)
class Report:
    """The document of --json.

    Attributes:
        vectors: folder or file that was searched.
        rows: number of vectors.
        dimension: values of each.
        model: that embedded the questions.
        bits: whether signs were compared first.
        reranker: or None.
        answers: one per question.
    """

    vectors: str
    rows: int
    dimension: int
    model: str
    bits: bool
    reranker: str | None
    answers: list[Answer]


def as_json(report: Report) -> str:
    """The document; values that JSON does not have become strings, NaN and infinity too."""
    content = _with_json_numbers(asdict(report))
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False, default=str)


def _with_json_numbers(value: Any) -> Any:
    """The same, but for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {name: _with_json_numbers(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_with_json_numbers(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def as_text(answers: Sequence[Answer]) -> str:
    """Rankings, as wide as the terminal; several have their question above."""
    columns = shutil.get_terminal_size((USUAL, 24)).columns
    width = max(NARROWEST, min(columns, WIDEST))
    blocks = []
    for answer in answers:
        lines = list(_wrapped(answer.question, width)) if len(answers) > 1 else []
        for hit in answer.results:
            lines += _hit(hit, width)
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def place_of(fields: dict[str, Any], row: int) -> str:
    """What names a row: its file and line, its id, its file and row, or its number."""
    source = fields.get(SOURCE)
    if source is not None and fields.get(LINE) is not None:
        return f"{source}:{fields[LINE]}"
    if fields.get(NUMBER) is not None:
        return str(fields[NUMBER])
    number = fields.get(ROW)
    return f"row {row + 1}" if source is None or number is None else f"{source}:{number + 1}"


def _hit(hit: Hit, width: int) -> Iterator[str]:
    score = f"{hit.score:.3f}"
    if hit.reranker_score is not None:
        score = f"{hit.reranker_score:.3f} ({score})"
    head = f"{hit.rank:>2}  {score}  "
    where = list(_wrapped(hit.where, max(1, width - len(head))))
    yield head + where[0] if where else head.rstrip()
    yield from (" " * len(head) + line for line in where[1:])
    text = hit.text
    if text is None:
        named = (SOURCE, ROW, LINE, NUMBER)
        text = "  ".join(f"{k}: {v}" for k, v in hit.fields.items() if k not in named)
    room = width - len(INDENT)
    lines = list(islice(_wrapped(text, room), LINES + 1))
    if len(lines) > LINES:
        lines = lines[:LINES]
        last = next(_wrapped(lines[-1], room - len(ELLIPSIS)))
        lines[-1] = last + ELLIPSIS
    yield from (INDENT + line for line in lines)


def _wrapped(text: str, width: int) -> Iterator[str]:
    """Lines of at most `width` columns; words are broken only where they are longer.

    Characters that would move the cursor or change colours become spaces.
    """
    shown = "".join(c if c.isprintable() else " " for c in text)
    line = ""
    for word in shown.split():
        if line and columns_of(line) + 1 + columns_of(word) <= width:
            line = f"{line} {word}"
            continue
        if line and (columns_of(word) <= width or columns_of(line) > width // 2):
            yield line
            line = ""
        joined = f"{line} {word}" if line else word
        while columns_of(joined) > width:
            fits = _fitting(joined, width)
            yield joined[:fits]
            joined = joined[fits:]
        line = joined
    if line:
        yield line


def columns_of(text: str) -> int:
    """Columns on a terminal: two for wide characters, as of Chinese; none for accents alone."""
    return sum(map(_column, text))


def _column(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _fitting(text: str, width: int) -> int:
    """How many characters fit into a line; at least one."""
    used = 0
    for index, character in enumerate(text):
        used += _column(character)
        if used > width:
            return max(1, index)
    return len(text)
