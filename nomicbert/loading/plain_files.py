"""Check a file of a checkpoint before it is opened: regular, not too large, and itself.

Reading a FIFO waits for ever, /dev/zero never ends, a sparse file is larger than memory, and a
pointer of Git LFS is valid text. So every file of a checkpoint passes here first.
"""

import os
import stat
from pathlib import Path

from nomicbert.errors import NomicBertError

# Largest size of a settings file in bytes; those of known checkpoints are ten times smaller.
SETTINGS_LIMIT = 16 * 2**20
# Every pointer begins so. Source: the specification of Git LFS.
POINTER = b"version https://git-lfs.github.com/spec/"
POINTER_LIMIT = 1024
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_file(path: Path, most: int | None, error: type[NomicBertError]) -> int:
    """Check a file that another library will open; a link counts as what it points to.

    Args:
        path: of the file.
        most: bytes that it may have, or None.
        error: class of the error to raise.

    Returns: its size in bytes.
    Raises: `error`: missing, not readable, not a regular file, too large, or a pointer of Git LFS.
    """
    size = _size(path, most, error)
    if size < POINTER_LIMIT:
        _content(path, error)
    return size


def read_file(path: Path, most: int, error: type[NomicBertError]) -> bytes:
    """The bytes of a file; arguments and errors are those of `check_file`."""
    _size(path, most, error)
    return _content(path, error)


def _size(path: Path, most: int | None, error: type[NomicBertError]) -> int:
    try:
        found = os.stat(path)
    except (OSError, ValueError) as cause:
        raise error(_why(path, cause)) from cause
    if not stat.S_ISREG(found.st_mode):
        kind = KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise error(f"{path} is {kind}, not a file")
    if most is not None and found.st_size > most:
        raise error(
            f"{path} has {found.st_size:,} bytes, but no file of this kind has more than {most:,}: "
            "the copy is damaged"
        )
    return found.st_size


def _content(path: Path, error: type[NomicBertError]) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as cause:
        raise error(_why(path, cause)) from cause
    if content.startswith(POINTER):
        raise error(
            f"{path} is a pointer of Git LFS, not the file itself: run 'git lfs pull' in its "
            "repository, or download the file"
        )
    return content


def _why(path: Path, cause: OSError | ValueError) -> str:
    if isinstance(cause, FileNotFoundError):
        if os.path.lexists(path):
            return f"{path} is a link to a file that is gone: fetch it again"
        return f"{path} is missing: is {path.parent} a checkpoint folder?"
    if isinstance(cause, OSError):
        return f"{path} cannot be read: {cause.strerror}"
    # a NUL character, or a surrogate that no file system encodes
    return f"{str(path)!a} is not a valid name of a file: {cause}"
