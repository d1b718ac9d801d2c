"""The folder of a job in S3: objects appear whole or not at all, and one process writes."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nomicbert.bulk.job import remote_lock
from nomicbert.bulk.job.folder import LocalFolder, open_folder
from nomicbert.bulk.job.locked import Locked
from nomicbert.bulk.job.remote_folder import RemoteFolder
from tests.support.s3 import S3Server

# Bytes of several of pyarrow's own blocks (10 MB) and of several CHUNKs.
LARGE = 25 << 20


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_lock, "PAUSE", 0)


@pytest.fixture
def bucket(s3: S3Server) -> str:
    return s3.bucket()


@pytest.fixture
def folder(s3: S3Server, bucket: str) -> RemoteFolder:
    found = open_folder(s3.url(f"{bucket}/job"))
    assert isinstance(found, RemoteFolder)
    found.make()
    return found


def put(folder: RemoteFolder, name: str, content: bytes) -> None:
    with folder.write(name) as file:
        file.write(content)


def get(folder: RemoteFolder, name: str) -> bytes:
    with folder.open(name) as file:
        return file.read()


NAMES = [
    "part-00000-000000.parquet",
    "_manifest.json",
    ".x",
    "a b",
    "100%",
    "x%20y",
    "a#b",
    "größe",
]


@pytest.mark.parametrize("where", ["job", "a b/ü#1/50%", ""])
def test_files(s3: S3Server, bucket: str, where: str) -> None:
    folder = open_folder(s3.url(f"{bucket}/{where}"))
    folder.make()
    assert folder.names() == []
    for name in NAMES:
        put(folder, name, name.encode() * 3)
    s3.put(f"{bucket}/{where}/below/x.txt".replace("//", "/"), b"x")
    assert sorted(folder.names()) == sorted([*NAMES, "below"])
    for name in NAMES:
        assert get(folder, name) == name.encode() * 3
        assert s3.get(f"{bucket}/{where}/{name}".replace("//", "/")) == name.encode() * 3
    folder.remove("a b")
    folder.remove("a b")
    folder.sweep("part-")
    assert sorted(folder.names()) == sorted({*NAMES, "below"} - {"a b"})
    assert folder.name == f"s3://{bucket}/{where}"


def test_a_file_is_read_and_written_anywhere(folder: RemoteFolder) -> None:
    with folder.write("x") as file:
        file.write(b"0123456789")
        file.seek(2)
        file.write(b"two")
    with folder.open("x") as file:
        file.seek(-8, os.SEEK_END)
        assert file.read(3) == b"two"


def test_all_of_a_large_file_arrives(folder: RemoteFolder, seed: int) -> None:
    content = random.Random(seed).randbytes(LARGE)
    put(folder, "x", content)
    assert get(folder, "x") == content


def test_more_names_than_one_answer_holds(s3: S3Server, bucket: str, folder: RemoteFolder) -> None:
    names = [f"part-00000-{number:06}.parquet" for number in range(1500)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: s3.put(f"{bucket}/job/{name}", b"x"), names))
    assert sorted(folder.names()) == names


class Refused(Exception):
    pass


@pytest.mark.parametrize("error", [Refused, OSError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_error_while_writing_leaves_nothing(
    s3: S3Server,
    bucket: str,
    folder: RemoteFolder,
    error: type[BaseException],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def fail() -> None:
        with folder.write("x") as file:
            file.write(bytes(LARGE))
            file.flush()
            raise error

    with pytest.raises(error):
        fail()
    assert s3.keys(bucket) == []
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named(folder: RemoteFolder) -> None:
    with pytest.raises(OSError, match=r"job: x: /.* is full: let TMPDIR name"), folder.write("x"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert folder.names() == []


class Stream:
    """pyarrow's stream, with a fault in its second write."""

    def __init__(self, stream: Any, fault: Callable[[], bool]) -> None:
        self._stream, self._fault, self._writes = stream, fault, 0

    def write(self, data: bytes) -> None:
        self._writes += 1
        if self._writes != 2 or self._fault():
            self._stream.write(data)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()


@contextmanager
def faulty_uploads(fault: Callable[[], bool]) -> Iterator[None]:
    """`fault` returns whether the second chunk is written, or raises."""
    send = RemoteFolder._send

    class System:
        def __init__(self, system: Any) -> None:
            self._system = system

        def __getattr__(self, name: str) -> Any:
            return getattr(self._system, name)

        def open_output_stream(self, path: str) -> Stream:
            return Stream(self._system.open_output_stream(path), fault)

    def faulty(self: RemoteFolder, file: Any, target: Any) -> None:
        target.system = System(target.system)
        send(self, file, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RemoteFolder, "_send", faulty)
        yield


def test_an_error_in_the_middle_of_an_upload_leaves_nothing(
    s3: S3Server, bucket: str, folder: RemoteFolder
) -> None:
    """pyarrow's stream publishes what it has when it is closed."""

    def fault() -> bool:
        raise OSError("the disk cannot be read")

    with (
        faulty_uploads(fault),
        pytest.raises(OSError, match=r"cannot write s3://.*/job/x: .*cannot be read"),
    ):
        put(folder, "x", bytes(LARGE))
    assert s3.keys(bucket) == []
    put(folder, "x", b"again")
    assert get(folder, "x") == b"again"


def test_what_arrived_is_measured(s3: S3Server, bucket: str, folder: RemoteFolder) -> None:
    with (
        faulty_uploads(lambda: False),
        pytest.raises(OSError, match=r"17,825,792 of 26,214,400 bytes have arrived"),
    ):
        put(folder, "x", bytes(LARGE))
    assert folder.names() == []


def test_an_interrupt_waits_for_the_upload(folder: RemoteFolder, seed: int) -> None:
    content = random.Random(seed).randbytes(LARGE)

    def fault() -> bool:
        os.kill(os.getpid(), signal.SIGINT)
        return True

    with faulty_uploads(fault), pytest.raises(KeyboardInterrupt):
        put(folder, "x", content)
    assert get(folder, "x") == content


def test_an_interrupt_while_the_thread_starts(
    folder: RemoteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The executor does not know the thread then, and would not wait for it."""
    start, sent = threading.Thread.start, threading.Event()

    def interrupted(self: threading.Thread) -> None:
        start(self)
        sent.wait(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(RemoteFolder, "_send", lambda *_: sent.set())
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        put(folder, "x", b"x")
    assert not sent.is_set()


CHILD = """
import os, sys, time
from nomicbert.bulk.job import remote_lock
from nomicbert.bulk.job.folder import open_folder
folder = open_folder(sys.argv[2])

def stop(at):
    if at == sys.argv[1]:
        print("here", flush=True)
        time.sleep(600)

class Stream:
    def __init__(self, stream):
        self.stream = stream
    def __enter__(self):
        return self
    def __exit__(self, *error):
        stop("before the end of the upload")
        self.stream.close()
    def write(self, data):
        self.stream.write(data)
        self.stream.flush()
        stop("in the upload")

class System:
    def __init__(self, system):
        self.system = system
    def __getattr__(self, name):
        return getattr(self.system, name)
    def open_output_stream(self, path):
        return Stream(self.system.open_output_stream(path))

remote_lock.PAUSE = 0
with folder.lock(".lock"):
    stop("with the lock")
    send = folder._send
    def faulty(file, target):
        target.system = System(target.system)
        send(file, target)
    folder._send = faulty
    with folder.write("x") as file:
        file.write(bytes(25 << 20))
        file.flush()
        stop("in the file")
    stop("behind the upload")
"""


@contextmanager
def stopped(at: str, url: str) -> Iterator[subprocess.Popen[str]]:
    """A process that writes the object "x" and has stopped somewhere; killed at the end."""
    command = [sys.executable, "-c", CHILD, at, url]
    path = os.pathsep.join(["kernels", *filter(None, sys.path)])
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "here\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    "at", ["in the file", "in the upload", "before the end of the upload", "behind the upload"]
)
def test_killed(
    s3: S3Server, bucket: str, at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    url = s3.url(f"{bucket}/job")
    with stopped(at, url):
        pass
    folder = open_folder(url)
    whole = at == "behind the upload"
    assert sorted(folder.names()) == [".lock", *["x"] * whole]
    assert list(tmp_path.iterdir()) == []
    with folder.lock(".lock"):  # its process has died
        if whole:
            assert get(folder, "x") == bytes(LARGE)
            folder.remove("x")
        put(folder, "x", b"again")
        assert get(folder, "x") == b"again"
    assert folder.names() == ["x"]


def test_a_lock_of_a_live_process(s3: S3Server, bucket: str) -> None:
    url = s3.url(f"{bucket}/job")
    folder = open_folder(url)
    with stopped("with the lock", url) as process:
        for _ in range(2):
            with pytest.raises(Locked) as caught, folder.lock(".lock"):
                pass
        host = os.uname().nodename
        assert f"s3://{bucket}/job (process {process.pid} on {host}): wait" in str(caught.value)
        assert folder.names() == [".lock"]
        with folder.lock(".lock-00001"):
            pass
    with folder.lock(".lock"):
        pass


def test_one_process_has_one_lock(folder: RemoteFolder) -> None:
    with folder.lock(".lock"):
        with pytest.raises(Locked, match=f"process {os.getpid()}"), folder.lock(".lock"):
            pass
        put(folder, "x", b"x")
        assert sorted(folder.names()) == [".lock", "x"]
    assert folder.names() == ["x"]
    with folder.lock(".lock"):
        pass


def another(s3: S3Server, path: str, **changed: Any) -> dict[str, Any]:
    """Put a lock of a process on another machine."""
    holder = {"token": "other", "host": "elsewhere", "process": 7, "machine": "boot pid", **changed}
    s3.put(path, json.dumps(holder).encode())
    return holder


@pytest.mark.parametrize("content", [None, b"", b"[]", b"\xff", b'{"machine": 1}'])
def test_a_lock_of_another_machine(
    s3: S3Server,
    bucket: str,
    folder: RemoteFolder,
    content: bytes | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    another(s3, f"{bucket}/job/.lock")
    if content is not None:
        s3.put(f"{bucket}/job/.lock", content)
    who = "process 7 on elsewhere" if content is None else "left no name"
    with (
        pytest.raises(Locked, match=rf"{who}.*if it was killed, wait for 1[12]\d s"),
        folder.lock(".lock"),
    ):
        pass
    assert s3.keys(bucket) == ["job/.lock"]
    # not renewed for longer than allowed
    monkeypatch.setattr(remote_lock, "STALE", -1)
    with folder.lock(".lock"):
        assert json.loads(get(folder, ".lock"))["process"] == os.getpid()


def test_the_age_is_of_the_stores_clock(
    s3: S3Server, bucket: str, folder: RemoteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    another(s3, f"{bucket}/job/.lock")
    monkeypatch.setattr(remote_lock.time, "time", lambda: 4e9)
    with pytest.raises(Locked), folder.lock(".lock"):
        pass


def test_a_process_number_says_nothing_on_another_machine(
    s3: S3Server, bucket: str, folder: RemoteFolder
) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    own = remote_lock._machine()
    assert own is not None
    another(s3, f"{bucket}/job/.lock", process=ended.pid)
    with pytest.raises(Locked), folder.lock(".lock"):
        pass
    another(s3, f"{bucket}/job/.lock", process=ended.pid, machine=own)
    with folder.lock(".lock"):
        pass


def test_two_that_see_no_lock(folder: RemoteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have looked before either writes."""
    looked, wrote, left = (threading.Barrier(2, timeout=60) for _ in range(3))
    read, sleep = remote_lock.RemoteLock._read, time.sleep
    first = threading.local()

    def late_read(self: remote_lock.RemoteLock) -> Any:
        found = read(self)
        if not hasattr(first, "done"):
            first.done = True
            assert found is None
            looked.wait()
        return found

    def pause(seconds: float) -> None:
        wrote.wait()
        sleep(0)

    monkeypatch.setattr(remote_lock.RemoteLock, "_read", late_read)
    monkeypatch.setattr(remote_lock.time, "sleep", pause)

    def take(_: int) -> bool:
        try:
            with folder.lock(".lock"):
                left.wait()
                return True
        except Locked:
            left.wait()
            return False

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(take, range(2))) == [False, True]
    assert folder.names() == []


def test_a_lock_is_renewed(
    s3: S3Server, bucket: str, folder: RemoteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_lock, "RENEW", 0.05)
    lock = folder._place.child(".lock")
    with folder.lock(".lock"):
        begun = lock.modified()
        assert begun is not None
        for _ in range(1200):  # a store's times are whole seconds
            if lock.modified() != begun:
                break
            time.sleep(0.05)
        assert lock.modified() > begun
        (thread,) = [one for one in threading.enumerate() if one.name == "nomicbert-lock"]
        while thread.is_alive():  # it may have looked just before, and write its own again
            another(s3, f"{bucket}/job/.lock")
            thread.join(0.5)
        monkeypatch.setattr(remote_lock, "RENEW", 1000)  # what the thread found is not forgotten
        assert json.loads(get(folder, ".lock"))["process"] == 7
        with pytest.raises(Locked, match=r"process 7 on elsewhere.*holds the lock now"):
            put(folder, "x", b"x")
    assert folder.names() == [".lock"]


@pytest.mark.parametrize("after", [-3600.0, 61.0, 600.0])
def test_a_lock_that_was_taken_over_while_the_machine_slept(
    s3: S3Server,
    bucket: str,
    folder: RemoteFolder,
    after: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = time.time()
    with folder.lock(".lock"):
        put(folder, "x", b"x")
        another(s3, f"{bucket}/job/.lock")
        monkeypatch.setattr(remote_lock.time, "time", lambda: now + after)
        with pytest.raises(Locked, match="process 7 on elsewhere"):
            put(folder, "y", b"y")
    assert sorted(folder.names()) == [".lock", "x"]


def test_a_lock_that_was_not_taken_over_while_the_machine_slept(
    folder: RemoteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    with folder.lock(".lock"):
        monkeypatch.setattr(remote_lock.time, "time", lambda: now + 600)
        put(folder, "x", b"x")
    assert folder.names() == ["x"]


def test_no_object_is_replaced(folder: RemoteFolder) -> None:
    put(folder, "x", b"first")
    with pytest.raises(Locked, match=r"/job/x was written by another process"):
        put(folder, "x", b"second")
    assert get(folder, "x") == b"first"


def test_empty_objects_are_missing(s3: S3Server, bucket: str, folder: RemoteFolder) -> None:
    """What Azure shows of an upload that a crash has cut off."""
    for name in ("part-00000-000000.parquet", "part-00001-000000.parquet"):
        s3.put(f"{bucket}/job/{name}")
    assert folder.names() == []
    put(folder, "part-00000-000000.parquet", b"x")
    assert folder.names() == ["part-00000-000000.parquet"]
    folder.sweep("part-00000-")
    assert len(s3.keys(bucket)) == 2
    folder.sweep("part-00001-")
    assert s3.keys(bucket) == ["job/part-00000-000000.parquet"]


def test_outputs_that_are_no_folder_in_a_store(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    put(open_folder(s3.url(bucket)), "x", b"x")
    with pytest.raises(ValueError, match=rf"s3://{bucket}/x is a file, but parts need a folder"):
        open_folder(s3.url(f"{bucket}/x")).make()
    for url in ("memory://x/job", "hf://datasets/x/y/job"):
        with pytest.raises(ValueError, match=rf"cannot be written to {url}: name a folder, or a U"):
            open_folder(url)
    found = open_folder(f"file://{tmp_path}/a%20b")
    assert isinstance(found, LocalFolder)
    assert found.name == f"{tmp_path}/a b"


def test_a_bucket_that_does_not_exist(s3: S3Server) -> None:
    folder = open_folder(s3.url("no-such-bucket/job"))
    folder.make()
    with pytest.raises(ValueError, match=r"job/\.lock: it does not exist"), folder.lock(".lock"):
        pass


def test_a_store_that_refuses(s3: S3Server, folder: RemoteFolder) -> None:
    put(folder, "x", b"x")
    with s3.checking_credentials():
        for act in (
            folder.make,
            folder.names,
            lambda: folder.open("x"),
            lambda: folder.remove("x"),
            lambda: put(folder, "y", b"y"),
            lambda: folder.lock(".lock").__enter__(),
        ):
            with pytest.raises(ValueError, match=r"/job.*: access is denied; check the cred"):
                act()
    assert folder.names() == ["x"]
