"""Places behind URLs: object stores and other file systems, by pyarrow or fsspec.

Where in the flow: `places.place` comes here with every URL that is not file://. Paths are taken
literally, as by the stores' own tools: `%20`, `#` and spaces are characters of the key.

Source: pyarrow.fs for s3, gs, abfs and hdfs; fsspec's registry for all other schemes.
"""

import errno
import io
import os
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from nomicbert.bulk.place import HIDDEN, Kind, Place, has_wildcard, join
from nomicbert.bulk.store_errors import hide_password, reason_of, store_errors
from nomicbert.errors import to_install

# Schemes of pyarrow's own file systems.
_ARROW = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")
_HTTP = ("http://", "https://")
# Connection options; a "?" before anything else is a wildcard or a character of the key.
_OPTIONS = re.compile(r"\?([\w-]+=[^&?]*(?:&[\w-]+=[^&?]*)*)$")
# Bytes of a request. A round trip to a store costs about as much as a MiB.
BUFFER = 4 << 20
# Google's library retries for 15 minutes by default.
_GS_SECONDS = "retry_limit_seconds=60"


def remote_place(url: str) -> "RemotePlace":
    """The place of a URL; see `places.place`."""
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    name = hide_password(f"{scheme}://{rest}")
    if scheme not in _ARROW:
        return RemotePlace(name, *_by_fsspec(name, f"{scheme}://{rest}"))
    options = _OPTIONS.search(rest)
    if options:
        rest = rest[: options.start()]
        name = name[: -len(options[0])]
    authority, _, key = rest.partition("/")
    if has_wildcard(authority) or not (authority or scheme in ("hdfs", "viewfs")):
        raise ValueError(f"{name}: wanted one bucket, and behind it the path: {scheme}://NAME/PATH")
    system, base = _by_pyarrow(name, scheme, authority, options[1] if options else "")
    return RemotePlace(name, system, join(base, key).rstrip("/") or base)


class RemotePlace(Place):
    """A path of a `pyarrow.fs.FileSystem`."""

    is_local = False

    def __init__(self, name: str, system: Any, path: str, info: Any = None) -> None:
        """`info` is the path's `pyarrow.fs.FileInfo`, if known from a listing."""
        self.name = name
        self.path = path
        self.system = system
        self._known = info

    def kind(self) -> Kind | None:
        """What there is; None for nothing."""
        return self._kind(self._info())

    def size(self) -> int:
        """Bytes of the file."""
        size = self._info().size
        if size is None:
            raise ValueError(f"cannot read {self.name}: its size is unknown: download it first")
        return int(size)

    def modified(self) -> int | None:
        """When the file was written, in ns by the store's clock; None if there is none."""
        stamp = self._info().mtime_ns
        return None if stamp is None else int(stamp)

    def open(self) -> BinaryIO:
        """Open the file for reading, buffered and seekable."""
        return io.BufferedReader(_Raw(self.name, self.open_arrow()), BUFFER)

    def open_arrow(self) -> Any:
        """Open the file as a `pyarrow.NativeFile`."""
        try:
            with store_errors(f"cannot read {self.name}"):
                return self.system.open_input_file(self.path)
        except ValueError:
            self._info()  # raises if it is not reached
            raise

    def child(self, name: str) -> "RemotePlace":
        """The place of this relative path in the folder."""
        return RemotePlace(join(self.name, name), self.system, join(self.path, name))

    @property
    def identity(self) -> str:
        """The name: stores have no links."""
        return self.name.rstrip("/")

    def _kind(self, info: Any) -> Kind | None:
        from pyarrow.fs import FileType

        if info.type == FileType.NotFound:
            return None
        return "folder" if info.type == FileType.Directory else "file"

    def _info(self) -> Any:
        if self._known is not None:
            return self._known
        with store_errors(f"cannot read {self.name}"):
            found = self.system.get_file_info(self.path)
            handler = getattr(self.system, "handler", None)  # of fsspec; gives no reason
            if handler is not None and self._kind(found) is None:
                try:
                    handler.fs.info(self.path)
                except FileNotFoundError as error:
                    if reason_of(error) is not error:
                        raise
            return found

    def _is_pattern(self) -> bool:
        """A web server has no listing, and a "?" begins its query."""
        return has_wildcard(self.path) and not self.name.lower().startswith(_HTTP)

    def _base(self) -> tuple[Place, list[str]]:
        parts = self.path.split("/")
        first = next(i for i, part in enumerate(parts) if has_wildcard(part))
        behind = parts[first:]
        name = "/".join(self.name.rstrip("/").split("/")[: -len(behind)]) + "/"
        return RemotePlace(name, self.system, "/".join(parts[:first])), behind

    def _entries(self) -> list[Place]:
        if self.system.type_name != "gcs":
            return [child for _, child in self._list(recursive=False)]
        # pyarrow lists no folders of Google's store, unless asked for all that is in them
        found: dict[str, Place] = {}
        for relative, child in self._list(recursive=True):
            first, _, below = relative.partition("/")
            found[first] = self.child(first) if below else child
        return [*found.values()]

    def _walk(self) -> Iterator[tuple[str, Place]]:
        for relative, child in self._list(recursive=True):
            if child.kind() == "file" and not any(
                part.startswith(HIDDEN) for part in relative.split("/")
            ):
                yield relative, child

    def _list(self, *, recursive: bool) -> list[tuple[str, Place]]:
        from pyarrow.fs import FileSelector

        with store_errors(f"cannot read {self.name}"):
            found = self.system.get_file_info(FileSelector(self.path, recursive=recursive))
        base = join(self.path, "")
        listed: list[tuple[str, Place]] = []
        for info in found:
            if not info.path.startswith(base):
                raise ValueError(f"{self.name} lists {info.path}, which is not below {base}")
            relative = info.path[len(base) :].lstrip("/")
            name = join(self.name, relative)
            listed.append((relative, RemotePlace(name, self.system, info.path, info)))
        return listed


class _Raw(io.RawIOBase):
    """An unbuffered file over a `pyarrow.NativeFile`, whose errors name it."""

    def __init__(self, name: str, file: Any) -> None:
        self.name = name
        self._file = file
        with store_errors(f"cannot read {name}"):
            self._size = int(file.size())
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._at >= self._size:
            return 0
        with store_errors(f"cannot read {self.name}"):
            self._file.seek(self._at)
            count = int(self._file.readinto(buffer))
        self._at += count
        return count

    def readall(self) -> bytes:
        # the inherited one makes a request for every 8 KiB
        rest = bytearray(max(0, self._size - self._at))
        view, filled = memoryview(rest), 0
        while count := self.readinto(view[filled:]):
            filled += count
        return bytes(view[:filled])

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        # pyarrow's files cannot go behind their end, Python's can
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, f"cannot go to byte {start + offset} of {self.name}")
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        if not self.closed:
            self._file.close()
            super().close()


def _by_pyarrow(name: str, scheme: str, authority: str, options: str) -> tuple[Any, str]:
    """The file system, and the path of the bucket in it."""
    fs = _pyarrow_fs(name)
    if scheme in ("gs", "gcs") and "retry_limit_seconds" not in options:
        options = "&".join(filter(None, [options, _GS_SECONDS]))
    bucket = f"{scheme}://{authority}"
    with store_errors(f"cannot open {name}"):
        try:
            system, base = fs.FileSystem.from_uri(f"{bucket}?{options}" if options else bucket)
        except NotImplementedError:  # this pyarrow was built without the store
            return _by_fsspec(name, bucket)
    return system, base


def _by_fsspec(name: str, url: str) -> tuple[Any, str]:
    """The file system, and the path of the URL in it."""
    fs = _pyarrow_fs(name)
    scheme = url.partition("://")[0]
    try:
        from fsspec.core import url_to_fs
        from fsspec.registry import known_implementations, registry
    except ImportError as error:
        raise ImportError(f"{name} needs fsspec: pip install fsspec") from error
    if scheme not in known_implementations and scheme not in registry:
        known = "s3, gs, abfs, hf, https"
        raise ValueError(
            f"{name}: unknown scheme {scheme}://; there are {known} and those of fsspec"
        )
    try:
        with store_errors(f"cannot open {name}"):
            system, path = url_to_fs(url)
    except ImportError as error:  # its message names the package
        raise ImportError(f"{name} needs another package: {error}") from error
    return fs.PyFileSystem(fs.FSSpecHandler(system)), path


def _pyarrow_fs(name: str) -> Any:
    try:
        import pyarrow.fs as fs
    except ImportError as error:
        raise ImportError(f"{name} needs pyarrow: {to_install('parquet')}") from error
    return fs
