"""Standard input, and pipes with a name: inputs that cannot be opened like a file.

Where in the flow: `sources` puts a `Stream` where other sources have a `Place`.
"""

import io
import os
import stat
from typing import Any, BinaryIO, Literal

from nomicbert.bulk.inputs.formats import HEAD, is_decided
from nomicbert.bulk.places import reading

STDIN = "-"


class _ReadAhead(io.RawIOBase):
    """A pipe, some bytes of which have been read already."""

    def __init__(self, file: io.FileIO) -> None:
        super().__init__()
        self._file, self._ahead, self._given = file, b"", 0

    def head(self) -> bytes:
        """Its first bytes: `HEAD`, or as many as decide the format."""
        while len(self._ahead) < HEAD and not is_decided(self._ahead):
            piece = self._file.read(HEAD - len(self._ahead))
            if not piece:
                break
            self._ahead += piece
        return self._ahead

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Fill a buffer as far as there are bytes."""
        ready = self._ahead[self._given : self._given + len(buffer)]
        if not ready:
            return self._file.readinto(buffer)
        buffer[: len(ready)] = ready
        self._given += len(ready)
        return len(ready)

    def close(self) -> None:
        """Close the pipe too."""
        self._file.close()
        super().close()


class Stream:
    """Standard input or a named pipe.

    Attributes:
        name: for messages.
        identity: equal for two names of one input.
        once: whether it can be read only once; standard input that comes from a file cannot only.
    """

    is_local = True

    def __init__(self, path: str) -> None:
        """Open it.

        Raises: ValueError: it does not exist, is closed, or access is denied. OSError: opening
            failed.
        """
        self.name = "standard input" if path == STDIN else path
        self.identity = os.path.realpath("/dev/stdin" if path == STDIN else path)
        if path == STDIN:
            self._descriptor, self._keep = 0, True
        else:
            with reading(path):
                self._descriptor, self._keep = os.open(path, os.O_RDONLY), False
        try:
            found = os.fstat(self._descriptor)
        except OSError as error:  # standard input of a process that was started without one
            raise ValueError(f"cannot read {self.name}: {error.strerror}") from error
        self.once = not stat.S_ISREG(found.st_mode)
        self._size = None if self.once else found.st_size
        self._begin = 0 if self.once else os.lseek(self._descriptor, 0, os.SEEK_CUR)
        self._ahead: _ReadAhead | None = None
        self._file: io.BufferedReader | None = None

    def kind(self) -> Literal["file"]:
        """What it is."""
        return "file"

    def size(self) -> int | None:
        """Bytes there are; None where that is unknown."""
        return None if self._size is None else self._size - self._begin

    def head(self) -> bytes:
        """The first bytes, which are read again later.

        At most `HEAD`; of a pipe as many as decide its format, however they are written to it.
        """
        file = self._opened()
        return self._ahead.head() if self._ahead else file.peek(HEAD)[:HEAD]

    def open(self) -> BinaryIO:
        """The file, at its start.

        Raises: ValueError: it can be read only once, and has been.
        """
        file = self._opened()
        if file.closed:
            raise ValueError(f"{self.name} can be read only once")
        if not self.once:
            self._file = None
        return file

    def _opened(self) -> io.BufferedReader:
        if self._file is None:
            if not self.once:
                os.lseek(self._descriptor, self._begin, os.SEEK_SET)
            file = io.FileIO(self._descriptor, closefd=not self._keep)
            self._ahead = _ReadAhead(file) if self.once else None
            self._file = io.BufferedReader(self._ahead or file, HEAD)
        return self._file
