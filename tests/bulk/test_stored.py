"""A folder of vectors read back: order, random access, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nomicbert.bulk.places import place
from nomicbert.bulk.stored import open_vectors
from nomicbert.bulk.vector_files import state_of
from tests.bulk.job.standin import Hashes, embed

LINES = [f"line {n}" for n in range(23)]
FILES = {"a.txt": LINES[:14], "b.txt": LINES[14:18], "c.txt": LINES[18:21], "d.txt": LINES[21:]}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.chdir(tmp_path)
    for name, lines in FILES.items():
        Path(name).write_text("\n".join(lines) + "\n")


def wanted() -> Any:
    return np.stack([Hashes().vector(line) for line in LINES])


@pytest.mark.parametrize("tasks", [1, 3])
def test_vectors_are_beside_their_own_texts(tasks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tasks deal the rows out, so that another order than the inputs' is right."""
    monkeypatch.setattr("nomicbert.bulk.job.parts.GROUP_ROWS", 3)
    for task in range(tasks):
        embed(list(FILES), "v", part_rows=7, task=(task + 1, tasks) if tasks > 1 else None)
    stored = open_vectors("v/")
    assert (stored.rows, stored.width, stored.dtype) == (23, 8, "float32")
    assert (stored.columns, stored.field) == (("text", "source", "row"), "text")
    assert stored.want["vectors"] == "hashes"
    texts = [str(row["text"]) for row in stored.take(range(23), ["text"])]
    assert sorted(texts) == sorted(LINES)
    assert (texts == LINES) == (tasks == 1)
    order = [LINES.index(text) for text in texts]
    np.testing.assert_array_equal(stored.vectors(), wanted()[order])
    some = [22, 0, 7, 7, 13, 1]
    np.testing.assert_array_equal(stored.vectors(some), wanted()[order][some])
    taken = stored.take(some)
    assert [row["text"] for row in taken] == [texts[row] for row in some]
    for row in taken:
        assert FILES[str(row["source"])][int(str(row["row"]))] == row["text"]


def test_float16_and_a_text_that_was_not_carried() -> None:
    encoder = Hashes()
    encoder.empty = encoder.empty.astype(np.float16)
    encoder.vector = lambda text: Hashes().vector(text).astype(np.float16)  # type: ignore[method-assign]
    embed("a.txt", "v", encoder, columns=())
    stored = open_vectors("v")
    assert (stored.dtype, stored.field, stored.columns) == ("float16", None, ("source", "row"))
    assert stored.vectors().dtype == np.float32
    np.testing.assert_array_equal(stored.vectors(), wanted()[:14].astype(np.float16))
    with pytest.raises(ValueError, match="has no column 'text': there are 'source', 'row'"):
        stored.take([0], ["text"])
    with pytest.raises(IndexError, match="the rows 0 to 13"):
        stored.take([14])


@pytest.mark.parametrize("kind", ["fixed", "list"])
def test_a_lone_file(kind: str) -> None:
    rows = wanted()
    column = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), 8)
    if kind == "list":
        column = pa.array(rows.tolist(), pa.list_(pa.float64()))
    table = pa.table({"id": list(range(23)), "text": LINES, "embedding": column})
    pq.write_table(table, "one.parquet", row_group_size=5)
    stored = open_vectors("one.parquet")
    assert (stored.rows, stored.columns, stored.field) == (23, ("id", "text"), "text")
    np.testing.assert_array_equal(stored.vectors(), rows)
    assert stored.take([20, 3]) == [{"id": 20, "text": "line 20"}, {"id": 3, "text": "line 3"}]


def test_vectors_of_several_lengths() -> None:
    rows = [[1.0, 2, 3], [4.0, 5], [6.0, 7, 8, 9]]  # three on average
    pq.write_table(pa.table({"embedding": pa.array(rows)}), "one.parquet")
    with pytest.raises(ValueError, match=r"one.parquet has vectors of different lengths"):
        open_vectors("one.parquet").vectors()


def test_a_first_row_group_without_rows() -> None:
    table = pa.table({"embedding": pa.array([[1.0, 2]])})
    with pq.ParquetWriter("one.parquet", table.schema) as writer:
        writer.write_table(table.slice(0, 0))
        writer.write_table(table)
    assert pq.ParquetFile("one.parquet").metadata.row_group(0).num_rows == 0
    assert open_vectors("one.parquet").vectors().tolist() == [[1, 2]]


def test_a_file_url() -> None:
    pq.write_table(pa.table({"embedding": pa.array([[1.0, 2]])}), "one.parquet")
    stored = open_vectors(Path("one.parquet").resolve().as_uri())
    assert stored.vectors().tolist() == [[1, 2]]


class Remote:
    """A file of a store, of which no time is known."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def size(self) -> int:
        return len(self.content)

    def ends(self, n: int) -> bytes:
        return self.content[:n] + self.content[n:][-n:]


def test_the_state_of_a_file() -> None:
    """Another one of the same size is seen, in a store too."""
    states = {state_of(Remote(content)) for content in (b"one", b"two", b"one")}  # type: ignore[arg-type]
    assert len(states) == 2
    before = state_of(place("a.txt"))
    os.utime("a.txt", (1, 1))
    assert state_of(place("a.txt")) != before


def test_a_folder_that_was_written_again() -> None:
    embed("a.txt", "v")
    stored = open_vectors("v")
    Path("a.txt").write_text("\n".join(LINES[::-1][:14]) + "\n")
    embed("a.txt", "v", restart=True)
    for read in (stored.vectors, lambda: stored.vectors([3]), lambda: stored.take([3])):
        with pytest.raises(ValueError, match="v has been written again since it was opened"):
            read()
    again = open_vectors("v")
    assert again.take([3], ["text"]) == [{"text": LINES[-4]}]
    next(Path("v").glob("part-*")).unlink()
    with pytest.raises(ValueError, match="v has been written again"):
        again.take([3])


def test_an_unfinished_job() -> None:
    Path("a.txt").write_text("short\n" * 12 + "longer than it may be\n")
    with pytest.raises(ValueError, match="line 13: it has over 20 tokens"):
        embed("a.txt", "v", Hashes(longest=20, truncate="error"))
    with pytest.raises(ValueError, match=r"v is not finished: it holds 10 vectors.*the command"):
        open_vectors("v")


def test_vectors_that_are_not_finite() -> None:
    Path("a.txt").write_text("fine\nfine too\nNaN here\nNaN there\n")
    embed("a.txt", "v")
    with pytest.raises(
        ValueError, match=r"NaN or infinite values, the first that of a.txt, line 3"
    ):
        open_vectors("v")
    rows = wanted()
    rows[17, 3] = np.inf
    column = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), 8)
    pq.write_table(pa.table({"embedding": column}), "one.parquet", row_group_size=5)
    stored = open_vectors("one.parquet")
    for read in (stored.vectors, lambda: stored.vectors([3, 17])):
        with pytest.raises(ValueError, match=r"the first that of one.parquet, row 18"):
            read()


def test_integers_are_no_vectors_to_compare() -> None:
    embed("a.txt", "v", Bytes())
    stored = open_vectors("v")
    assert stored.dtype == "int8"
    assert stored.take([0], ["text"]) == [{"text": "line 0"}]
    with pytest.raises(ValueError, match="precision int8: embed with --precision float32"):
        stored.vectors()


class Bytes(Hashes):
    def __init__(self) -> None:
        super().__init__()
        self.empty = self.empty.astype(np.int8)
        self.identity["precision"] = "int8"

    def vector(self, text: str) -> Any:
        return np.arange(8, dtype=np.int8)


def test_other_folders_and_files() -> None:
    Path("empty").mkdir()
    Path("none.txt").write_text("")
    embed("none.txt", "v")
    pq.write_table(pa.table({"text": ["a"]}), "plain.parquet")
    Path("damaged.parquet").write_bytes(b"PAR1 no more")
    for name, problem in {
        "empty": "has no _manifest.json, so it is not a folder of vectors: write one with",
        "v": "v holds no vectors",
        "nothing": "cannot read nothing: No such file",
        "a.txt": "a.txt is not a folder of vectors, nor a .parquet file",
        "plain.parquet": "has no column 'embedding'",
        "damaged.parquet": "damaged.parquet is damaged",
    }.items():
        with pytest.raises(ValueError, match=problem) as raised:
            open_vectors(name)
        assert "\n" not in str(raised.value)


def test_a_part_that_was_damaged_or_lost() -> None:
    embed(list(FILES), "v", part_rows=7)
    parts = sorted(Path("v").glob("part-*"))
    whole = parts[1].read_bytes()
    column = pq.ParquetFile(parts[1]).metadata.row_group(0).column(3)
    broken = bytearray(whole)
    broken[column.data_page_offset + column.total_compressed_size // 2] ^= 0xFF
    parts[1].write_bytes(bytes(broken))
    with pytest.raises(ValueError, match=rf"{parts[1].name} is damaged"):
        open_vectors("v").vectors()
    parts[1].unlink()
    with pytest.raises(ValueError, match="is not finished"):
        open_vectors("v")
