"""Vectors in Parquet files: opening them, the column `embedding` -> an array, errors with a name.

Where in the flow: `stored` reads the parts of a folder, and lone files, with these functions. They
need pyarrow.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from nomicbert.bulk.inputs.rows import EMBEDDING
from nomicbert.bulk.job.names import MANIFEST
from nomicbert.bulk.optional import need_pyarrow
from nomicbert.bulk.place import Place
from nomicbert.bulk.places import LocalPlace, place

Float32 = npt.NDArray[np.float32]
# Bytes at either end of a file in a store that tell whether it is the same.
END = 1 << 20
# Arrow's names of the types of floats, other than float.
FLOATS = {"halffloat": "float16", "float": "float32", "double": "float64"}


def holds_vectors(name: str) -> bool:
    """Whether a folder has the manifest of a job, or a Parquet file a column of vectors.

    Args:
        name: path or URL, of texts otherwise.

    Raises: ValueError: it cannot be read, or is damaged. OSError: reading failed.
    """
    at = place(name)
    kind = at.kind()
    if kind == "folder":
        return at.child(MANIFEST).kind() == "file"
    if kind is None or not name.endswith(".parquet"):
        return False
    need_pyarrow(f"reading {name}")
    with at.open() as file, naming_damage(name):
        return EMBEDDING in open_parquet_file(file).schema_arrow.names


def open_parquet_file(file: BinaryIO) -> Any:
    """A pq.ParquetFile that verifies the checksums of its pages."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(file, page_checksum_verification=True)


@contextmanager
def naming_damage(name: str) -> Iterator[None]:
    """Raise damage that pyarrow finds as a ValueError that names the file."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno):
            raise
        first = str(error).split("\n")[0]
        raise ValueError(f"{name} is damaged: {first}") from error


def vector_type(name: str, file: Any) -> tuple[int, str]:
    """Width of the vectors of a pq.ParquetFile, and the type of their values.

    Raises: ValueError: it has no vectors; the message begins with `name`.
    """
    import pyarrow as pa

    schema = file.schema_arrow
    if EMBEDDING not in schema.names:
        raise ValueError(f"{name} has no column {EMBEDDING!r}, so it holds no vectors")
    kind = schema.field(EMBEDDING).type
    if pa.types.is_fixed_size_list(kind):
        width = kind.list_size
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        (first,) = next(file.iter_batches(1, columns=[EMBEDDING])).column(0)
        width = len(first.as_py() or ())
    else:
        raise ValueError(f"{name}: the column {EMBEDDING!r} must hold lists of numbers, not {kind}")
    dtype = str(kind.value_type)
    if not width:
        raise ValueError(f"{name} has vectors of no values")
    return width, FLOATS.get(dtype, dtype)


def as_array(name: str, column: Any, width: int) -> Float32:
    """A column of vectors as an array.

    Args:
        name: for errors.
        column: pa.ChunkedArray of lists of `width` numbers.
        width: values of a vector.

    Returns: (n, width) float32.
    Raises: ValueError: a vector is null, holds nulls, or has another length.
    """
    import pyarrow.compute as pc

    pieces = [chunk.flatten() for chunk in column.chunks]
    if column.null_count or any(piece.null_count for piece in pieces):
        raise ValueError(f"{name} has rows without a vector, or with nulls in it")
    if pc.list_value_length(column).unique().to_pylist() not in ([], [width]):
        raise ValueError(f"{name} has vectors of different lengths")
    arrays = [piece.to_numpy(zero_copy_only=False) for piece in pieces]
    values = np.concatenate(arrays) if arrays else np.empty(0, np.float32)
    return values.astype(np.float32, copy=False).reshape(-1, width)


def state_of(file: Place) -> str:
    """What differs once a file was written again: its size and time, or in a store its ends."""
    if isinstance(file, LocalPlace):
        known = os.stat(file.path)
        return f"{known.st_size}-{known.st_mtime_ns}"
    return hashlib.sha256(str(file.size()).encode() + file.ends(END)).hexdigest()


def rewritten(name: str) -> ValueError:
    """The error of vectors that are not those that were opened."""
    return ValueError(
        f"{name} has been written again since it was opened: open it, or start the command, anew"
    )


def refuse_broken(name: str, where: str) -> None:
    """Raise the ValueError of vectors that are not finite; `where`: the first one's row."""
    raise ValueError(
        f"{name} has vectors with NaN or infinite values, the first that of {where}: the weights "
        "are damaged, or too large for their dtype; embed again, with --dtype float32"
    )
