"""A lock for stores that have none: an object that names its writer and is renewed by it.

Where in the flow: `remote_folder` holds one for each lock of a job. The age of a lock is the
difference of two times that the store itself gave: machines need not agree on the time.

Two processes that start within a second can both see no lock. Each writes its own, and reads again
after a pause: the last one written holds. This cannot exclude a process that is stopped for longer
than the pause between its look and its write, because pyarrow has no conditional write. The one
that is robbed notices when it renews its lock, at the latest; meanwhile `RemoteFolder.write`
replaces no object, and the chain of footers shows rows that were written twice.
"""

import json
import logging
import math
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from nomicbert.bulk.job.locked import Locked
from nomicbert.bulk.store_errors import store_errors
from nomicbert.bulk.stores import RemotePlace

logger = logging.getLogger(__name__)

# Seconds after which a lock that is not renewed counts as left behind.
STALE = 120
# Seconds between two renewals.
RENEW = 30
# Seconds between writing a lock and reading it again.
PAUSE = 1


class RemoteLock:
    """Holds a lock object as a context manager."""

    def __init__(self, folder: str, file: RemotePlace) -> None:
        """`folder` is its name in messages."""
        self._folder = folder
        self._file = file
        self._token = secrets.token_hex(8)
        self._turn = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="nomicbert-lock", daemon=True)
        self._renewed = 0.0

    def __enter__(self) -> "RemoteLock":
        """Take the lock.

        Raises: Locked: another process holds it. OSError, ValueError: the store refuses.
        """
        holder = self._read()
        if holder is not None and not _has_ended(holder) and (left := STALE - self._age()) > 0:
            raise Locked(
                f"another process is writing to {self._folder} ({_named(holder)}): wait for its "
                f"end, or choose another folder; if it was killed, wait for {left:.0f} s"
            )
        self._write()
        time.sleep(PAUSE)
        self._renew()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Delete the object, unless another process has taken the lock over."""
        self._ended.set()
        self._thread.join()
        try:
            if self._is_own(self._read()):
                self._delete(self._file)
        except (OSError, ValueError) as problem:  # the vectors are safe without it
            logger.info("the lock stays for %d s: %s", STALE, problem)

    def assure(self) -> None:
        """See that the lock is still held, if the last renewal is long ago.

        Raises: Locked: it is not. OSError, ValueError: the store refuses.
        """
        # not time.monotonic, which stands still while the machine sleeps
        if not 0 <= time.time() - self._renewed < 2 * RENEW:
            self._renew()

    def _keep(self) -> None:
        while not self._ended.wait(RENEW):
            try:
                self._renew()
            except Locked:
                return  # `assure` finds it, too
            except (OSError, ValueError) as problem:
                logger.info("the lock could not be renewed: %s", problem)

    def _renew(self) -> None:
        with self._turn:
            holder = self._read()
            if not self._is_own(holder):
                self._renewed = 0.0
                raise Locked(
                    f"another process is writing to {self._folder} ({_named(holder or {})}), and "
                    "holds the lock now: wait for its end"
                )
            self._write()

    def _is_own(self, holder: dict[str, Any] | None) -> bool:
        return holder is not None and holder.get("token") == self._token

    def _read(self) -> dict[str, Any] | None:
        """Who holds the lock; None if nobody does, nothing if it cannot be understood."""
        with store_errors(f"cannot read {self._file.name}"):
            try:
                with self._file.system.open_input_file(self._file.path) as file:
                    raw = file.read()
            except FileNotFoundError:
                return None
        try:
            found = json.loads(raw)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self) -> None:
        """Write the lock object, which sets its time."""
        about = {"token": self._token, "host": socket.gethostname(), "process": os.getpid()}
        now = time.time()
        self._put(self._file, json.dumps({**about, "machine": _machine()}).encode())
        self._renewed = now

    def _age(self) -> float:
        """Seconds since the lock object was written; infinite if it is gone."""
        beside = f".{self._token}"
        probe = RemotePlace(self._file.name + beside, self._file.system, self._file.path + beside)
        self._put(probe, b"")
        now, then = probe.modified(), self._file.modified()
        self._delete(probe)
        return math.inf if now is None or then is None else (now - then) / 1e9

    def _put(self, file: RemotePlace, content: bytes) -> None:
        with (
            store_errors(f"cannot write {file.name}"),
            file.system.open_output_stream(file.path) as stream,
        ):
            stream.write(content)

    def _delete(self, file: RemotePlace) -> None:
        with store_errors(f"cannot delete {file.name}"), suppress(FileNotFoundError):
            file.system.delete_file(file.path)


def _machine() -> str | None:
    """What process ids belong to: a start of a kernel and a namespace; None if it is not known.

    A host's name is not enough: containers on two machines can have the same one.
    """
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{start} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return None


def _has_ended(holder: dict[str, Any]) -> bool:
    """Whether a lock's process ran on this machine and has ended."""
    machine, process = _machine(), holder.get("process")
    if machine is None or holder.get("machine") != machine or not isinstance(process, int):
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False  # another user's
    return False


def _named(holder: dict[str, Any]) -> str:
    if "process" not in holder:
        return "which left no name"
    return f"process {holder['process']} on {holder.get('host')}"
