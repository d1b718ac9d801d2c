"""Input files of every format, and feeds over them."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nomicbert.bulk.inputs.feed import START, Feed
from nomicbert.bulk.inputs.formats import InputFormat
from nomicbert.bulk.inputs.rows import Position, Reject, Rest, Row, Span, Taken
from nomicbert.bulk.inputs.sources import find_sources

HAS_PYARROW = importlib.util.find_spec("pyarrow") is not None
needs_pyarrow = pytest.mark.skipif(not HAS_PYARROW, reason="pyarrow is not installed")
# Suffixes that the standard library can write and read.
PLAIN = [".txt", ".jsonl", ".csv", ".tsv", ".json"]
COMPRESSED = [suffix + end for suffix in PLAIN for end in (".gz", ".zst")]
SUFFIXES = [
    *PLAIN,
    *(
        pytest.param(suffix, marks=needs_pyarrow)
        for suffix in [*COMPRESSED, ".parquet", ".arrow", ".feather"]
    ),
]


def encode(suffix: str, records: Sequence[dict[str, Any]], rows: int = 3) -> bytes:
    """A file of records that have the same fields; text files hold `text` only.

    Args:
        suffix: its format.
        records: its rows.
        rows: of a row group or record batch.
    """
    if suffix.endswith(".gz"):
        whole = encode(suffix[:-3], records)
        return gzip.compress(whole[: len(whole) // 2]) + gzip.compress(whole[len(whole) // 2 :])
    if suffix.endswith(".zst"):
        import pyarrow as pa

        whole = encode(suffix[:-4], records)
        halves = whole[: len(whole) // 2], whole[len(whole) // 2 :]
        return b"".join(pa.compress(half, "zstd", asbytes=True) for half in halves)
    if suffix == ".txt":
        return b"".join(record["text"].encode() + b"\n" for record in records)
    if suffix == ".jsonl":
        return b"".join(json.dumps(record).encode() + b"\n" for record in records)
    if suffix == ".json":
        return json.dumps(records, ensure_ascii=False).encode()
    if suffix in (".csv", ".tsv"):
        file = io.StringIO()
        names = list(records[0]) if records else ["text"]
        delimiter = "," if suffix == ".csv" else "\t"
        writer = csv.DictWriter(file, names, delimiter=delimiter, quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(records)
        return file.getvalue().encode()
    return _encode_arrow(suffix, records, rows)


def _encode_arrow(suffix: str, records: Sequence[dict[str, Any]], rows: int) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = (
        pa.Table.from_pylist(list(records))
        if records
        else pa.table({"text": pa.array([], "string")})
    )
    sink = io.BytesIO()
    if suffix == ".parquet":
        pq.write_table(table, sink, row_group_size=rows)
    else:
        new = pa.ipc.new_stream if suffix == ".arrow" else pa.ipc.new_file
        with new(sink, table.schema) as writer:
            writer.write_table(table, rows)
    return sink.getvalue()


def write(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    """Write records in the format of the path's suffixes."""
    path.write_bytes(encode("".join(path.suffixes), records))
    return path


def feed_of(
    *paths: Path | str,
    form: str | None = None,
    spans: Sequence[Span] | None = None,
    start: Position = START,
    **options: Any,
) -> Feed:
    """A feed over whole files, or over spans of them."""
    sources = find_sources([str(path) for path in paths], form and InputFormat(form))
    whole = [Span(index) for index in range(len(sources))]
    return Feed(sources, whole if spans is None else spans, start=start, **options)


def read_all(feed: Feed) -> tuple[list[Taken], Rest]:
    """Everything that a feed yields, taken text by text."""
    taken = []
    for text in feed:
        taken.append(feed.take())
        assert taken[-1].row.text == text
    assert feed.finished
    return taken, feed.rest()


def rows_of(*paths: Path | str, **options: Any) -> list[Row]:
    """The rows of files."""
    return [taken.row for taken in read_all(feed_of(*paths, **options))[0]]


def rejects_of(*paths: Path | str, **options: Any) -> list[Reject]:
    """The rows of files that cannot be used."""
    taken, rest = read_all(feed_of(*paths, on_error="skip", **options))
    return [reject for part in (*taken, rest) for reject in part.rejects]


def fields_of(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The carried fields of rows as Python objects."""
    found = []
    for fields in (row.fields for row in rows):
        if not isinstance(fields, dict):
            (fields,) = fields.batch.slice(fields.row, 1).to_pylist()
        found.append(fields)
    return found
