"""A raw copy of stored vectors, which a process maps into memory instead of reading it.

    _search/DIGEST/vectors.npy    (rows, width) float32, each of length 1
                   bits.npy       (words, rows) uint64, see `bits`

Where in the flow: made by the first search of a folder, opened by each one. Parquet is compressed,
so it cannot be mapped. The digest names the job and the rows of each part: vectors that have grown
or changed since get a new copy, and the old one is removed. A copy appears whole, by a rename; two
processes that make the same one do not disturb each other.
"""

import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from nomicbert.bulk.places import LocalPlace, place
from nomicbert.bulk.search.bits import Bits, bits_of, words_of
from nomicbert.bulk.stored import StoredVectors
from nomicbert.bulk.vector_files import Float32

FOLDER = "_search"
VECTORS, BITS = "vectors.npy", "bits.npy"
# Changes when the layout of a copy does.
VERSION = 1
TEMPORARY = ".making-"
DAY = 86_400
# Copies that a process keeps mapped: mapping one anew costs a page fault per 64 KB.
KEPT = 4


class Mapped(NamedTuple):
    """The copy of a folder.

    Attributes:
        vectors: (rows, width) float32, mapped: each of length 1, or zeros.
        bits: (words, rows) uint64, mapped.
    """

    vectors: Float32
    bits: Bits

    @property
    def rows(self) -> int:
        """Number of vectors."""
        return len(self.vectors)

    def blocks(self, rows: int) -> Iterator[tuple[int, Float32]]:
        """Consecutive vectors with the number of the first."""
        for first in range(0, self.rows, rows):
            yield first, self.vectors[first : first + rows]


def open_mapped(stored: StoredVectors) -> Mapped:
    """Open the copy of stored vectors, which is made if it is missing.

    Raises: ValueError: a vector that is not finite, or of a precision that cannot be compared.
        OSError: there is no room for the copy.
    """
    digest = _digest(stored)
    folders = [Path(found.path, FOLDER)] if (found := _own_folder(stored)) else []
    folders.append(_in_cache(stored))
    for folder in folders:
        if (folder / digest).is_dir():
            return _open(folder / digest)
    folder = (
        folders[0] if len(folders) > 1 and os.access(folders[0].parent, os.W_OK) else folders[-1]
    )
    _make(stored, folder, digest)
    return _open(folder / digest)


def cache_folder() -> Path:
    """Where copies and vectors are kept that have no other place."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "nomicbert", "search")


def unit(vectors: Float32) -> Float32:
    """Vectors scaled to length 1; those of zeros stay.

    Args:
        vectors: (n, width) float32.
    """
    exact = vectors.astype(np.float64)
    lengths = np.sqrt((exact * exact).sum(axis=1, keepdims=True))
    return (exact / np.where(lengths, lengths, 1)).astype(np.float32)


@lru_cache(maxsize=KEPT)
def _open(folder: Path) -> Mapped:
    # without the class memmap, whose slices take longer
    vectors, bits = (
        np.asarray(np.load(folder / name, mmap_mode="r", allow_pickle=False))
        for name in (VECTORS, BITS)
    )
    return Mapped(vectors, bits)


def _own_folder(stored: StoredVectors) -> LocalPlace | None:
    """The folder of a job of this machine."""
    at = place(stored.name)
    return at if isinstance(at, LocalPlace) and at.kind() == "folder" else None


def _in_cache(stored: StoredVectors) -> Path:
    identity = place(stored.name).identity
    return cache_folder() / hashlib.sha256(identity.encode()).hexdigest()[:32]


def _digest(stored: StoredVectors) -> str:
    known = f"{VERSION} {stored.run} {stored.rows} {stored.width}"
    return hashlib.sha256(known.encode()).hexdigest()[:32]


def _make(stored: StoredVectors, folder: Path, digest: str) -> None:
    """Write a copy beside its final name, rename it, and remove those of older vectors."""
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / f"{TEMPORARY}{secrets.token_hex(8)}"
    made.mkdir()  # unlike mkdtemp, others may read it: vectors are shared
    try:
        _write(stored, made)
        with suppress(OSError):  # another process was faster
            made.rename(folder / digest)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    for other in folder.iterdir():
        if other.name != digest and not _is_being_made(other):
            shutil.rmtree(other, ignore_errors=True)


def _is_being_made(copy: Path) -> bool:
    """Whether another process may be writing this copy; after a day it was killed."""
    if not copy.name.startswith(TEMPORARY):
        return False
    with suppress(FileNotFoundError):
        return time.time() - copy.stat().st_mtime < DAY
    return False


def _write(stored: StoredVectors, folder: Path) -> None:
    """Write both files; not by mapping them, because a full disk would kill the process."""
    words, rows = words_of(stored.width), stored.rows
    with open(folder / VECTORS, "wb") as vectors, open(folder / BITS, "wb") as bits:
        _begin(vectors, np.float32, (rows, stored.width))
        start = _begin(bits, np.uint64, (words, rows))
        at = 0
        for block in stored.blocks():
            scaled = unit(block)
            vectors.write(scaled.data)
            for word, column in enumerate(bits_of(scaled)):
                bits.seek(start + (word * rows + at) * column.itemsize)
                bits.write(column.data)
            at += len(block)
        for file in (vectors, bits):
            file.flush()
            os.fsync(file.fileno())


def _begin(file: BinaryIO, kind: type[np.generic], shape: tuple[int, int]) -> int:
    """Write the header of a .npy file; returns its bytes."""
    descr = np.lib.format.dtype_to_descr(np.dtype(kind))
    np.lib.format.write_array_header_1_0(
        file, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return file.tell()
