"""The folder of a job: files that appear whole and survive a power failure, and its locks.

Where in the flow: all that a job writes goes through a Folder. `LocalFolder` is a folder of a file
system: temporary file, fsync, rename, fsync of the folder. `remote_folder` is one of an object
store.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from nomicbert.bulk.output import open_output


class Locked(ValueError):
    """Another process holds the lock."""


class Folder(Protocol):
    """What a job needs of its folder.

    Attributes:
        name: for messages.
    """

    name: str

    def make(self) -> None:
        """Create the folder if it does not exist.

        Raises: OSError: it cannot be created. ValueError: it is a file.
        """

    def names(self) -> list[str]:
        """Names of all files and folders in it, hidden ones included; none if there is no folder.

        Raises: ValueError: it is a file. OSError: it cannot be read.
        """

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading; seekable.

        Raises: OSError: missing or not readable.
        """

    def write(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Write a file, which appears whole and durable when the block succeeds, else not at all.

        Raises: OSError, ValueError: it cannot be written; the message names it.
        """

    def remove(self, name: str) -> None:
        """Delete a file, durably; nothing if there is none."""

    def lock(self, name: str) -> AbstractContextManager[None]:
        """Hold a lock, which ends with this process at the latest.

        Raises: Locked: another process holds it.
        """

    def sweep(self, prefix: str) -> None:
        """Delete the temporary files of writers that died, of names that begin with `prefix`."""


class LocalFolder:
    """A folder of a file system of Linux or macOS."""

    def __init__(self, path: str) -> None:
        """`path`: it need not exist."""
        self.name = path
        self._path = Path(path)

    def make(self) -> None:
        """Create the folder and its parents, durably."""
        missing = [path for path in (self._path, *self._path.parents) if not path.exists()]
        for path in reversed(missing):
            try:
                path.mkdir(exist_ok=True)
                sync_folder(path.parent)
            except OSError as error:
                raise OSError(f"cannot create the folder {path}: {error.strerror}") from error

    def names(self) -> list[str]:
        """All names in it."""
        try:
            return os.listdir(self._path)
        except FileNotFoundError:
            return []
        except NotADirectoryError as error:
            raise ValueError(
                f"the output {self.name} is a file, but parts need a folder: name another one"
            ) from error
        except OSError as error:
            raise OSError(f"cannot read the folder {self.name}: {error.strerror}") from error

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading."""
        return open(self._path / name, "rb")

    @contextmanager
    def write(self, name: str) -> Iterator[BinaryIO]:
        """Temporary file, fsync, rename, fsync of the folder."""
        with open_output(str(self._path / name)) as file:
            yield file
        sync_folder(self._path)

    def remove(self, name: str) -> None:
        """Unlink, fsync of the folder."""
        try:
            os.unlink(self._path / name)
        except FileNotFoundError:
            return
        except OSError as error:
            raise OSError(f"cannot delete {self._path / name}: {error.strerror}") from error
        sync_folder(self._path)

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """An flock, with the holder's process in the file for the message of others."""
        import fcntl  # missing on Windows

        try:
            file = open(self._path / name, "a+b", buffering=0)
        except OSError as error:
            raise OSError(f"cannot write into {self.name}: {error.strerror}") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                holder = file.read(200).decode(errors="replace").strip() or "just started"
                raise Locked(
                    f"another process is writing to {self.name} ({holder}): wait for its end, or "
                    "choose another folder"
                ) from error
            except OSError as error:
                raise OSError(
                    f"cannot lock {self.name}: {error.strerror}; its file system must support "
                    "flock, else two jobs could write to it"
                ) from error
            with suppress(OSError):  # a full disk: only the message of others needs it
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            yield

    def sweep(self, prefix: str) -> None:
        """The temporary files of `open_output`."""
        for name in self.names():
            if name.startswith(f".{prefix}") and name.endswith(".tmp"):
                self.remove(name)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable.

    Raises: OSError: the message names the folder.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise OSError(f"cannot write into {path}: {error.strerror}") from error


def open_folder(output: str) -> Folder:
    """The folder of an output path or URL."""
    if os.name != "posix":
        raise ValueError("a folder of parts needs Linux or macOS: write to one file instead")
    return LocalFolder(output)
