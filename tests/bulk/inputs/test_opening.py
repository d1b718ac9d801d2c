"""Compressed inputs, damage, and reading that fails."""

from __future__ import annotations

import errno
import gzip
import io
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from nomicbert.bulk.inputs.compressed import inflated_head
from nomicbert.bulk.inputs.formats import HEAD
from nomicbert.bulk.places import LocalPlace
from tests.support.bulk_inputs import (
    SUFFIXES,
    encode,
    feed_of,
    needs_pyarrow,
    read_all,
    rows_of,
    write,
)

RECORDS = [{"text": f"text {number}"} for number in range(5000)]


@needs_pyarrow
@pytest.mark.parametrize("end", [".gz", ".zst"])
def test_several_members(end: str, tmp_path: Path) -> None:
    content = b"".join(encode(f".jsonl{end}", RECORDS[i : i + 1000]) for i in range(0, 5000, 1000))
    (path := tmp_path / f"a.jsonl{end}").write_bytes(content)
    taken, rest = read_all(feed_of(path))
    assert [entry.row.fields for entry in taken] == RECORDS
    assert rest.after == (0, 5000, None)
    assert sum(entry.row.size for entry in taken) == len(content)
    assert feed_of(path).total_bytes == len(content)


@needs_pyarrow
@pytest.mark.parametrize("end", [".gz", ".zst"])
def test_nothing_in_a_compressed_file(end: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.txt{end}"
    path.write_bytes(encode(f".txt{end}", []))
    assert read_all(feed_of(path))[0] == []


@needs_pyarrow
@pytest.mark.parametrize("suffix", [".txt.gz", ".jsonl.zst", ".csv.gz", ".json.zst", ".json.gz"])
def test_a_compressed_file_that_was_cut(suffix: str, tmp_path: Path) -> None:
    whole = encode(suffix, RECORDS)
    for cut in (0, 1, len(whole) // 3, len(whole) - 1):
        (path := tmp_path / f"a{suffix}").write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=f"^{path} is damaged: (it is empty|Truncated compr)"):
            read_all(feed_of(path, on_error="skip"))


@needs_pyarrow
def test_a_compressed_file_that_was_changed(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(b"text\n" * 1000))
    content[-6] ^= 1
    for changed in (bytes(content), b"text\n" * 10, gzip.compress(b"text\n") + b"more"):
        (path := tmp_path / "a.txt.gz").write_bytes(changed)
        with pytest.raises(ValueError, match=f"^{path} is damaged: zlib inflate failed"):
            rows_of(path)


@needs_pyarrow
def test_the_head_of_a_compressed_file() -> None:
    content = b"".join(b"%d\n" % number for number in range(100_000))
    compressed = gzip.compress(content)
    assert inflated_head(compressed[:20_000], "a", "gzip")[:4096] == content[:4096]
    assert len(inflated_head(compressed, "a", "gzip")) < HEAD + 256
    assert inflated_head(gzip.compress(b"{}"), "a", "gzip") == b"{}"
    assert inflated_head(b"\x1f\x8b\x08", "a", "gzip") == b""


@needs_pyarrow
@pytest.mark.parametrize("end", [".gz", ".zst"])
def test_a_long_first_block_is_recognised(end: str, tmp_path: Path) -> None:
    """A block of zstd has up to 128 KiB, and yields nothing before it is complete."""
    noise = random.Random(0)
    records = [{"text": "a", "blob": noise.randbytes(3000).hex()} for _ in range(100)]
    (path := tmp_path / f"part-00000{end}").write_bytes(encode(f".jsonl{end}", records))
    assert [row.fields for row in rows_of(path)] == records


@needs_pyarrow
def test_a_beginning_that_yields_nothing_is_refused(tmp_path: Path) -> None:
    skippable = b"\x50\x2a\x4d\x18" + HEAD.to_bytes(4, "little") + bytes(HEAD)
    path = tmp_path / "part-00000.zst"
    path.write_bytes(skippable + encode(".jsonl.zst", RECORDS))
    with pytest.raises(ValueError, match=r"part-00000.zst: .*name its format with --input-format"):
        rows_of(path)
    assert len(rows_of(path, form="jsonl")) == 5000


UTF_16 = "\ufeff{}\n".encode("utf-16-le")
MISNAMED = {
    "utf-16 text": ("a.txt", UTF_16, "is UTF-16: convert it to UTF-8 first"),
    "utf-16 csv": ("a.csv", "\ufefftext\n".encode("utf-16-be"), "is UTF-16: convert it to UTF-8"),
    "utf-16 json": ("a.json", UTF_16, "is UTF-16: convert it to UTF-8 first"),
    "gzip": ("a.txt", gzip.compress(b"a\n"), "is compressed with gzip: add .gz to its name"),
    "zstd": ("a.jsonl", b"\x28\xb5\x2f\xfd\0", "is compressed with zstd: add .zst to its name"),
    "utf-16 in gzip": pytest.param(
        "a.txt.gz", gzip.compress(UTF_16), "is UTF-16: convert it to UTF-8", marks=needs_pyarrow
    ),
}


@pytest.mark.parametrize(("name", "content", "message"), MISNAMED.values(), ids=MISNAMED)
def test_content_that_a_name_denies(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (path := tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"^{path} {message}"):
        feed_of(path, on_error="skip").check_first_rows()


class Failing:
    """A file that fails behind some bytes."""

    def __init__(self, file: BinaryIO, good: int) -> None:
        self._file, self._good = file, good

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Failing:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _check(self) -> None:
        if self._file.tell() >= self._good:
            raise OSError(errno.EIO, "Input/output error")

    def read(self, size: int = -1) -> bytes:
        self._check()
        return self._file.read(min(size, 512) if size > 0 else size)

    def readline(self, size: int = -1) -> bytes:
        self._check()
        return self._file.readline(size)


def failing(method: str, good: int) -> Callable[[LocalPlace], Any]:
    original = getattr(LocalPlace, method)
    return lambda self: Failing(original(self), good)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_reading_that_fails_midway_is_the_machine(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OSError, even where pyarrow reads: the file may be as good as before."""
    path = write(tmp_path / f"a{suffix}", RECORDS)
    good = 700 if path.stat().st_size < 100_000 else 2000
    feed = feed_of(path, on_error="skip")
    monkeypatch.setattr(LocalPlace, "open", failing("open", good))
    if suffix not in (".parquet", ".feather"):
        monkeypatch.setattr(LocalPlace, "open_arrow", failing("open_arrow", good))
    else:
        monkeypatch.setattr(LocalPlace, "open_arrow", failing("open_arrow", 0))
    with pytest.raises(OSError, match=f"^cannot read {path}: .*Input/output error") as caught:
        read_all(feed)
    assert not isinstance(caught.value, ValueError)
    assert not feed.finished


@pytest.mark.parametrize("suffix", [".txt", pytest.param(".csv.gz", marks=needs_pyarrow)])
def test_errors_of_a_url_have_its_name_already(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Down(io.BytesIO):
        def read(self, _: object = -1) -> bytes:
            raise OSError("cannot read s3://a/b: the network is down")

        readline = peek = read  # type: ignore[assignment]

    feed = feed_of(write(tmp_path / f"a{suffix}", RECORDS))
    monkeypatch.setattr(LocalPlace, "open", lambda _: Down())
    with pytest.raises(OSError, match=r"^cannot read s3://a/b: the network is down$"):
        next(feed)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that fails")
def test_a_failing_read_names_the_input() -> None:
    with pytest.raises(OSError, match=r"^cannot read /proc/self/mem: Input/output error$"):
        feed_of("/proc/self/mem")
    feed = feed_of(__file__, form="text")
    assert next(feed).startswith('"""')


@pytest.mark.parametrize("suffix", [".txt.gz", ".json.zst", ".parquet", ".arrow", ".gz"])
def test_without_pyarrow(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path := tmp_path / f"a{suffix}").write_bytes(gzip.compress(b"a\n"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        ImportError, match=rf'^reading {path} needs pyarrow: pip install ".*\[parquet\]"$'
    ):
        feed_of(path)


def test_plain_files_need_no_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for suffix in (".txt", ".jsonl", ".csv", ".tsv", ".json", ""):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(encode(suffix or ".txt", RECORDS[:3]))
        feed = feed_of(path)
        feed.check_first_rows()
        assert [entry.row.text for entry in read_all(feed)[0]] == ["text 0", "text 1", "text 2"]
