"""A file or folder, local or by URL: what it is, its bytes, what it contains.

Where in the flow: `inputs.sources` turns what the user named into places, the formats read them.
Local paths need the standard library alone. `stores` reads URLs, with pyarrow.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Literal
from urllib.parse import unquote
from urllib.request import url2pathname

Kind = Literal["file", "folder"]

# Two characters at least: C:\ is no scheme.
_URL = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
# Files and folders with these first characters hold no input: markers, temporary files.
HIDDEN = (".", "_")


def is_url(name: str) -> bool:
    """Whether a name is a URL; "s3:/x" and "./s3://x" are local paths."""
    return _URL.match(name) is not None


def place(name: str) -> "Place":
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


class Place:
    """A file, a folder, or nothing yet.

    The methods raise ValueError for what the user can correct (it does not exist, access is
    denied), and OSError for a failure of the machine or the network.

    Attributes:
        name: as the user gave it, without passwords and connection options.
        path: in the file system that holds it.
        is_local: whether `path` is a path of this machine.
    """

    name: str
    path: str
    is_local: bool

    def kind(self) -> Kind | None:
        """What there is; None for nothing. Pipes and devices are files."""
        raise NotImplementedError

    def size(self) -> int:
        """Bytes of the file."""
        raise NotImplementedError

    def open(self) -> BinaryIO:
        """Open the file for reading: buffered, and seekable unless it is a pipe."""
        raise NotImplementedError

    def open_arrow(self) -> Any:
        """Open the file as a `pyarrow.NativeFile`, unbuffered: for readers that jump, as Parquet's.

        Needs pyarrow.
        """
        raise NotImplementedError

    def child(self, name: str) -> "Place":
        """The place of this relative path, with "/" as separator, in the folder."""
        raise NotImplementedError

    @property
    def identity(self) -> str:
        """Equal for two names of one file."""
        raise NotImplementedError

    def ends(self, n: int) -> bytes:
        """The first and the last n bytes of the file; all of it if it has at most 2n bytes."""
        with self.open() as file:
            first = file.read(n)
            behind = file.tell()
            file.seek(max(behind, file.seek(0, os.SEEK_END) - n))
            return first + file.read(n)

    def files(self) -> "list[Place]":
        """All files below the folder, sorted by relative path; links are followed.

        A name that begins with "." or "_" is hidden: such files, and all files below such folders,
        are left out.
        """
        return [found for _, found in sorted(self._walk(), key=lambda pair: pair[0])]

    def glob(self) -> "list[Place]":
        """The files and folders whose names match this name as a pattern, sorted.

        `*` and `?` stand for characters other than "/"; they match a hidden name only if their
        part of the pattern begins with its first character. `**` stands for any number of folders
        that are not hidden; a pattern with it finds files only. A name that exists as it is, or
        has no wildcards, finds itself.
        """
        if self.kind():
            return [self]
        if not self._is_pattern():
            return []
        base, parts = self._base()
        found = [base] if base.kind() == "folder" else []
        while parts and parts[0] != "**":
            part, *parts = parts
            found = [child for folder in found for child in folder._matching(part)]
            if parts:
                found = [child for child in found if child.kind() == "folder"]
        if parts:
            wanted = _regex(parts)
            pairs = [pair for folder in found for pair in folder._walk()]
            found = [child for relative, child in pairs if wanted.fullmatch(relative)]
        return sorted(found, key=lambda child: child.name)

    def _matching(self, part: str) -> "list[Place]":
        """The entries of the folder that match one part of a pattern."""
        if not has_wildcard(part):
            child = self.child(part)
            return [child] if child.kind() else []
        wanted = _regex([part])
        found = [(os.path.basename(child.path), child) for child in self._entries()]
        return [
            child
            for name, child in found
            if wanted.fullmatch(name) and (not name.startswith(HIDDEN) or part[0] == name[0])
        ]

    def _is_pattern(self) -> bool:
        """Whether wildcards in the name may stand for something else."""
        return has_wildcard(self.path)

    def _base(self) -> "tuple[Place, list[str]]":
        """The folder in front of the first wildcard, and the parts of the pattern behind it."""
        raise NotImplementedError

    def _entries(self) -> "list[Place]":
        """All entries of the folder, hidden ones too."""
        raise NotImplementedError

    def _walk(self) -> "Iterator[tuple[str, Place]]":
        """The files below the folder that are not hidden, with their relative paths."""
        raise NotImplementedError


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


def has_wildcard(text: str) -> bool:
    """Whether it holds `*` or `?`."""
    return "*" in text or "?" in text


def join(folder: str, name: str) -> str:
    """A relative path below a folder's name, which may end with a slash."""
    return f"{folder}{name}" if not folder or folder.endswith(("/", os.sep)) else f"{folder}/{name}"


def _regex(parts: list[str]) -> "re.Pattern[str]":
    """The paths that match the parts of a pattern; `**` stands for any number of folders."""
    written = []
    for i, part in enumerate(parts):
        last = i + 1 == len(parts)
        if part == "**":
            written.append(".*" if last else "(?:[^/]+/)*")
        else:
            text = re.escape(part).replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
            written.append(text if last else f"{text}/")
    return re.compile("".join(written), re.DOTALL)


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn what the user can correct into ValueError."""
    try:
        yield
    except OSError as error:
        message = f"cannot read {name}: {error.strerror or error}"
        correctable = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
        raise (ValueError if isinstance(error, correctable) else OSError)(message) from error
