"""The bytes of an input, decompressed.

Where in the flow: `open_rows` opens a source here and passes the file to the reader of its format.
Source: pyarrow's codecs, which also read files of several gzip members or zstd frames.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

from nomicbert.bulk.inputs.formats import Compression

if TYPE_CHECKING:
    from nomicbert.bulk.inputs.sources import Source

BUFFER = 1 << 18


class Opened:
    """An open input.

    Attributes:
        file: its bytes, decompressed, from the first one on.
        name: for messages.
        seekable: whether an offset of `file` is one that reading can start from.
    """

    ratio = 1.0

    def __init__(self, file: BinaryIO, name: str, seekable: bool) -> None:
        self.file, self.name, self.seekable = file, name, seekable


class _Inflated(io.RawIOBase):
    """A decompressed stream, which knows how many bytes went in and came out.

    Attributes:
        ratio: bytes in per byte out, so far.
    """

    def __init__(self, raw: BinaryIO, name: str, compression: Compression) -> None:
        super().__init__()
        import pyarrow as pa

        self._stream: Any = pa.CompressedInputStream(raw, compression)
        self._raw, self._name, self._out = raw, name, 0
        self._counts = raw.seekable()
        self.ratio = 1.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            count = int(self._stream.readinto(buffer))
        except OSError as error:
            if error.errno is not None:
                raise  # of the file
            raise ValueError(f"{self._name} is damaged: {error}") from error
        self._out += count
        if self._counts and self._out:
            self.ratio = self._raw.tell() / self._out
        if not self._out and not count and not self._raw.tell():
            raise ValueError(f"{self._name} is damaged: it is empty")
        return count


class _OpenedCompressed(Opened):
    def __init__(self, inflated: _Inflated, name: str) -> None:
        super().__init__(io.BufferedReader(inflated, BUFFER), name, False)
        self._inflated = inflated

    @property
    def ratio(self) -> float:  # type: ignore[override]
        return self._inflated.ratio


@contextmanager
def open_source(source: "Source") -> Iterator[Opened]:
    """Open an input.

    Raises: ValueError: it cannot be opened, or needs pyarrow, which is not installed.
    """
    try:
        raw = source.place.open()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"cannot read the input {source.name}: {reason}") from error
    with raw:
        if source.compression is None:
            yield Opened(raw, source.name, raw.seekable())
        else:
            yield _OpenedCompressed(_Inflated(raw, source.name, source.compression), source.name)
