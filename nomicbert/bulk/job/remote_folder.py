"""The folder of a job in an object store: S3 and what speaks its protocol, Google's, Azure's.

Where in the flow: `folder.open_folder` makes one for a URL. A store has no rename and needs none:
an object appears when its upload is complete. But an upload that an exception ends counts as
complete. So a file is written to this machine's disk first, and uploaded by a thread, which no
signal interrupts. A crash in the middle leaves nothing to be seen in S3 and Google's store, and an
empty object in Azure's, which counts as missing here. What was sent stays in S3, and is charged
for, until a lifecycle rule (AbortIncompleteMultipartUpload) deletes it.
"""

import errno
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

from nomicbert.bulk.job.locked import Locked
from nomicbert.bulk.job.remote_lock import RemoteLock
from nomicbert.bulk.place import Place
from nomicbert.bulk.store_errors import store_errors
from nomicbert.bulk.stores import RemotePlace

# pyarrow's file systems whose objects appear whole, with the time when they were written.
STORES = ("s3", "gcs", "abfs")
# Bytes that pyarrow is given at once.
CHUNK = 8 << 20


class RemoteFolder:
    """A prefix in a bucket; see `folder.Folder`."""

    def __init__(self, where: Place) -> None:
        """Nothing is asked of the store yet.

        Raises: ValueError: this is no object store.
        """
        if not isinstance(where, RemotePlace) or where.system.type_name not in STORES:
            raise ValueError(
                f"parts cannot be written to {where.name}: name a folder, or a URL of s3://, gs:// "
                "or abfs://, and copy the parts from there"
            )
        self.name = where.name
        self._place = where
        self._locks: list[RemoteLock] = []

    def make(self) -> None:
        """There is nothing to create; but the name may be an object's.

        Raises: ValueError: it is.
        """
        if self._place.kind() == "file":
            raise ValueError(
                f"the output {self.name} is a file, but parts need a folder: name another one"
            )

    def names(self) -> list[str]:
        """All names directly below the prefix, without those of empty objects."""
        return [info.base_name for info in self._list() if info.size != 0]

    def open(self, name: str) -> BinaryIO:
        """Open an object for reading."""
        return self._place.child(name).open()

    @contextmanager
    def write(self, name: str) -> Iterator[BinaryIO]:
        """Write a temporary file, and upload it.

        Raises:
            Locked: the object exists, or another process has taken over a lock: two are writing.
            OSError, ValueError: the disk is full, or the store refuses.
        """
        with tempfile.TemporaryFile(prefix="nomicbert-") as file:
            try:
                yield file
                file.flush()
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise OSError(
                    error.errno,
                    f"cannot write {self.name}: {name}: {tempfile.gettempdir()}, where parts are "
                    "written first, is full: let TMPDIR name another folder",
                ) from error
            self._upload(file, self._place.child(name))

    def remove(self, name: str) -> None:
        """Delete an object; nothing if there is none."""
        target = self._place.child(name)
        with store_errors(f"cannot delete {target.name}"), suppress(FileNotFoundError):
            target.system.delete_file(target.path)

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold a lock object."""
        with RemoteLock(self.name, self._place.child(name)) as lock:
            self._locks.append(lock)
            try:
                yield
            finally:
                self._locks.remove(lock)

    def sweep(self, prefix: str) -> None:
        """Delete the empty objects that writers left when they died."""
        for info in self._list():
            if info.size == 0 and info.base_name.startswith(prefix):
                self.remove(info.base_name)

    def _list(self) -> list[Any]:
        from pyarrow.fs import FileSelector

        with store_errors(f"cannot list {self.name}"):
            selector = FileSelector(self._place.path, allow_not_found=True)
            return list(self._place.system.get_file_info(selector))

    def _upload(self, file: BinaryIO, target: RemotePlace) -> None:
        for lock in self._locks:
            lock.assure()
        if target.kind() == "file" and target.size():
            raise Locked(
                f"{target.name} was written by another process: only one may write at a time; "
                "run again when it has ended"
            )
        with ThreadPoolExecutor(1) as pool:  # its end waits for the upload, whatever is raised here
            pool.submit(int).result()  # an interrupt while a thread starts would lose it
            pool.submit(self._send, file, target).result()

    def _send(self, file: BinaryIO, target: RemotePlace) -> None:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        try:
            with store_errors(f"cannot write {target.name}"):
                with target.system.open_output_stream(target.path) as stream:
                    while chunk := file.read(CHUNK):
                        stream.write(chunk)
                if (arrived := target.size()) != size:
                    raise OSError(f"{arrived:,} of {size:,} bytes have arrived")
        except BaseException:
            # closing the stream may have published a part of it
            with suppress(OSError, ValueError):
                self.remove(os.path.basename(target.path))
            raise
