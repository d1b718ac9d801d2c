"""A local path or a URL -> a file or folder: what it is, its bytes, what it contains.

Where in the flow: `inputs.sources` turns what the user named into places, the formats read them.
Local paths need the standard library alone. `stores` reads URLs, with pyarrow.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO
from urllib.parse import unquote
from urllib.request import url2pathname

from nomicbert.bulk.place import HIDDEN, Kind, Place, has_wildcard, join

# Two characters at least: C:\ is no scheme.
_URL = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)


def is_url(name: str) -> bool:
    """Whether a name is a URL; "s3:/x" and "./s3://x" are local paths."""
    return _URL.match(name) is not None


def place(name: str) -> Place:
    """The place of a local path or a URL. Nothing is read yet.

    Raises: ValueError: a URL of an unknown scheme, or without a bucket or host. ImportError: a
        package that this scheme needs is missing; the message names it.
    """
    found = _URL.match(name)
    if found is None:
        return LocalPlace(name, name)
    if found[1].lower() == "file":
        host, _, path = name[found.end() :].partition("/")
        if host not in ("", "localhost"):
            raise ValueError(f"{name}: a file URL has three slashes: file:///{host}/{path}")
        return LocalPlace(name, url2pathname(unquote(f"/{path}")))
    from nomicbert.bulk.stores import remote_place

    return remote_place(name)


class LocalPlace(Place):
    """A path of this machine."""

    is_local = True

    def __init__(self, name: str, path: str) -> None:
        """`name` is what the user gave: the path, or its file URL."""
        self.name = name
        self.path = path

    def kind(self) -> Kind | None:
        """What there is; None for nothing, also for a link to nothing."""
        with reading(self.name):
            try:
                os.stat(self.path)
            except (FileNotFoundError, NotADirectoryError):
                return None
            return "folder" if os.path.isdir(self.path) else "file"

    def size(self) -> int:
        """Bytes of the file; 0 for a pipe."""
        with reading(self.name):
            return os.stat(self.path).st_size

    def open(self) -> BinaryIO:
        """Open the file for reading: buffered, and seekable unless it is a pipe."""
        with reading(self.name):
            return open(self.path, "rb")

    def open_arrow(self) -> Any:
        """Open the file as a `pyarrow.NativeFile`."""
        import pyarrow as pa

        with reading(self.name):
            return pa.OSFile(self.path)

    def child(self, name: str) -> "LocalPlace":
        """The place of this relative path, with "/" as separator, in the folder."""
        return LocalPlace(join(self.name, name), os.path.join(self.path, *name.split("/")))

    @property
    def identity(self) -> str:
        """The path without links."""
        return os.path.realpath(self.path)

    def _base(self) -> "tuple[Place, list[str]]":
        name = self.name.replace(os.sep, "/")
        parts = name.split("/")
        first = next(i for i, part in enumerate(parts) if has_wildcard(part))
        head = "/".join(parts[:first]) + "/" if first else ""
        return (place(head) if head else LocalPlace("", os.curdir)), parts[first:]

    def _entries(self) -> list[Place]:
        with reading(self.name):
            return [self.child(name) for name in os.listdir(self.path)]

    def _walk(self) -> "Iterator[tuple[str, Place]]":
        return self._walk_below("", ())

    def _walk_below(self, prefix: str, above: tuple[str, ...]) -> "Iterator[tuple[str, Place]]":
        """`above` are the folders entered so far: a link to one of them is not followed."""
        here = self.identity
        if here in above:
            return
        for child in self._entries():
            name = os.path.basename(child.path)
            if name.startswith(HIDDEN):
                continue
            if os.path.isdir(child.path):
                inner = LocalPlace(child.name, child.path)
                yield from inner._walk_below(f"{prefix}{name}/", (*above, here))
            elif os.path.isfile(child.path) or os.path.islink(child.path):
                yield prefix + name, child


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn what the user can correct into ValueError."""
    try:
        yield
    except OSError as error:
        message = f"cannot read {name}: {error.strerror or error}"
        correctable = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
        if isinstance(error, correctable):
            raise ValueError(message) from error
        raise OSError(error.errno, message) from error
