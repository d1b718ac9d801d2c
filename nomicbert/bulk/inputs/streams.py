"""Standard input, and pipes with a name: inputs that cannot be opened like a file.

Where in the flow: `sources` puts a `Stream` where other sources have a `Place`.
"""

import os
import stat
from typing import BinaryIO, Literal

from nomicbert.bulk.inputs.formats import HEAD
from nomicbert.bulk.places import reading

STDIN = "-"


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
        self.name = self.identity = "standard input" if path == STDIN else path
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
        self._file: BinaryIO | None = None

    def kind(self) -> Literal["file"]:
        """What it is."""
        return "file"

    def size(self) -> int | None:
        """Bytes there are; None where that is unknown."""
        return None if self._size is None else self._size - self._begin

    def head(self) -> bytes:
        """The first bytes, which are read again later; at most `HEAD`, and what has come so far."""
        file = self._opened()
        return file.peek(HEAD)[:HEAD]  # type: ignore[attr-defined,no-any-return]

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

    def _opened(self) -> BinaryIO:
        if self._file is None:
            if not self.once:
                os.lseek(self._descriptor, self._begin, os.SEEK_SET)
            self._file = open(self._descriptor, "rb", HEAD, closefd=not self._keep)
        return self._file
