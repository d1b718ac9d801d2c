"""The names of the inputs' fields, looked at before a model is loaded.

Where in the flow: `embed_file` calls this for outputs without a schema, whose rows would lack a
misspelt column without an error.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from itertools import islice
from typing import Any

from nomicbert.bulk.inputs.csv_rows import read_header
from nomicbert.bulk.inputs.feed import Feed
from nomicbert.bulk.inputs.formats import DELIMITERS, OF_ARROW
from nomicbert.bulk.inputs.opening import open_source
from nomicbert.bulk.inputs.rows import ArrowCells, OnError, Row, Span
from nomicbert.bulk.inputs.selection import SAMPLE_BYTES, SAMPLE_ROWS, Selection, listed
from nomicbert.bulk.inputs.sources import Source


def look_at_names(
    sources: Sequence[Source], *, field: str, columns: Sequence[str] | None, on_error: OnError
) -> list[str]:
    """Read the headers of all sources, and the first rows of JSON as far as a column is missing.

    Args:
        sources: of the job; those that can be read only once are passed over.
        field: name of the field that holds the text.
        columns: names of the fields that are kept; None for all.
        on_error: whether first rows that cannot be used are passed over.

    Returns: those of `columns` that have not been found, if one of the sources passed over may
        have them.
    Raises: ValueError: a header has not the text's column, no source has one of `columns`, or a
        first row cannot be used. OSError: reading failed.
    """
    known, missing = dict[str, None](), dict.fromkeys(columns or ())
    for source in sources:
        if not source.once:
            for name in _names(source, field, on_error, missing):
                known[name] = None
                missing.pop(name, None)
    if missing and not any(source.once for source in sources):
        raise ValueError(
            f"no input has the column {next(iter(missing))!r}: there are {listed(known)}"
        )
    return list(missing)


def _names(
    source: Source, field: str, on_error: OnError, missing: dict[str, None]
) -> Iterable[str]:
    selection = Selection(field)
    if source.format in DELIMITERS:
        with open_source(source) as opened:
            return read_header(opened, selection, DELIMITERS[source.format])
    if source.format in OF_ARROW:
        from nomicbert.bulk.inputs.arrow_rows import read_schema  # needs pyarrow

        with open_source(source) as opened:
            return list(read_schema(opened, source.format, selection).names)
    found, size = dict[str, None](), 0
    if missing:
        feed = Feed([source], [Span(0)], field=field, on_error=on_error, on_null="empty")
        with closing(feed):
            for _ in islice(feed, SAMPLE_ROWS):
                row = feed.take().row
                assert isinstance(row.fields, dict)
                found.update(dict.fromkeys(row.fields))
                size += row.size
                if size >= SAMPLE_BYTES or missing.keys() <= found.keys():
                    break
    return found


def refusing_missing(
    write: Callable[[list[Row], Any], None], missing: Iterable[str], sources: Sequence[Source]
) -> Callable[[list[Row], Any], None]:
    """A writer that looks for columns in the first rows of inputs that can be read only once.

    Args:
        write: the writer.
        missing: from `look_at_names`.
        sources: of the job.

    Returns: a function as `write`, which raises a ValueError before it writes the first rows of the
        last such input if a column is still missing.
    """
    wanted = set(missing)
    last = [source.name for source in sources if source.once][-1:]

    def checked(rows: list[Row], vectors: Any) -> None:
        if wanted:
            for row in rows:
                cells = row.fields
                known = cells.batch.schema.names if isinstance(cells, ArrowCells) else cells
                wanted.difference_update(known)
            if wanted and any(row.name in last for row in rows):
                raise ValueError(
                    f"no input has the column {min(wanted)!r}: it is not in the first rows of "
                    f"{last[0]} either"
                )
        write(rows, vectors)

    return checked
