"""A source -> its rows, by the reader of its format.

Where in the flow: `feed` opens the spans of a job here, one after the other.
"""

from collections.abc import Generator

from nomicbert.bulk.inputs import lines
from nomicbert.bulk.inputs.formats import InputFormat
from nomicbert.bulk.inputs.lines import Entry
from nomicbert.bulk.inputs.opening import open_source
from nomicbert.bulk.inputs.rows import Span
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
        try:
            if source.format is InputFormat.text:
                parse = lines.text_parser(selection)
            else:
                parse = lines.jsonl_parser(selection)
            yield from lines.read_lines(opened, span, unit, parse)
        except OSError as error:
            raise OSError(f"cannot read {source.name}: {error.strerror or error}") from error
