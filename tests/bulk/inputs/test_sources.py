"""What inputs name: files, folders, patterns, saved datasets, pipes."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nomicbert.bulk.inputs.formats import InputFormat, format_of_content
from nomicbert.bulk.inputs.sources import Source, find_sources
from nomicbert.bulk.inputs.streams import Stream
from tests.support.bulk_inputs import encode, needs_pyarrow, rows_of

ROOT = Path(__file__).parents[3]


def found(*inputs: Path | str, form: str | None = None) -> list[Source]:
    return find_sources([str(given) for given in inputs], form and InputFormat(form))


def names(*inputs: Path | str) -> list[str]:
    return [source.name for source in found(*inputs)]


def test_files_in_the_order_of_the_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b.jsonl", "a.txt", "c.csv"):
        (tmp_path / name).write_text("text\n")
    monkeypatch.chdir(tmp_path)
    sources = found("b.jsonl", "a.txt", "./c.csv")
    assert [(source.name, source.format.value, source.sniffed) for source in sources] == [
        ("b.jsonl", "jsonl", False),
        ("a.txt", "text", False),
        ("./c.csv", "csv", False),
    ]
    assert [source.format.value for source in found("a.txt", "c.csv", form="text")] == ["text"] * 2


def test_a_folder_is_read_in_order_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "a/b/y.txt", "_SUCCESS", ".x.txt", "_a/w.txt", "a/.b/v.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text("")
    expected = [f"{tmp_path}/a/b/y.txt", f"{tmp_path}/a/z.txt", f"{tmp_path}/b.txt"]
    assert names(tmp_path) == expected
    assert names(f"{tmp_path}/") == expected
    assert names(f"{tmp_path}/**/*.txt") == expected
    assert names(f"{tmp_path}/*.txt") == expected[2:]
    assert names(f"{tmp_path}/a", f"{tmp_path}/b.txt") == expected


def test_inputs_that_name_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/_SUCCESS").touch()
    for given, message in [
        ("none.txt", "^cannot read .*none.txt: No such file or directory$"),
        ("*.txt", r"^cannot read .*/\*.txt: no file matches$"),
        ("empty", "/empty holds no files"),
        ("empty/*", r"/empty/\*: no file matches$"),
    ]:
        with pytest.raises(ValueError, match=message):
            found(tmp_path / given)
    with pytest.raises(ValueError, match="there is no input"):
        found()


def test_a_file_given_twice(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    (tmp_path / "b.txt").symlink_to("a.txt")
    for second in ("a.txt", "./a.txt", "b.txt", "", "*.txt"):
        with pytest.raises(ValueError, match=r"\.txt is given twice: its rows would be embedded"):
            found(tmp_path / "a.txt", f"{tmp_path}/{second}")


def test_links_within_a_folder_are_files_of_their_own(tmp_path: Path) -> None:
    """As in a cache of the Hugging Face hub, where equal files are links to one."""
    (tmp_path / "blob").mkdir()
    (tmp_path / "blob/1").write_text("text\n")
    (tmp_path / "data").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "data" / name).symlink_to("../blob/1")
    expected = [f"{tmp_path}/data/a.txt", f"{tmp_path}/data/b.txt"]
    assert names(tmp_path / "data") == expected
    assert names(f"{tmp_path}/data/*.txt") == expected
    with pytest.raises(ValueError, match=r"/a.txt is given twice"):
        found(tmp_path / "blob", tmp_path / "data")


@pytest.mark.skipif(sys.platform != "linux", reason="it tells the file of standard input")
def test_standard_input_that_is_given_as_a_file_too(tmp_path: Path) -> None:
    (path := tmp_path / "a.txt").write_text("text\n")
    program = READER.replace('["-"]', f'["-", {str(path)!r}]')
    with path.open("rb") as file:
        done = subprocess.run(
            [sys.executable, "-c", program],
            stdin=file,
            capture_output=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f".{os.pathsep}kernels"},
            check=False,
        )
    assert (
        done.stderr.decode()
        .rstrip()
        .endswith(f"ValueError: {path} is given twice: its rows would be embedded twice")
    )


CONTENTS = {
    "part-00000": (b'{"text": "a"}\n', "jsonl", None),
    "part.rst": (b"# a\n", "text", None),
    "array": (b'[{"text": "a"}]', "json", None),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_formats_are_recognised_by_content(name: str, tmp_path: Path) -> None:
    content, form, compression = CONTENTS[name]
    (tmp_path / name).write_bytes(content)
    (source,) = found(tmp_path / name)
    assert (source.format.value, source.compression, source.sniffed) == (form, compression, True)
    (source,) = found(tmp_path / name, form="text")
    assert (source.format.value, source.sniffed) == ("text", False)


@needs_pyarrow
def test_compressed_and_arrow_files_are_recognised_by_content(tmp_path: Path) -> None:
    records = [{"text": "a"}]
    for suffix, form, compression in [
        (".jsonl.gz", "jsonl", "gzip"),
        (".txt.zst", "text", "zstd"),
        (".json.zst", "json", "zstd"),
        (".parquet", "parquet", None),
        (".feather", "arrow", None),
    ]:
        (path := tmp_path / "unnamed").write_bytes(encode(suffix, records))
        (source,) = found(path)
        assert (source.format.value, source.compression) == (form, compression)
        assert source.sniffed
        assert [row.text for row in rows_of(path)] == ["a"]
        if compression:
            (path := tmp_path / "a.gz").write_bytes(encode(suffix, records))
    (source,) = found(tmp_path / "unnamed", form="arrow")
    assert (source.compression, source.sniffed) == (None, False)
    (tmp_path / "unnamed").write_bytes(encode(".csv.gz", records))
    (source,) = found(tmp_path / "unnamed", form="csv")
    assert (source.compression, source.sniffed) == ("gzip", False)
    (tmp_path / "a.gz").write_bytes(encode(".jsonl.gz", records))
    assert [row.line for row in rows_of(tmp_path / "a.gz")] == ['{"text": "a"}']


def test_files_of_unknown_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    (tmp_path / "b.log").write_bytes("\ufefftext".encode("utf-16"))
    with pytest.raises(ValueError, match=r"a.png is a binary .* or UTF-16: leave it"):
        found(tmp_path)
    with pytest.raises(ValueError, match=r"b.log is UTF-16: convert it to UTF-8 first"):
        found(tmp_path / "b.log")


@needs_pyarrow
def test_a_name_that_says_compressed_is_believed(tmp_path: Path) -> None:
    (path := tmp_path / "a.gz").write_bytes(b"text\n")
    with pytest.raises(ValueError, match=r"a.gz is damaged: zlib inflate failed"):
        rows_of(path)


@needs_pyarrow
def test_compressed_parquet_is_refused(tmp_path: Path) -> None:
    (path := tmp_path / "a.parquet.gz").write_bytes(encode(".txt.gz", []))
    with pytest.raises(ValueError, match=r"a.parquet.gz is a compressed parquet file: decompress"):
        found(path)


@needs_pyarrow
def test_saved_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    records = [{"text": f"text {i}", "id": i} for i in range(20)]
    whole = datasets.Dataset.from_list(records)
    whole.save_to_disk(tmp_path / "one", num_shards=11)
    rows = rows_of(tmp_path / "one")
    assert [row.text for row in rows] == [record["text"] for record in records]
    assert [source.format.value for source in found(tmp_path / "one")] == ["arrow"] * 11
    assert names(tmp_path / "one")[10] == f"{tmp_path}/one/data-00010-of-00011.arrow"
    whole.select([3, 1]).save_to_disk(tmp_path / "few")
    assert [row.text for row in rows_of(tmp_path / "few")] == ["text 3", "text 1"]
    datasets.DatasetDict({"train": whole, "test": whole}).save_to_disk(tmp_path / "both")
    with pytest.raises(
        ValueError, match=r"both holds several datasets: pass \S+/both/train or \S+/both/test$"
    ):
        found(tmp_path / "both")
    assert len(rows_of(tmp_path / "both/test")) == 20


@needs_pyarrow
def test_folders_that_look_like_saved_datasets(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    for content, message in [
        ('{"_data_files": [{"filename": "a.arrow"}], "_indices_data_files": [1]}', "selection of"),
        ('{"_data_files": [{"filename": "a.arrow"}]}', r"a.arrow: .*No such file"),
        ("{", "state.json, row 1: not JSON"),
    ]:
        state.write_text(content)
        with pytest.raises(ValueError, match=message):
            rows_of(tmp_path)
    (tmp_path / "dataset_dict.json").write_text('[{"text": "a"}]')
    state.write_text('{"text": "b"}')
    assert [row.text for row in rows_of(tmp_path)] == ["a", "b"]


READER = """
import sys
from nomicbert.bulk.inputs.feed import Feed
from nomicbert.bulk.inputs.rows import Span
from nomicbert.bulk.inputs.sources import find_sources
(source,) = find_sources(["-"], None)
feed = Feed([source], [Span(0)])
feed.check_first_rows()
print(source.format.value, source.compression, source.sniffed, source.once, feed.total_bytes)
for text in feed:
    row = feed.take().row
    print(row.where, repr(text), row.size, row.after.offset, flush=True)
print(feed.finished)
"""


def run_reader(**keywords: object) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", READER],
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f".{os.pathsep}kernels"},
        check=False,
        **keywords,  # type: ignore[call-overload]
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().splitlines()


def test_standard_input_from_a_pipe() -> None:
    assert run_reader(input=b'{"text": "a"}\n{"text": "b"}\n') == [
        "jsonl None True True None",
        "standard input, line 1 'a' 14 None",
        "standard input, line 2 'b' 14 None",
        "True",
    ]
    assert run_reader(input=b"") == ["text None True True None", "True"]


PIECES = {
    "cut within the first object": ([b"{", b'"text": "a"}\n'], "jsonl"),
    "cut within the first line": ([b'{"text": "a"', b', "id": 1}\n{"text": "b"}\n'], "jsonl"),
    "the brace has its own line": ([b"{\n", b'  "text": "a"\n}\n'], "json"),
    "blank lines first": ([b"\n", b'{"text": "a"}\n'], "jsonl"),
    "byte order mark": ([b"\xef\xbb", b'\xbf{"text": "a"}\n'], "jsonl"),
    "array": ([b" [\n", b'{"text": "a"}]'], "json"),
    "text": ([b"a\n", b'{"text": "b"}\n'], "text"),
    "no line feed": ([b"{", b'"text": "a"}'], "jsonl"),
}


@pytest.mark.parametrize("case", PIECES)
def test_a_pipe_is_recognised_however_it_is_written(case: str, tmp_path: Path) -> None:
    pieces, expected = PIECES[case]
    os.mkfifo(path := tmp_path / "pipe")
    keep = os.open(path, os.O_RDWR)
    writer = os.open(path, os.O_WRONLY)
    os.write(writer, pieces[0])
    stream = Stream(str(path))
    os.close(keep)
    with ThreadPoolExecutor() as pool:
        head = pool.submit(stream.head)
        for piece in pieces[1:]:
            while select.select([stream._descriptor], [], [], 0)[0] and not head.done():
                time.sleep(0.001)  # until the piece before has been read
            os.write(writer, piece)
        os.close(writer)
        assert format_of_content(head.result()).value == expected
    assert stream.open().read() == b"".join(pieces)


@needs_pyarrow
def test_a_compressed_pipe_is_recognised(tmp_path: Path) -> None:
    content = encode(".jsonl.zst", [{"text": "a", "blob": os.urandom(3000).hex()}] * 100)
    assert run_reader(input=content)[0] == "jsonl zstd True True None"


def test_standard_input_from_a_file(tmp_path: Path) -> None:
    (path := tmp_path / "a").write_bytes(b"skipped\na\nb\n")
    with path.open("rb") as file:
        os.lseek(file.fileno(), 8, os.SEEK_SET)
        assert run_reader(stdin=file) == [
            "text None True False 4",
            "standard input, line 1 'a' 2 None",
            "standard input, line 2 'b' 2 None",
            "True",
        ]


@needs_pyarrow
@pytest.mark.parametrize("suffix", [".jsonl.gz", ".json.zst", ".parquet", ".feather"])
def test_standard_input_of_every_kind(suffix: str, tmp_path: Path) -> None:
    content = encode(suffix, [{"text": "a"}, {"text": "b"}])
    (path := tmp_path / "a").write_bytes(content)
    with path.open("rb") as file:
        printed = [run_reader(stdin=file)]
    if suffix not in (".parquet", ".feather"):
        printed.append(run_reader(input=content))
    for lines in printed:
        assert [line.split("'")[1] for line in lines[1:-1]] == ["a", "b"]


def test_a_named_pipe_is_read_line_by_line(tmp_path: Path) -> None:
    path = str(tmp_path / "pipe")
    os.mkfifo(path)
    keep = os.open(path, os.O_RDWR)  # neither side blocks in open() then
    writer = os.open(path, os.O_WRONLY)
    os.write(writer, b"a\nb")
    (source,) = found(path)
    assert (source.name, source.format.value, source.once) == (path, "text", True)
    from nomicbert.bulk.inputs.feed import Feed
    from nomicbert.bulk.inputs.rows import Span

    feed = Feed([source], [Span(0)])
    feed.check_first_rows()  # does nothing: a pipe cannot be read again
    assert feed.total_bytes is None
    assert next(feed) == "a"  # "b" may have more characters to come
    os.write(writer, b"c\n")
    assert next(feed) == "bc"
    os.close(writer)
    os.close(keep)
    assert list(feed) == []
    with pytest.raises(ValueError, match=f"{path} can be read only once"):
        next(Feed([source], [Span(0)]))


@needs_pyarrow
def test_parquet_from_a_pipe(tmp_path: Path) -> None:
    path = str(tmp_path / "pipe")
    os.mkfifo(path)
    keep = os.open(path, os.O_RDWR)
    os.write(keep, encode(".parquet", [{"text": "a"}]))
    with pytest.raises(ValueError, match="pipe is a pipe, but parquet needs a file: save it first"):
        rows_of(path)
    os.close(keep)
