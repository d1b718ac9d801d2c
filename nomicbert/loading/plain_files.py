"""Refuse what cannot be a file of a checkpoint, before it is opened."""

import stat
from pathlib import Path

from nomicbert.errors import NomicBertError


def check_file(path: Path, most: int, error: type[NomicBertError]) -> None:
    """Refuse a path that is no regular file of at most `most` bytes.

    Raises: `error`: a folder, device, pipe, link to nowhere, or a file that is too large.
    """
    try:
        found = path.stat()
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror}") from problem
    if not stat.S_ISREG(found.st_mode):
        raise error(f"{path} is not a regular file")
    if found.st_size > most:
        raise error(f"{path} has {found.st_size:,} bytes, more than {most:,}")
