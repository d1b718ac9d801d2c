"""Vectors and the fields of their rows -> .npy or JSONL, block by block.

Where in the flow: the command opens one of these writers, and `blocks` passes it a few thousand
rows at a time. A writer is a context manager that completes the file on success.
Source: numpy's NEP 1 (the .npy format); jsonlines.org.
"""

import datetime
import decimal
import io
import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby, zip_longest
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from nomicbert.bulk.inputs.rows import EMBEDDING, ArrowCells, Misfit, Reject, Row, batch_of

Vectors = npt.NDArray[Any]
Write = Callable[[list[Row], Vectors], None]

# Enough digits for an exact round trip. '#' keeps the decimal point: without it, -0 would be an
# integer, and readers drop its sign.
FORMATS = {"float32": "%#.9g", "float16": "%#.5g", "int8": "%d", "uint8": "%d"}


@contextmanager
def npy_writer(
    file: BinaryIO, empty: Vectors, meta: BinaryIO | None = None, field: str = "text"
) -> Iterator[Write]:
    """Write vectors as one array, and the other fields as JSONL to a second file.

    Args:
        file: seekable, for the array.
        empty: (0, width), of the dtype of the vectors.
        meta: file for the fields without the text, or None.
        field: name of the field that holds the text.

    Yields: a function of n rows and their (n, width) vectors. It writes all of them or, if one row
        does not fit, raises a Misfit and writes none.
    """
    file.write(_npy_header(empty, 0))
    count = 0

    def write(rows: list[Row], vectors: Vectors) -> None:
        nonlocal count
        if meta is not None:
            found = [{k: v for k, v in each.items() if k != field} for each in fields_of(rows)]
            meta.writelines(text.encode() + b"\n" for text in as_json(found))
        file.write(np.ascontiguousarray(vectors, empty.dtype).data)
        count += len(vectors)

    yield write
    # The number of rows is known only now; numpy pads the header so that the first axis can grow.
    file.seek(0)
    file.write(_npy_header(empty, count))


def _npy_header(empty: Vectors, rows: int) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header,
        {
            "descr": np.lib.format.dtype_to_descr(empty.dtype),
            "fortran_order": False,
            "shape": (rows, empty.shape[1]),
        },
    )
    return header.getvalue()


@contextmanager
def jsonl_writer(file: BinaryIO, empty: Vectors, whole: bool = True) -> Iterator[Write]:
    """Write each row as a JSON object with its vector as an additional field.

    Args:
        file: any stream.
        empty: (0, width), of the dtype of the vectors.
        whole: all fields are carried, so an object of a JSONL input is written as it was read.

    Yields: a function of n rows and their (n, width) vectors. It writes all of them or, if one row
        does not fit, raises a Misfit and writes none.
    """
    template = f"{FORMATS[empty.dtype.name]}, " * empty.shape[1]

    def write(rows: list[Row], vectors: Vectors) -> None:
        found = fields_of(rows)
        refuse_reserved(rows)
        objects = as_json(found, [row.line if whole else None for row in rows])
        for start, fields, vector in zip(objects, found, vectors, strict=True):
            numbers = template % tuple(vector.tolist())
            numbers = numbers.replace("., ", ".0, ")  # JSON requires a digit after the point
            if "n" in numbers:  # JSON has no NaN and infinity: spelled as Python's json does
                numbers = numbers.replace("nan", "NaN").replace("inf", "Infinity")
            comma = ", " if fields else ""
            file.write(f'{start[:-1]}{comma}"{EMBEDDING}": [{numbers[:-2]}]}}\n'.encode())
        file.flush()

    yield write


def fields_of(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The fields of rows as Python values; times with nanoseconds as ISO 8601.

    Raises: Misfit: a value of an Arrow column has none, such as a date behind the year 9999.
    """
    found: list[dict[str, Any]] = []
    for _, group in groupby((row.fields for row in rows), key=batch_of):
        same: list[Any] = list(group)
        if isinstance(same[0], ArrowCells):
            from nomicbert.bulk.cells import fields_of_batch  # needs pyarrow

            numbers = [cells.row for cells in same]
            found += fields_of_batch(same[0].batch, numbers, len(found))
        else:
            found += same
    return found


def refuse_reserved(rows: Sequence[Row]) -> None:
    """Raise a Misfit for the first row with a field that has the name of the vector."""
    for index, row in enumerate(rows):
        cells = row.fields
        if EMBEDDING in (cells.batch.schema.names if isinstance(cells, ArrowCells) else cells):
            raise Misfit(
                index,
                f"the field {EMBEDDING!r} is reserved for the vector: rename it, or choose the "
                "fields to keep with --columns",
            )


def refuse_columns(rows: Sequence[Row], left_out: str | None) -> None:
    """Raise a Misfit for the first row read as Arrow with a column that JSON cannot hold.

    Its own value may be null; that of a later row is not.

    Args:
        rows: in any order.
        left_out: a column that is not written, or None.
    """
    for index, row in enumerate(rows):
        if not isinstance(row.fields, ArrowCells):
            continue
        from nomicbert.bulk.cells import without_form  # needs pyarrow

        column = without_form(each for each in row.fields.batch.schema if each.name != left_out)
        if column is not None:
            raise Misfit(index, no_form(column.name, column.type))


def no_form(name: str, kind: object) -> str:
    """What to say of a field that JSON cannot hold."""
    return (
        f"the field {name!r} ({kind}) has no form in JSON: write to .parquet, or leave it out with "
        "--columns"
    )


def as_json(rows: Sequence[dict[str, Any]], lines: Sequence[str | None] = ()) -> list[str]:
    """The fields of rows as JSON objects: times as ISO 8601, decimals and UUIDs as strings.

    Args:
        rows: the fields of each.
        lines: the object of each as it was read, where there is one.

    Raises: Misfit: a value without a form in JSON, such as bytes.
    """
    found = []
    for index, (fields, line) in enumerate(zip_longest(rows, lines)):
        try:
            found.append(_dumps(fields) if line is None else line)
        except (TypeError, RecursionError):
            name = next(name for name in fields if not _has_form(fields[name]))
            kind = type(fields[name]).__name__
            raise Misfit(index, no_form(name, kind)) from None
    return found


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> str:
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | uuid.UUID):
        return str(value)
    raise TypeError


def _has_form(value: Any) -> bool:
    try:
        _dumps(value)
    except (TypeError, RecursionError):
        return False
    return True


def reject_line(reject: Reject) -> bytes:
    """A refused row as a line of a file of rejects."""
    found = {"source": reject.name, "row": reject.number, "problem": reject.problem}
    if reject.content is not None:
        found["content"] = reject.content
    # half of a surrogate pair becomes its JSON escape again
    return _dumps(found).encode("utf-8", "backslashreplace") + b"\n"
