"""Vectors and the fields of their records -> .npy or JSONL, block by block.

Where in the flow: `nomicbert embed` opens one of these writers on its output and passes it a few
thousand rows at a time. A writer is a context manager that completes the file on success.
Source: numpy's NEP 1 (the .npy format); jsonlines.org.
"""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from nomicbert.bulk.reading import EMBEDDING, Record

Vectors = npt.NDArray[Any]
Write = Callable[[list[Record], Vectors], None]

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

    Yields: a function of n records and their (n, width) vectors.
    """
    file.write(_npy_header(empty, 0))
    rows = 0

    def write(records: list[Record], vectors: Vectors) -> None:
        nonlocal rows
        file.write(np.ascontiguousarray(vectors, empty.dtype).data)
        rows += len(vectors)
        if meta is not None:
            for record in records:
                fields = {key: value for key, value in record.fields.items() if key != field}
                meta.write(json.dumps(fields, ensure_ascii=False).encode() + b"\n")

    yield write
    # The number of rows is known only now; numpy pads the header so that the first axis can grow.
    file.seek(0)
    file.write(_npy_header(empty, rows))


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
def jsonl_writer(file: BinaryIO, empty: Vectors) -> Iterator[Write]:
    """Write each record as a JSON object with its vector as an additional field.

    Args:
        file: any stream.
        empty: (0, width), of the dtype of the vectors.

    Yields: a function of n records and their (n, width) vectors.
    """
    template = f"{FORMATS[empty.dtype.name]}, " * empty.shape[1]

    def write(records: list[Record], vectors: Vectors) -> None:
        for record, row in zip(records, vectors, strict=True):
            numbers = template % tuple(row.tolist())
            numbers = numbers.replace("., ", ".0, ")  # JSON requires a digit after the point
            if "n" in numbers:  # JSON has no NaN and infinity: spelled as Python's json does
                numbers = numbers.replace("nan", "NaN").replace("inf", "Infinity")
            line = f'{record.source[:-1]}, "{EMBEDDING}": [{numbers[:-2]}]}}\n'
            file.write(line.encode())
        file.flush()

    yield write
