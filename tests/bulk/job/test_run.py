"""What a job writes: parts, footers, files of rejected rows, and the report."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nomicbert.bulk import output as outputs
from nomicbert.bulk.inputs import columns
from nomicbert.bulk.job import cutter
from nomicbert.bulk.job import parts as job_parts
from nomicbert.bulk.job.check import check_folder
from nomicbert.bulk.job.options import Options
from nomicbert.bulk.job.parts import Part
from nomicbert.bulk.job.plan import plan_job
from nomicbert.bulk.job.run import run_job
from nomicbert.bulk.progress import BulkProgress
from tests.bulk.job.standin import Hashes, embed, parts_of, rejects_of
from tests.bulk.job.truth import LONG, build, wrong

OUT = Path("out")
INPUTS = ["a.txt", "b.jsonl"]


def footers() -> list[dict[str, Any]]:
    return [json.loads(pq.read_metadata(path).metadata[b"nomicbert"]) for path in parts_of(OUT)]


def sizes() -> list[int]:
    return [footer["rows"] for footer in footers()]


def names() -> set[str]:
    return {path.name for path in OUT.iterdir()} - {".lock"}


class Raising(Hashes):
    """Raises an error instead of the window after `windows_before` of them."""

    def __init__(self, error: BaseException, windows_before: int) -> None:
        super().__init__()
        self.error, self.left = error, windows_before

    def windows(self, texts: Iterator[str], progress: Any) -> Iterator[Any]:
        for window in super().windows(texts, progress):
            if not self.left:
                raise self.error
            self.left -= 1
            yield window


def test_the_columns_of_a_part(here: Path) -> None:
    embed(["b.jsonl"], OUT)
    table = pq.read_table(OUT)
    assert [(field.name, str(field.type)) for field in table.schema] == [
        ("text", "string"), ("id", "int64"), ("body", "string"), ("source", "string"),
        ("row", "int64"), ("embedding", "fixed_size_list<element: float>[8]"),
    ]  # fmt: skip
    assert table["source"].to_pylist() == ["b.jsonl"] * 9
    assert table["row"].to_pylist() == table["id"].to_pylist() == list(range(9))
    vectors = np.array(table["embedding"].to_pylist(), np.float32)
    assert np.array_equal(vectors, [Hashes().vector(f"text {n}") for n in range(9)])


def test_columns_that_the_output_has_itself(here: Path) -> None:
    lines = [{"text": "a", "source": "web", "row": 7, "embedding": [1]}]
    Path("c.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    embed("c.jsonl", OUT)
    row = pq.read_table(OUT).to_pylist()[0]
    del row["embedding"]
    assert row == {
        "text": "a", "input_source": "web", "input_row": 7, "input_embedding": [1],
        "source": "c.jsonl", "row": 0,
    }  # fmt: skip


@pytest.mark.parametrize(("columns", "carried"), [((), []), (["id"], ["id"])])
def test_some_columns(here: Path, columns: list[str], carried: list[str]) -> None:
    embed("b.jsonl", OUT, columns=columns)
    table = pq.read_table(OUT)
    assert table.column_names == [*carried, "source", "row", "embedding"]
    assert table["row"].to_pylist() == list(range(9))


def test_parts_span_inputs(here: Path) -> None:
    """Twelve lines and nine objects: the third part begins in one file and ends in the other."""
    report = embed(INPUTS, OUT, part_rows=5)
    assert sizes() == [5, 5, 5, 5, 1]
    found = footers()
    assert [footer["start"][:2] for footer in found] == [[0, 0], [0, 5], [0, 10], [1, 3], [1, 8]]
    assert [footer["end"] for footer in found] == [False] * 4 + [True]
    # a task ends with the end of its inputs
    assert found[-1]["next"][:2] == [1, 9]
    size = sum(os.path.getsize(name) for name in INPUTS)
    assert sum(footer["size"] for footer in found) == size
    assert (report.rows, report.made, report.kept, report.parts) == (21, 21, 0, 5)
    assert (report.width, report.dtype, report.tokens) == (8, "float32", 6 * 10 + 7 * 2 + 6 * 9)
    again = embed(INPUTS, OUT, part_rows=7)
    assert (again.rows, again.made, again.kept, again.parts) == (21, 0, 21, 5)


def test_the_bytes_of_a_job(here: Path) -> None:
    total = sum(os.path.getsize(name) for name in INPUTS)
    told = BulkProgress("none")
    with pytest.raises(RuntimeError):
        embed(INPUTS, OUT, Raising(RuntimeError(), 3), part_rows=5, progress=told)
    assert told.rows == 15
    with plan_job(INPUTS, "out", Options()) as job:
        assert job.total_bytes == total
        assert job.left_bytes == total - told._bytes


@pytest.mark.parametrize("lines", [0, 1, 5, 10])
def test_an_input_that_ends_with_a_part(here: Path, lines: int) -> None:
    """Also if it is empty: there is a last part, and reading the folder works."""
    Path("c.txt").write_text("x\n" * lines)
    report = embed("c.txt", OUT, Hashes(window=5), part_rows=5)
    assert report.rows == pq.read_table(OUT).num_rows == lines
    assert [footer["end"] for footer in footers()] == [False] * (report.parts - 1) + [True]
    assert embed("c.txt", OUT).made == 0


def test_a_part_is_closed_by_time(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 4))
    monkeypatch.setattr(cutter.time, "monotonic", lambda: float(next(clock)))
    embed(INPUTS, OUT, Hashes(window=2), part_seconds=7)
    assert sizes() == [4, 4, 4, 4, 4, 1]


def test_row_groups_are_bounded(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_parts, "GROUP_ROWS", 4)
    embed(INPUTS, OUT)
    (part,) = parts_of(OUT)
    file = pq.ParquetFile(part)
    found = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
    assert found == [4, 4, 4, 4, 4, 1]
    monkeypatch.setattr(job_parts, "GROUP_ROWS", 8192)
    monkeypatch.setattr(job_parts, "GROUP_BYTES", 50)
    embed(INPUTS, Path("two"))
    assert pq.ParquetFile(parts_of(Path("two"))[0]).num_row_groups == 6


def test_skips_and_rejects_at_every_border(here: Path) -> None:
    """A part may begin or end with rows that have no vector, and hold nothing else."""
    truth = build(here / "in")
    for rows in (1, 2, 3, 5, 9, 10, 11):
        for window in (1, 4):
            output = here / f"out-{rows}-{window}"
            encoder = Hashes(window, truncate="error")
            report = embed(truth.inputs, output, encoder, part_rows=rows, on_error="skip")
            assert wrong(output, truth) == []
            assert (report.rows, report.rejected) == (len(truth.rows), len(truth.rejected))
            assert report.skipped == truth.skipped
            assert report.broken == 1
            assert report.first_broken == f"{truth.inputs[1]}, line 13"


def test_every_set_of_lost_parts_is_filled(here: Path) -> None:
    """Whatever is deleted, in any number, and however parts are cut the second time."""
    truth = build(here / "in")
    encoder = Hashes(4, truncate="error")
    for lost in range(1, 256, 7):
        embed(truth.inputs, OUT, encoder, restart=True, part_rows=12, on_error="skip")
        parts = parts_of(OUT)
        assert len(parts) == 8
        for index, part in enumerate(parts):
            if lost >> index & 1:
                part.unlink()
        before = sum(sizes())
        report = embed(truth.inputs, OUT, encoder, part_rows=1 + lost % 12, on_error="skip")
        assert wrong(OUT, truth) == [], f"lost {lost:b}"
        assert report.kept == before


def test_rejected_rows_are_told(here: Path) -> None:
    Path("c.jsonl").write_bytes(b'{"text": "a"}\n{"text": \n\n{"text": "\xff"}\n{"x": 1}\n')
    with Path("c.jsonl").open("a") as file:
        file.write(json.dumps({"text": LONG}) + "\n" + json.dumps({"text": "b"}) + "\n")
    embed("c.jsonl", OUT, Hashes(truncate="error"), on_error="skip")
    found = rejects_of(OUT)
    assert [one.pop("source") for one in found] == ["c.jsonl"] * 4
    assert [one["row"] for one in found] == [1, 3, 4, 5]
    assert found[0]["problem"].startswith("not JSON: ")
    assert found[0]["content"] == '{"text": '
    assert "is not UTF-8" in found[1]["problem"]
    assert found[2]["content"] == '{"x": 1}'
    assert found[3]["problem"] == "the text has over 60 tokens"
    assert found[3]["content"] == json.dumps({"text": LONG})


def test_a_value_that_does_not_fit_its_column(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The column's type is known from the first rows."""
    monkeypatch.setattr(columns, "SAMPLE_ROWS", 5)
    values = [1] * 20
    for row in (6, 7, 11, 19):
        values[row] = "two"  # type: ignore[call-overload]
    lines = (json.dumps({"text": f"{n}", "id": value}) for n, value in enumerate(values))
    Path("c.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=r"c\.jsonl, line 7: the field 'id', 'two', does not fit"):
        embed("c.jsonl", OUT)
    assert names() == {"_manifest.json"}
    report = embed("c.jsonl", OUT, restart=True, on_error="skip", part_rows=6)
    assert [one["row"] for one in rejects_of(OUT)] == [6, 7, 11, 19]
    table = pq.read_table(OUT)
    assert table["row"].to_pylist() == [n for n in range(20) if values[n] == 1]
    wanted = [Hashes().vector(text).tolist() for text in table["text"].to_pylist()]
    assert table["embedding"].to_pylist() == wanted
    assert (report.rows, report.rejected, report.tokens) == (16, 4, 6 + 2 * 8 + 2)
    assert embed("c.jsonl", OUT, on_error="skip").made == 0


def test_a_text_that_the_encoder_refuses(here: Path) -> None:
    """Rows before it stay, and the message names its line."""
    Path("c.txt").write_text("one\ntwo\nthree\n" + LONG + "\nfive\n")
    encoder = Hashes(1, truncate="error")
    with pytest.raises(ValueError, match=r"c\.txt, line 4: it has over 60 tokens"):
        embed("c.txt", OUT, encoder)
    assert sizes() == [3]
    report = embed("c.txt", Path("two"), encoder, on_error="skip")
    assert (report.rows, report.rejected) == (4, 1)


def test_a_broken_line_in_the_third_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the rows that are looked at in the beginning."""
    monkeypatch.setattr(columns, "SAMPLE_ROWS", 1)
    Path("c.jsonl").write_text('{"text": "a"}\n{"text": "b"}\nbroken\n')
    with pytest.raises(ValueError, match=r"c\.jsonl, line 3: not JSON: "):
        embed([*INPUTS, "c.jsonl"], OUT, Hashes(1), part_rows=8)
    # the encoder had read two texts ahead, whose vectors are lost
    assert sizes() == [8, 8, 5]
    assert "_manifest.json" in names()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143), MemoryError(), OSError(5)])
def test_an_error_between_windows_keeps_their_rows(here: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        embed(INPUTS, OUT, Raising(error, 3), part_rows=9)
    assert sizes() == [9, 6]
    assert not footers()[-1]["end"]
    assert names() == {"_manifest.json", *(path.name for path in parts_of(OUT))}
    report = embed(INPUTS, OUT, part_rows=9)
    assert (report.kept, report.made) == (15, 6)


def test_an_error_in_a_hole_keeps_what_fits(here: Path) -> None:
    """The last number of a hole must hold all the rest of it."""
    embed(INPUTS, OUT, part_rows=5)
    parts_of(OUT)[1].unlink()
    with pytest.raises(KeyboardInterrupt):
        embed(INPUTS, OUT, Raising(KeyboardInterrupt(), 0), part_rows=2)
    assert len(parts_of(OUT)) == 4
    embed(INPUTS, OUT, part_rows=2)
    assert sizes() == [5] * 4 + [1]


def test_an_error_while_a_part_is_written_removes_it(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush, left = job_parts.Part._flush, [2]

    def stop(self: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        flush(self)

    monkeypatch.setattr(job_parts.Part, "_flush", stop)
    with pytest.raises(KeyboardInterrupt):
        embed(INPUTS, OUT, part_rows=5)
    assert names() == {"_manifest.json", *(path.name for path in parts_of(OUT))}
    monkeypatch.undo()
    os.chdir(here)
    assert embed(INPUTS, OUT, part_rows=5).rows == 21


@pytest.mark.parametrize("most", [300, 2_000, 5_000, 20_000, 40_000])
@pytest.mark.parametrize("place", ["part-", "_rejected-", "_manifest"])
def test_a_full_disk(here: Path, monkeypatch: pytest.MonkeyPatch, most: int, place: str) -> None:
    """Whenever it is full: an OSError that names the file, nothing left over, and it goes on."""
    truth = build(here / "in", scale=3)
    write, used = outputs._NamedFile.write, [0]

    def write_or_fail(self: Any, data: Any) -> int:
        if place in self._path:
            used[0] += len(data)
            if used[0] > most:
                with outputs._named(self._path):
                    raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(outputs._NamedFile, "write", write_or_fail)
    monkeypatch.setattr(outputs, "BUFFER", 512)
    encoder = Hashes(4, truncate="error")
    said = ""
    try:
        embed(truth.inputs, OUT, encoder, part_rows=20, on_error="skip")
    except OSError as error:
        said = str(error)
    assert bool(said) == (used[0] > most)
    if said:
        assert f"cannot write out/{place}" in said
        assert said.endswith("No space left on device")
    assert not [name for name in names() if name.endswith(".tmp")]
    monkeypatch.setattr(outputs._NamedFile, "write", write)
    embed(truth.inputs, OUT, encoder, part_rows=20, on_error="skip")
    assert wrong(OUT, truth) == []


def test_a_really_full_disk(here: Path) -> None:
    """A limit of the file size, in a process of its own, is a full disk to pyarrow."""
    import resource

    Path("big.txt").write_text("".join(f"{os.urandom(40).hex()}\n" for _ in range(400)))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write out/part-00000-000000\.parquet: File too"):
            embed("big.txt", OUT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert names() == {"_manifest.json"}
    assert embed("big.txt", OUT).rows == 400


def test_files_left_by_a_crash_are_removed(here: Path) -> None:
    embed(INPUTS, OUT, part_rows=5)
    parts_of(OUT)[-1].unlink()
    left = [
        ".part-00000-000004.parquet.0123abcd.tmp",
        "._rejected-00000-000004.jsonl.0123abcd.tmp",
        "_rejected-00000-000004.jsonl",
        "_rejected-00000-000000.jsonl",
    ]
    foreign = [".part-00001-000000.parquet.0123abcd.tmp", "_rejected-00001-000000.jsonl"]
    for name in [*left, *foreign]:
        (OUT / name).write_bytes(b"{}\n")
    embed(INPUTS, OUT, part_rows=5)
    assert not names() & set(left)
    assert set(foreign) <= names()


def test_an_encoder_that_loses_texts(here: Path) -> None:
    class Losing(Hashes):
        def windows(self, texts: Iterator[str], progress: Any) -> Iterator[Any]:
            yield next(iter(super().windows(texts, progress)))

    with pytest.raises(RuntimeError, match="before all of its texts had vectors"):
        embed(INPUTS, OUT, Losing(), part_rows=5)
    assert sizes() == [5]


def test_the_next_vectors_are_computed_while_a_part_is_written(here: Path) -> None:
    """One stream of vectors runs through all parts."""
    opened = []

    class Counting(Hashes):
        def windows(self, texts: Iterator[str], progress: Any) -> Iterator[Any]:
            opened.append(len(opened))
            return super().windows(texts, progress)

    embed(INPUTS, OUT, Counting(), part_rows=2)
    assert opened == [0]


def test_a_window_is_written_while_the_next_is_computed(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed, add = threading.Event(), Part.add

    class Telling(Hashes):
        def windows(self, texts: Iterator[str], progress: Any) -> Iterator[Any]:
            for number, window in enumerate(super().windows(texts, progress)):
                if number == 1:
                    computed.set()
                yield window

    def waiting(part: Part, *arguments: Any) -> None:
        assert computed.wait(30), "the first row was written before the second window came"
        add(part, *arguments)

    monkeypatch.setattr(Part, "add", waiting)
    embed(INPUTS, OUT, Telling(), part_rows=2)
    assert len(sizes()) > 3
    assert check_folder(str(OUT)).ok


def test_rows_that_are_being_written_stay_when_the_encoder_fails(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing, add = threading.Event(), Part.add

    class Failing(Raising):
        def windows(self, texts: Iterator[str], progress: Any) -> Iterator[Any]:
            try:
                yield from super().windows(texts, progress)
            except KeyboardInterrupt:
                failing.set()
                raise

    def waiting(part: Part, *arguments: Any) -> None:
        assert failing.wait(30)
        add(part, *arguments)

    monkeypatch.setattr(Part, "add", waiting)
    with pytest.raises(KeyboardInterrupt):
        embed(INPUTS, OUT, Failing(KeyboardInterrupt(), 1), part_rows=100)
    assert sizes() == [5]


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint8"])
def test_dtypes(here: Path, dtype: str) -> None:
    class Other(Hashes):
        def vector(self, text: str) -> Any:
            return (super().vector(text) * 100).astype(dtype)

    encoder = Other()
    encoder.empty = np.empty((0, 8), dtype)
    report = embed(INPUTS, OUT, encoder)
    assert (report.width, report.dtype) == (8, dtype)
    column = pq.read_table(OUT)["embedding"].combine_chunks()
    found = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, 8)
    texts = pq.read_table(OUT)["text"].to_pylist()
    assert column.type == pa.list_(pa.field("element", pa.from_numpy_dtype(dtype)), 8)
    assert np.array_equal(found, [encoder.vector(text) for text in texts])


def test_the_bits_of_many_runs_are_those_of_one(here: Path) -> None:
    """Values are compared as bits: NaN, -0 and all."""
    truth = build(here / "in")
    encoder = Hashes(4, truncate="error")
    embed(truth.inputs, Path("one"), encoder, on_error="skip")
    for stop in range(1, 40):
        raising = Raising(KeyboardInterrupt(), 1)
        raising.window, raising.refusal, raising.identity = 4, encoder.refusal, encoder.identity
        with suppress(KeyboardInterrupt):
            embed(truth.inputs, OUT, raising, part_rows=stop, on_error="skip")
            break
    whole, pieces = pq.read_table("one"), pa.concat_tables(map(pq.read_table, parts_of(OUT)))
    assert len(parts_of(OUT)) > 10
    assert pieces.drop(["embedding"]).equals(whole.drop(["embedding"]))
    bits = [
        np.array(table["embedding"].to_pylist(), np.float32).view(np.uint32)
        for table in (whole, pieces)
    ]
    assert np.array_equal(bits[0], bits[1])


def test_a_finished_job_needs_no_vectors(here: Path) -> None:
    embed(INPUTS, OUT, part_rows=1)
    encoder = Raising(AssertionError(), 0)
    started = time.monotonic()
    with plan_job(INPUTS, "out", Options()) as job:
        assert job.complete
        assert job.left_bytes == 0
        report = run_job(job, encoder, BulkProgress("none"))
    assert (report.rows, report.made, report.parts) == (21, 0, 21)
    assert report.seconds <= time.monotonic() - started


def test_a_part_that_time_ends_may_be_the_last(here: Path) -> None:
    """No empty part follows."""
    embed(INPUTS, OUT, part_seconds=1e-9)
    assert sizes() == [5, 5, 5, 5, 1]
    assert [footer["end"] for footer in footers()] == [False] * 4 + [True]


def test_a_bad_row_late_in_a_job_can_be_passed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows are those of a job that leaves out such rows from the beginning."""
    monkeypatch.setattr(columns, "SAMPLE_ROWS", 5)
    lines = [json.dumps({"text": f"{n}"}) for n in range(20)]
    lines[13] = "broken"
    Path("c.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=r"^c\.jsonl, line 14: not JSON.*\(--on-error skip\)"):
        embed("c.jsonl", OUT, Hashes(2), part_rows=4)
    manifest = (OUT / "_manifest.json").read_bytes()
    assert sum(sizes()) == 8
    report = embed("c.jsonl", OUT, Hashes(2), part_rows=4, on_error="skip")
    assert (report.kept, report.made, report.rejected) == (8, 11, 1)
    assert (OUT / "_manifest.json").read_bytes() == manifest
    embed("c.jsonl", Path("two"), on_error="skip")
    one, two = (pa.concat_tables(map(pq.read_table, parts_of(o))) for o in (OUT, Path("two")))
    assert one.equals(two)
    assert check_folder("out").ok
    with pytest.raises(
        ValueError, match=r'on_error was "skip", which left out 1 row, now it is "f'
    ):
        embed("c.jsonl", OUT)


def test_a_job_without_bad_rows_may_refuse_them_from_now_on(here: Path) -> None:
    embed(INPUTS, OUT, part_rows=5, on_error="skip")
    parts_of(OUT)[2].unlink()
    assert embed(INPUTS, OUT, part_rows=5).made == 5


@pytest.mark.parametrize("line", ["broken", json.dumps({"text": LONG}), '{"text": "a", "id": "x"}'])
def test_the_message_of_a_bad_row_tells_how_to_go_on(
    here: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.setattr(columns, "SAMPLE_ROWS", 5)
    lines = [json.dumps({"text": f"{n}", "id": n}) for n in range(20)]
    Path("c.jsonl").write_text("\n".join([*lines[:13], line, *lines[13:]]) + "\n")
    advice = r'^c\.jsonl, line 14: .*: on_error="skip" \(--on-error skip\) leaves such rows out'
    encoder = Hashes(2, truncate="error")
    with pytest.raises(ValueError, match=advice):
        embed("c.jsonl", OUT, encoder, part_rows=4)
    assert embed("c.jsonl", OUT, encoder, part_rows=4, on_error="skip").rejected == 1
