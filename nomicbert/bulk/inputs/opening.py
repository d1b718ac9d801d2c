"""The bytes of an input, decompressed.

Where in the flow: `open_rows` opens a source here and passes the file to the reader of its format.
Source: pyarrow's codecs, which also read files of several gzip members or zstd frames.
"""

import importlib.util
import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, BinaryIO

from nomicbert.bulk.inputs.formats import HEAD, OF_ARROW, Compression
from nomicbert.bulk.inputs.streams import Stream

if TYPE_CHECKING:
    from nomicbert.bulk.inputs.sources import Source

BUFFER = 1 << 18
# Bytes of a row, at most: more are surely a missing line feed or quote, and would fill the memory.
MOST_BYTES = 1 << 28


class Opened:
    """An open input.

    Bytes of a row, as they are told for progress, are those of the input: `ratio` times the bytes
    of `file`. What skipped rows took counts for the next one.

    Attributes:
        file: its bytes, decompressed, from the first one on.
        name: for messages.
        offsets: whether reading can start from an offset of `file`.
        ratio: bytes of the input per byte of `file`, as far as is known.
    """

    ratio = 1.0

    def __init__(self, file: BinaryIO, name: str, offsets: bool) -> None:
        self.file, self.name, self.offsets = file, name, offsets


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


class _Inflated(io.RawIOBase):
    """A decompressed stream.

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
        return True

    def readinto(self, buffer: Any) -> int:
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


class _OpenedCompressed(Opened):
    def __init__(self, raw: BinaryIO, name: str, compression: Compression) -> None:
        self._inflated = _Inflated(raw, name, compression)
        super().__init__(io.BufferedReader(self._inflated, BUFFER), name, False)

    @property
    def ratio(self) -> float:  # type: ignore[override]
        return self._inflated.ratio


@contextmanager
def open_source(source: "Source") -> Iterator[Opened]:
    """Open an input; errors of reading it name it.

    Raises: ValueError: it cannot be opened, or what it holds is damaged. OSError: reading failed.
    """
    at = source.place
    if isinstance(at, Stream) or source.format not in OF_ARROW:
        file = at.open()
    else:
        file = at.open_arrow()
    with file as raw, naming_failures(source.name):
        if source.compression is None:
            yield Opened(raw, source.name, not isinstance(at, Stream))
        else:
            yield _OpenedCompressed(raw, source.name, source.compression)


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
    stream, found = _Inflated(io.BytesIO(head), name, compression), b""
    piece = bytearray(256)  # the piece that the end of `head` cuts is lost
    with suppress(ValueError):
        while len(found) < HEAD and (count := stream.readinto(piece)):
            found += piece[:count]
    return found


def need_pyarrow(name: str) -> None:
    """Refuse to read an input if pyarrow is not installed.

    Raises: ImportError: it is not.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise ImportError(f'reading {name} needs pyarrow: pip install "nomicbert[parquet]"')
