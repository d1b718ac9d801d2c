"""A file or folder, wherever it is: the interface, and names with wildcards.

Where in the flow: `places` makes places of this machine, `stores` those of URLs.
"""

import os
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal

Kind = Literal["file", "folder"]

# Files and folders with these first characters hold no input: markers, temporary files.
HIDDEN = (".", "_")


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
