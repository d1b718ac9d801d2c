"""A source -> its rows, by the reader of its format.

Where in the flow: `feed` opens the spans of a job here, one after the other.
"""

from collections.abc import Generator, Iterator

from nomicbert.bulk.inputs import csv_rows, json_rows, lines, passages
from nomicbert.bulk.inputs.formats import DELIMITERS, InputFormat
from nomicbert.bulk.inputs.opening import Opened, open_source
from nomicbert.bulk.inputs.rows import Entry, Span
from nomicbert.bulk.inputs.selection import Selection
from nomicbert.bulk.inputs.sources import Source


def open_rows(source: Source, span: Span, unit: int, selection: Selection) -> Generator[Entry]:
    """The rows of a span.

    Args:
        source: the source of the span.
        span: the rows to read.
        unit: index of the span, for positions.
        selection: what is taken of each row.

    Yields: the rows, those that cannot be used, and at the end the position behind them.
    Raises: ValueError: the source cannot be read as what it should be. OSError: reading failed.
    """
    with open_source(source) as opened:
        yield from _reader(source.format, opened, span, unit, selection)


def _reader(
    form: InputFormat, opened: Opened, span: Span, unit: int, selection: Selection
) -> Iterator[Entry]:
    if form is InputFormat.text:
        return lines.read_lines(opened, span, unit, lines.text_parser(selection))
    if form is InputFormat.jsonl:
        return lines.read_lines(opened, span, unit, lines.jsonl_parser(selection))
    if form is InputFormat.document:
        return lines.read_document(opened, span, unit, selection)
    if form is InputFormat.passages:
        return passages.read_passages(opened, span, unit, selection)
    if form is InputFormat.json:
        return json_rows.read_json(opened, span, unit, selection)
    if form in DELIMITERS:
        return csv_rows.read_csv(opened, span, unit, selection, DELIMITERS[form])
    from nomicbert.bulk.inputs import arrow_rows  # needs pyarrow

    read = arrow_rows.read_parquet if form is InputFormat.parquet else arrow_rows.read_arrow
    return read(opened, span, unit, selection)
