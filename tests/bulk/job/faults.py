"""A process that dies at a chosen system call, and what a power failure then leaves of its files.

A file's bytes are safe once it was fsynced, names once their folder was. After a power failure the
rest may be there or not. Three cases are tried: all such names are lost; only the oldest change of
a name is lost; names stay and bytes are lost.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nomicbert.bulk import output as outputs

# What the death leaves behind. KILLED: all that was written, as the system lives on.
KILLED, NAMES_LOST, OLDEST_LOST, BYTES_LOST = "killed", "names lost", "oldest lost", "bytes lost"
OUTCOMES = (KILLED, NAMES_LOST, OLDEST_LOST, BYTES_LOST)
DEAD = 9


class Disk:
    """Counts the steps of this process that change a folder, and dies at one of them.

    A step is before or after an fsync, a rename or an unlink, or before, in the middle of, or after
    a write.

    Attributes:
        steps: names of the steps so far.
    """

    def __init__(self, folder: Path, shadow: Path, die_at: int = -1, outcome: str = KILLED) -> None:
        """`shadow`: a folder on the same disk, for links to what is safe."""
        self.steps: list[str] = []
        self._folder, self._shadow = folder, shadow
        self._die_at, self._outcome = die_at, outcome
        # Bytes that are safe, by inode.
        self._safe: dict[int, int] = {}
        # Names that have changed since the folder was safe.
        self._changed: list[str] = []
        self._fsync, self._replace, self._unlink = os.fsync, os.replace, os.unlink
        for path in self._files():
            self._safe[path.stat().st_ino] = path.stat().st_size
        self._keep_names()

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Put the steps around the functions that the package calls."""
        patch.setattr(os, "fsync", self._around("fsync", self._fsync_and_note))
        patch.setattr(os, "replace", self._around("rename", self._replace))
        patch.setattr(os, "unlink", self._around("unlink", self._unlink))
        write = outputs._NamedFile.write

        def write_halves(file: Any, data: Any) -> int:
            self.step("before write")
            middle = len(data) // 2
            # a raw write may be short: its caller writes the rest
            done = write(file, memoryview(data)[:middle] if middle else data)
            self.step("in write" if middle else "after write")
            return done

        patch.setattr(outputs._NamedFile, "write", write_halves)
        # small, so that a part takes several writes
        patch.setattr(outputs, "BUFFER", 1024)

    def step(self, name: str) -> None:
        """Die, if this is the step."""
        self.steps.append(name)
        if len(self.steps) - 1 == self._die_at:
            self._leave()
            os._exit(DEAD)

    def _around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            if name == "unlink" and not os.path.lexists(args[0]):
                return function(*args, **keywords)  # changes nothing
            self.step(f"before {name}")
            found = function(*args, **keywords)
            if name != "fsync":
                self._changed.append(Path(args[-1]).name)
            self.step(f"after {name}")
            return found

        return call

    def _fsync_and_note(self, handle: int) -> None:
        self._fsync(handle)
        found = os.fstat(handle)
        if stat.S_ISDIR(found.st_mode):
            if self._folder.exists() and found.st_ino == self._folder.stat().st_ino:
                self._keep_names()
        else:
            self._safe[found.st_ino] = found.st_size

    def _files(self) -> list[Path]:
        return list(self._folder.iterdir()) if self._folder.exists() else []

    def _keep_names(self) -> None:
        for path in self._shadow.iterdir():
            self._unlink(path)
        for path in self._files():
            os.link(path, self._shadow / path.name)
        self._changed = []

    def _leave(self) -> None:
        """Make the folder what it would be."""
        if self._outcome == KILLED:
            return
        if self._outcome == NAMES_LOST:
            for path in self._files():
                self._unlink(path)
            for path in self._shadow.iterdir():
                os.link(path, self._folder / path.name)
        if self._outcome == OLDEST_LOST and self._changed:
            name = self._changed[0]
            if (self._folder / name).exists():
                self._unlink(self._folder / name)
            if (self._shadow / name).exists():
                os.link(self._shadow / name, self._folder / name)
        for path in self._files():
            safe = self._safe.get(path.stat().st_ino, 0)
            if path.stat().st_size > safe:
                os.truncate(path, safe)


def dies(work: Callable[[], object], log: Path) -> int:
    """Run `work` in a child process: its exit status; what it raised is in `log`."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException as error:
            log.write_text(repr(error))
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
