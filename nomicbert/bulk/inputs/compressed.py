"""Files that pyarrow reads: gzip and zstd, and the difference between damage and a failing read.

Where in the flow: below `opening`, and below `sources`, which looks at the first bytes of files.
Source: pyarrow's codecs, which also read files of several gzip members or zstd frames.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

from nomicbert.bulk.inputs.formats import HEAD, Compression


class Watched:
    """A file that pyarrow reads, which reports damage and failures alike.

    Attributes:
        failed: whether reading it failed: what it holds may be right.
    """

    mode = "rb"
    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.failed = False
        self.seekable, self.tell, self.seek = file.seekable, file.tell, file.seek

    def close(self) -> None:
        """Called by pyarrow; the file is closed by who opened it."""

    def read(self, size: int = -1) -> bytes:
        """Some bytes; pyarrow calls no other method that reads."""
        try:
            return self._file.read(size)
        except OSError:
            self.failed = True
            raise


class Inflated(io.RawIOBase):
    """A decompressed stream; its errors name the input.

    Attributes:
        ratio: bytes in per byte out, so far.
    """

    def __init__(self, raw: BinaryIO, name: str, compression: Compression) -> None:
        super().__init__()
        import pyarrow as pa

        self._watched = Watched(raw)
        self._stream: Any = pa.CompressedInputStream(self._watched, compression)
        self._raw, self._name, self._out = raw, name, 0
        self._counts = raw.seekable()
        self.ratio = 1.0

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as there are bytes.

        Raises: ValueError: the file is damaged. OSError: reading it failed.
        """
        try:
            count = int(self._stream.readinto(buffer))
        except OSError as error:
            if self._watched.failed:
                raise
            raise ValueError(f"{self._name} is damaged: {error}") from error
        self._out += count
        if self._counts:
            read = self._raw.tell()
            if not read:
                raise ValueError(f"{self._name} is damaged: it is empty")
            self.ratio = read / max(1, self._out)
        return count


@contextmanager
def naming_failures(name: str) -> Iterator[None]:
    """Name the input in errors of reading it."""
    try:
        yield
    except OSError as error:
        message = error.strerror or str(error)
        if message.startswith("cannot read "):
            raise  # a URL's errors have a name
        raise OSError(f"cannot read {name}: {message}") from error


def inflated_head(head: bytes, name: str, compression: Compression) -> bytes:
    """The decompressed beginning of a file, at most `HEAD` bytes.

    Args:
        head: the compressed beginning.
        name: for messages.
        compression: of the file.

    A damaged file is not an error yet: reading it will be.
    """
    stream, found = Inflated(io.BytesIO(head), name, compression), b""
    piece = bytearray(256)  # the piece that the end of `head` cuts is lost
    with suppress(ValueError):
        while len(found) < HEAD and (count := stream.readinto(piece)):
            found += piece[:count]
    return found
