"""Files and folders by path."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal


@dataclass(frozen=True, slots=True)
class Place:
    """A file or a folder.

    Attributes:
        name: its path.
    """

    name: str

    @property
    def is_local(self) -> bool:
        """Whether it is a path of this machine."""
        return True

    def kind(self) -> Literal["file", "folder"] | None:
        """What is there."""
        if os.path.isdir(self.name):
            return "folder"
        return "file" if os.path.exists(self.name) else None

    def size(self) -> int:
        """Bytes of the file."""
        return os.path.getsize(self.name)

    def open(self) -> BinaryIO:
        """Open the file for reading, buffered and seekable."""
        return open(self.name, "rb")

    def child(self, name: str) -> "Place":
        """A file or folder inside this folder."""
        return Place(os.path.join(self.name, name))

    def files(self) -> list["Place"]:
        """The files of the folder and those below, sorted; hidden ones are left out."""
        found = []
        for folder, folders, names in os.walk(self.name):
            folders[:] = [name for name in folders if not name.startswith((".", "_"))]
            found += [os.path.join(folder, n) for n in names if not n.startswith((".", "_"))]
        return [Place(path) for path in sorted(found)]

    def glob(self) -> list["Place"]:
        """The files and folders that match the name as a pattern."""
        import glob

        return [Place(str(Path(path))) for path in sorted(glob.glob(self.name, recursive=True))]


def place(name: str) -> Place:
    """The place of a name."""
    return Place(name)
