"""Places: the same answers from a local folder, S3 and fsspec."""

import io
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from nomicbert.bulk import stores
from nomicbert.bulk.place import Place
from nomicbert.bulk.places import is_url, place
from tests.support.s3 import S3Server

# Relative path -> content.
TREE = {
    "a b.txt": b"spaces\n",
    "a-b/z.txt": b"sorted before a/",
    "a/100%.txt": b"",
    "a/b/c/deep.jsonl": b"{}\n" * 5,
    "a/x%20y#z.txt": b"not escaped",
    "q?.txt": b"a question",
    "qq.txt": b"no question",
    "é/ü.txt": "größer".encode(),
    # hidden
    ".h/x.txt": b"h",
    "_m/x.txt": b"m",
    "a/.h.txt": b"h",
    "a/_SUCCESS": b"",
}
SEEN = [
    "a b.txt",
    "a-b/z.txt",
    "a/100%.txt",
    "a/b/c/deep.jsonl",
    "a/x%20y#z.txt",
    "q?.txt",
    "qq.txt",
    "é/ü.txt",
]

Fill = Callable[[dict[str, bytes]], str]


@pytest.fixture(params=["path", "file", "s3", "memory"])
def fill(request: pytest.FixtureRequest, tmp_path: Path) -> Fill:
    """Store files under their relative paths; returns the name of their folder."""

    def local(tree: dict[str, bytes]) -> str:
        for name, content in tree.items():
            (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "in" / name).write_bytes(content)
        return f"{tmp_path}/in" if request.param == "path" else f"file://{tmp_path}/in"

    def in_s3(tree: dict[str, bytes]) -> str:
        server: S3Server = request.getfixturevalue("s3")
        bucket = server.bucket()
        for name, content in tree.items():
            server.put(f"{bucket}/in/{name}", content)
        patch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{server.address}")
        return f"s3://{bucket}/in"

    def in_memory(tree: dict[str, bytes]) -> str:
        memory = fsspec.filesystem("memory")
        request.addfinalizer(memory.store.clear)
        for name, content in tree.items():
            memory.pipe(f"/top/in/{name}", content)
        return "memory://top/in"

    return {"s3": in_s3, "memory": in_memory}.get(request.param, local)


def relative(found: list[Place], folder: str) -> list[str]:
    assert all(one.name.startswith(f"{folder}/") for one in found)
    return [one.name[len(folder) + 1 :] for one in found]


def contents(found: list[Place]) -> list[bytes]:
    read = []
    for one in found:
        with one.open() as file:
            read.append(file.read())
    return read


def test_a_folder(fill: Fill) -> None:
    folder = fill(TREE)
    found = place(folder).files()
    assert relative(found, folder) == SEEN
    assert [one.size() for one in found] == [len(TREE[name]) for name in SEEN]
    assert contents(found) == [TREE[name] for name in SEEN]
    assert {one.kind() for one in found} == {"file"}
    assert place(folder).kind() == place(f"{folder}/").kind() == "folder"
    assert relative(place(f"{folder}/").files(), folder) == SEEN
    assert place(f"{folder}/nothing").kind() is None
    assert place(folder).child("a/x%20y#z.txt").size() == 11
    assert len({one.identity for one in found}) == len(SEEN)
    assert place(folder).child("a b.txt").identity == found[0].identity
    assert place(f"{folder}/").identity == place(folder).identity
    with pytest.raises(ValueError, match=r"cannot read .*nothing"):
        place(f"{folder}/nothing").files()


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("*", ["a", "a b.txt", "a-b", "q?.txt", "qq.txt", "é"]),
        ("*.txt", ["a b.txt", "q?.txt", "qq.txt"]),
        ("??.txt", ["q?.txt", "qq.txt"]),
        ("q?.txt", ["q?.txt"]),  # the name of a file
        ("*/*.txt", ["a-b/z.txt", "a/100%.txt", "a/x%20y#z.txt", "é/ü.txt"]),
        ("**", SEEN),
        ("**/*.txt", [name for name in SEEN if name.endswith(".txt")]),
        ("a/**", ["a/100%.txt", "a/b/c/deep.jsonl", "a/x%20y#z.txt"]),
        ("a*/**/*.jsonl", ["a/b/c/deep.jsonl"]),
        ("**/b/**/deep.jsonl", ["a/b/c/deep.jsonl"]),
        ("**/b/*.jsonl", []),
        ("*/b", ["a/b"]),
        ("*/b/c/deep.jsonl", ["a/b/c/deep.jsonl"]),
        ("*/*/nothing", []),
        ("_*/*.txt", ["_m/x.txt"]),
        ("*/.*", ["a/.h.txt"]),
        ("é", ["é"]),
        ("nothing", []),
        ("nothing/*", []),
        ("qq.txt/*", []),
    ],
)
def test_patterns(fill: Fill, pattern: str, wanted: list[str]) -> None:
    folder = fill(TREE)
    found = place(f"{folder}/{pattern}").glob()
    assert relative(found, folder) == wanted
    files = [one for one in found if one.kind() == "file"]
    assert contents(files) == [TREE[one] for one in relative(files, folder)]


def test_paths_are_literal(s3: S3Server) -> None:
    bucket = s3.bucket()
    for name in ("x%20y#z.txt", "x y#z.txt", "x+y&z?.txt", "é.txt"):
        s3.put(f"{bucket}/{name}", name.encode())
        found = place(s3.url(f"{bucket}/{name}"))
        assert contents([found]) == [name.encode()]
        assert found.name == f"s3://{bucket}/{name}"
    memory = fsspec.filesystem("memory")
    memory.pipe("/top/x%20y#z.txt", b"x")
    assert place("memory://top/x%20y#z.txt").size() == 1
    memory.store.clear()


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 19, 20, 21, 64, 1000])
def test_ends(fill: Fill, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "BUFFER", 16)
    content = bytes(random.Random(size).randbytes(size))
    folder = fill({"x": content})
    wanted = content if size <= 20 else content[:10] + content[-10:]
    assert place(folder).child("x").ends(10) == wanted


def test_reading_in_any_order(fill: Fill, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(stores, "BUFFER", 64)
    draw = random.Random(seed)
    content = b"\n".join(draw.randbytes(draw.randrange(90)) for _ in range(40))
    where = place(fill({"x": content})).child("x")
    with where.open() as file:
        twin = io.BytesIO(content)
        assert list(file) == list(twin)
        assert (file.readable(), file.seekable(), file.writable()) == (True, True, False)
        for _ in range(300):
            n = draw.choice([0, 1, 7, 63, 64, 65, 200, 5000])  # around the buffer's size
            call: list[Callable[[Any], Any]] = [
                lambda f, n=n: f.read(n),
                lambda f: f.readline(),
                lambda f, n=n: f.seek(n),
                lambda f, n=n: f.seek(-min(n, len(content)), os.SEEK_END),
                lambda f: f.tell(),
                lambda f, n=n: (f.readinto(got := bytearray(n)), got),
            ]
            act = draw.choice(call)
            assert act(file) == act(twin)
    assert file.closed
    with where.open_arrow() as arrow:
        assert arrow.size() == len(content)
        arrow.seek(10)
        assert arrow.read(5) == content[10:15]


def test_reading_makes_few_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    content = b"x" * 99 + b"\n"
    memory.pipe("/top/x", content * 10_000)
    open_arrow = stores.RemotePlace.open_arrow
    requests: list[int] = []

    class Counting:
        def __init__(self, file: Any) -> None:
            self._file = file

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def readinto(self, buffer: Any) -> int:
            requests.append(len(buffer))
            return self._file.readinto(buffer)

    monkeypatch.setattr(stores.RemotePlace, "open_arrow", lambda self: Counting(open_arrow(self)))
    monkeypatch.setattr(stores, "BUFFER", 400_000)
    where = place("memory://top/x")
    with where.open() as file:
        assert list(file) == [content] * 10_000
    assert len(requests) == 3
    requests.clear()
    with where.open() as file:
        assert file.read() == content * 10_000
    assert len(requests) == 1
    memory.store.clear()


def test_links_are_followed_once(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/x.txt").write_text("x")
    (folder / "deep/loop").symlink_to(folder)
    (folder / "away").symlink_to(tmp_path / "other")
    (folder / "same.txt").symlink_to(tmp_path / "other/x.txt")
    (folder / "broken.txt").symlink_to(tmp_path / "nothing")
    found = place(str(folder)).files()
    assert relative(found, str(folder)) == ["away/x.txt", "broken.txt", "same.txt"]
    assert found[0].identity == found[2].identity
    with pytest.raises(ValueError, match=r"cannot read .*broken\.txt: No such file"):
        found[1].open()


def test_patterns_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for name in ("in/x.txt", "y.txt", "in/z[1].txt"):
        (tmp_path / name).write_text(name)
    assert [one.name for one in place("*").glob()] == ["in", "y.txt"]
    assert [one.name for one in place("./**/*.txt").glob()] == [
        "./in/x.txt",
        "./in/z[1].txt",
        "./y.txt",
    ]
    assert [one.name for one in place("in/z[1]*").glob()] == ["in/z[1].txt"]
    assert [one.name for one in place(f"../{tmp_path.name}/?.txt").glob()] == [
        f"../{tmp_path.name}/y.txt"
    ]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("s3://b/x", True),
        ("HTTPS://host/x", True),
        ("file:///x", True),
        ("s3:/b/x", False),
        ("./s3://b/x", False),
        ("a/b://c", False),
        (r"C:\x", False),
        ("C://x", False),
        ("://x", False),
        ("", False),
    ],
)
def test_urls(name: str, wanted: bool) -> None:
    assert is_url(name) is wanted


def test_file_urls_are_local(tmp_path: Path) -> None:
    (tmp_path / "a b%.txt").write_text("x")
    found = place(f"file://{tmp_path}/a%20b%25.txt")
    assert found.is_local
    assert found.path == str(tmp_path / "a b%.txt")
    assert found.size() == 1
    assert place(f"file://localhost{tmp_path}").kind() == "folder"
    assert place("x").is_local


def test_options_and_passwords_are_not_in_names(s3: S3Server) -> None:
    bucket = s3.bucket()
    s3.put(f"{bucket}/in/x.txt", b"x")
    url = s3.url(f"key:secret@{bucket}/in/")
    found = place(url).files()
    assert [one.name for one in found] == [f"s3://key@{bucket}/in/x.txt"]
    assert contents(found) == [b"x"]
    assert not found[0].is_local
    assert [one.name for one in place(s3.url(f"key:secret@{bucket}/in/?.txt")).glob()] == [
        f"s3://key@{bucket}/in/x.txt"
    ]
    with pytest.raises(ValueError, match="nothing") as caught:
        place(s3.url(f"key:secret@{bucket}/nothing")).open()
    assert "secret" not in str(caught.value)


def test_a_listing_says_what_the_files_are(s3: S3Server) -> None:
    """No request for each of many files."""
    bucket = s3.bucket()
    s3.put(f"{bucket}/x.txt", b"xyz")
    (found,) = place(s3.url(f"{bucket}/")).files()
    found.system.delete_file(found.path)
    assert (found.kind(), found.size()) == ("file", 3)


def test_a_store_that_lists_no_folders(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Google's, as pyarrow shows it."""
    bucket = s3.bucket()
    for name in ("in/x.txt", "in/a/y.txt", "in/a/b/z.txt"):
        s3.put(f"{bucket}/{name}", b"x")

    class System:
        type_name = "gcs"

        def __init__(self, system: Any) -> None:
            self._system = system

        def get_file_info(self, wanted: Any) -> Any:
            found = self._system.get_file_info(wanted)
            return [one for one in found if one.is_file] if isinstance(found, list) else found

    by_pyarrow = stores._by_pyarrow

    def system_of(*arguments: str) -> tuple[Any, str]:
        system, base = by_pyarrow(*arguments)
        return System(system), base

    monkeypatch.setattr(stores, "_by_pyarrow", system_of)
    for pattern, wanted in {
        "*": ["a", "x.txt"],
        "*/*.txt": ["a/y.txt"],
        "a/*/z.txt": ["a/b/z.txt"],
        "**": ["a/b/z.txt", "a/y.txt", "x.txt"],
    }.items():
        found = place(s3.url(f"{bucket}/in/{pattern}")).glob()
        assert relative(found, f"s3://{bucket}/in") == wanted


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("s4://bucket/x", r"^s4://bucket/x: unknown scheme s4://.*s3, gs, abfs, hf"),
        ("s3://", r"^s3://: .*s3://NAME/PATH"),
        ("s3:///x", r"^s3:///x: .*s3://NAME/PATH"),
        ("gs://buck*/x", r"^gs://buck\*/x: .*one bucket"),
        ("file://x/y.txt", r"^file://x/y\.txt: .*file:///x/y\.txt"),
        ("abfs://container/x", r"^cannot open abfs://container/x: .*account"),
    ],
)
def test_wrong_urls(name: str, wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        place(name)


def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation(
        "nomicberttest", "no_such_package.FileSystem", errtxt="Install no_such_package"
    )
    with pytest.raises(ImportError, match=r"nomicberttest://x needs .*Install no_such_package"):
        place("nomicberttest://x")
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(ImportError, match=r"hf://datasets/x needs fsspec: pip install fsspec"):
        place("hf://datasets/x")
    monkeypatch.setitem(sys.modules, "pyarrow.fs", None)
    with pytest.raises(ImportError, match=r's3://b/x needs pyarrow: pip install ".*\[parquet\]"'):
        place("s3://b/x")


def test_a_file_that_is_not_there(fill: Fill) -> None:
    folder = fill({"x.txt": b"x"})
    for act in ("open", "open_arrow", "size"):
        with pytest.raises(ValueError, match=r"cannot read .*nothing\.txt: "):
            getattr(place(folder).child("nothing.txt"), act)()
    with pytest.raises(ValueError, match="cannot read"):
        place(folder).open()


def test_stores_that_refuse(s3: S3Server) -> None:
    with pytest.raises(ValueError, match=r"no-such-bucket/x: it does not exist"):
        place(s3.url("no-such-bucket/x")).open()
    bucket = s3.bucket()
    s3.put(f"{bucket}/x", b"x")
    with s3.checking_credentials():
        for act in ("kind", "open", "files", "glob"):
            with pytest.raises(ValueError, match=rf"{bucket}/x: access is denied; check the cred"):
                getattr(place(s3.url(f"{bucket}/x")), act)()


@pytest.mark.slow  # pyarrow tries for some seconds
def test_stores_that_are_not_reached(monkeypatch: pytest.MonkeyPatch, s3: S3Server) -> None:
    url = "s3://bucket/x?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1"
    with pytest.raises(OSError, match=r"cannot read s3://bucket/x: .*connect") as caught:
        place(url).kind()
    assert not isinstance(caught.value, ValueError)


class ClientError(Exception):
    """An error of no common class, as HTTP clients have them."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def caused(cause: Exception) -> FileNotFoundError:
    error = FileNotFoundError("the address")
    error.__cause__ = cause
    return error


class OddSystem(fsspec.AbstractFileSystem):
    protocol = "nomicbertodd"
    problem: Exception

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        if "late" not in path:
            raise self.problem
        return {"name": path, "size": 4, "type": "file"}

    def _open(self, *_: Any, **__: Any) -> io.BytesIO:
        system = self

        class File(io.BytesIO):
            def read(self, *_: Any) -> bytes:
                raise system.problem

        return File(b"text")


@pytest.mark.parametrize(
    ("problem", "kind", "wanted"),
    [
        (ClientError("", 403), ValueError, "access is denied; .*ClientError"),
        (ClientError("refused", 401), ValueError, "access is denied; .*refused"),
        (ClientError("lost\n  connection"), OSError, "lost connection"),
        (PermissionError("no entry"), ValueError, "access is denied; .*no entry"),
        (TimeoutError("too slow"), OSError, "too slow"),
        # as fsspec's HTTP client raises them
        (caused(ConnectionError("not reached")), OSError, "not reached"),
        (caused(ClientError("forbidden", 403)), ValueError, "access is denied; .*forbidden"),
    ],
)
def test_errors_of_fsspec(problem: Exception, kind: type[Exception], wanted: str) -> None:
    fsspec.register_implementation("nomicbertodd", OddSystem, clobber=True)
    OddSystem.problem = problem
    late = place("nomicbertodd://late").open()
    for act in (lambda: place("nomicbertodd://x").kind(), lambda: late.read(1)):
        with pytest.raises(kind, match=rf"cannot read nomicbertodd://.*{wanted}"):
            act()
    OddSystem.problem = caused(ClientError("no such file", 404))
    assert place("nomicbertodd://x").kind() is None
