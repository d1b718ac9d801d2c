"""check_folder finds what is wrong with a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nomicbert.bulk.inputs.formats import InputFormat
from nomicbert.bulk.job import units
from nomicbert.bulk.job.check import check_folder
from nomicbert.bulk.job.fingerprints import Input, changes
from tests.bulk.job.standin import Hashes, embed, parts_of
from tests.bulk.job.truth import build

OUT = Path("out")
INPUTS = ["a.txt", "b.jsonl"]
PART = "part-00000-000001.parquet"


@pytest.fixture
def done(here: Path) -> None:
    assert embed(INPUTS, OUT, part_rows=5).parts == 5


@pytest.fixture
def without_inputs(done: None) -> None:
    for name in INPUTS:
        Path(name).unlink()


def problems() -> tuple[str, ...]:
    report = check_folder("out")
    assert not report.ok
    return report.problems


def rewrite(change: Callable[[pa.Table], pa.Table], name: str = PART, **footer: Any) -> None:
    """A part with other rows and the same footer."""
    path = OUT / name
    table = pq.read_table(path)
    said = {**json.loads(pq.read_metadata(path).metadata[b"nomicbert"]), **footer}
    table = change(table)
    pq.write_table(table.replace_schema_metadata({b"nomicbert": json.dumps(said).encode()}), path)


def order(*rows: int) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.take(list(rows))


def setting(column: str, row: int, value: Any) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        values[row] = value
        index = table.column_names.index(column)
        return table.set_column(
            index, table.schema.field(column), pa.array(values, table[column].type)
        )

    return change


def test_a_sound_folder(done: None) -> None:
    report = check_folder("out")
    assert report.ok
    assert report.compared
    assert (report.parts, report.rows, report.tasks, report.problems) == (5, 21, 1, ())
    assert report.tokens == 6 * 10 + 7 * 2 + 6 * 9


@pytest.mark.parametrize("options", [{}, {"columns": ()}, {"columns": ["id"]}])
@pytest.mark.parametrize("tasks", [1, 3])
def test_every_kind_of_row(here: Path, tasks: int, options: dict[str, Any]) -> None:
    truth = build(here / "in")
    for task in range(1, tasks + 1):
        given = (task, tasks) if tasks > 1 else None
        encoder = Hashes(4, truncate="error")
        embed(truth.inputs, OUT, encoder, task=given, part_rows=7, on_error="skip", **options)
    report = check_folder("out")
    assert report.problems == ()
    assert report.complete
    assert report.compared
    assert report.rows == len(truth.rows)
    assert (report.skipped, report.rejected) == (truth.skipped, len(truth.rejected))
    assert report.broken == 1
    assert report.first_broken == f"{truth.inputs[1]}, row 13"


def test_a_missing_part(done: None) -> None:
    (OUT / PART).unlink()
    report = check_folder("out")
    assert not report.complete
    assert not report.ok
    assert report.problems == ()  # the parts that are there are right
    parts_of(OUT)[-1].unlink()
    assert not check_folder("out").complete


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (order(0, 1, 1, 3, 4), "a.txt, line 8 should follow, and not a.txt, row 7"),
        (order(0, 2, 1, 3, 4), "a.txt, line 7 should follow, and not a.txt, row 8"),
        (order(1, 2, 3, 4, 4), "a.txt, line 6 should follow, and not a.txt, row 7"),
        (order(0, 1, 2, 3, 3), "a.txt, line 10 should follow, and not a.txt, row 9"),
        (setting("text", 3, "another"), "a.txt, line 9 has another text than the input"),
        (setting("text", 3, None), "a.txt, line 9 has another text than the input"),
        (setting("row", 4, 10), "a.txt, line 10 should follow, and not a.txt, row 11"),
        (setting("source", 0, "c.txt"), "a.txt, line 6 should follow, and not c.txt, row 6"),
    ],
)
def test_wrong_rows(done: None, change: Callable[[pa.Table], pa.Table], problem: str) -> None:
    rewrite(change)
    assert problems() == (f"{PART}: {problem}",)


def test_too_many_and_too_few_rows(done: None) -> None:
    rewrite(order(0, 1, 2, 3, 4, 4), rows=6)
    assert problems() == (f"{PART}: a.txt, row 10 is not one of its rows, or is there twice",)
    rewrite(order(0, 1, 2, 3), rows=4)
    assert problems() == (f"{PART}: a.txt, line 10 is missing",)
    rewrite(order(0, 1, 2))
    assert problems() == (
        f"out: {PART} is damaged: its footer states 4 rows, and there are 3: delete it to embed "
        "its rows again",
    )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (order(0, 1, 1, 3, 4), "a.txt, row 7 is not in its place, or is there twice"),
        (order(0, 2, 1, 3, 4), "a.txt, row 7 is not in its place, or is there twice"),
        (setting("row", 4, 10), "a.txt, row 11 is not in its place, or is there twice"),
        (setting("source", 0, "c.txt"), "c.txt, row 6 is not in its place, or is there twice"),
        (setting("row", 0, 4), "a.txt, row 5 is not in its place, or is there twice"),
    ],
)
def test_wrong_rows_without_the_inputs(
    without_inputs: None, change: Callable[[pa.Table], pa.Table], problem: str
) -> None:
    assert not check_folder("out").compared
    rewrite(change)
    assert problems()[-1] == f"{PART}: {problem}"


def test_missing_rows_without_the_inputs(without_inputs: None) -> None:
    rewrite(order(0, 1, 3, 4), rows=4)
    assert problems()[-1] == f"{PART}: it covers 5 rows, and its footer states 4"


def test_inputs_that_are_gone_or_changed(done: None) -> None:
    Path("b.jsonl").rename("c.jsonl")
    report = check_folder("out")
    assert (report.complete, report.compared) == (True, False)
    assert report.problems[0].startswith("cannot read")
    assert check_folder("out", ["a.txt", "c.jsonl"]).ok
    Path("b.jsonl").write_text("x")
    assert problems() == (
        "rows were not compared with the inputs: b.jsonl has changed: it had 369 bytes, now 1",
    )


def test_vectors_that_are_not_finite(done: None) -> None:
    rewrite(setting("embedding", 2, [0.0] * 7 + [np.nan]))
    rewrite(setting("embedding", 1, [np.inf] + [0.0] * 7), "part-00000-000003.parquet")
    report = check_folder("out")
    assert not report.ok
    assert (report.problems, report.broken) == ((), 2)
    assert report.first_broken == "a.txt, row 8"


def test_a_part_of_another_job(done: None) -> None:
    rewrite(lambda table: table, run="0" * 32)
    assert problems()[0].startswith(f"out: {PART} belongs to another job (run {'0' * 32}, this")


def test_a_damaged_part(done: None) -> None:
    """A bit of a vector has turned over. Readers do not see it; the checksum of its page does."""
    path = OUT / PART
    sound, rows = path.read_bytes(), pq.read_table(path)
    group = pq.read_metadata(path).row_group(0)
    found = group.column(group.num_columns - 1)
    assert found.path_in_schema.startswith("embedding")
    for at in range(found.data_page_offset + found.total_compressed_size - 1, 0, -1):
        path.write_bytes(sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :])
        with suppress(OSError):
            if not pq.read_table(path).equals(rows):
                break
    assert problems()[0].startswith(f"{PART}: it is damaged: ")


@pytest.mark.parametrize("on_null", ["empty", "skip"])
def test_null_texts(here: Path, on_null: str) -> None:
    lines = ('{"text": null}', '{"text": "one"}', '{"text": null}', '{"text": ""}')
    Path("c.jsonl").write_text("\n".join(lines) + "\n")
    embed("c.jsonl", OUT, on_null=on_null, part_rows=1)
    report = check_folder("out")
    assert report.problems == ()
    assert (report.rows, report.skipped) == ((4, 0) if on_null == "empty" else (2, 2))


def test_files_of_rejected_rows(here: Path) -> None:
    truth = build(here / "in")
    embed(truth.inputs, OUT, Hashes(4, truncate="error"), part_rows=10, on_error="skip")
    files = sorted(OUT.glob("_rejected-*"), key=lambda path: -path.stat().st_size)
    lines = files[0].read_text().splitlines()
    files[0].write_text("\n".join(lines[1:]) + "\n")
    assert "its rejected rows are not those of the inputs: " in problems()[0]
    files[0].write_text("{}\n")
    assert f"{files[0].name} is damaged: KeyError('source')" in problems()
    files[0].unlink()
    assert problems() == (f"{files[0].name} is missing",)
    files[0].write_text("\n".join(lines) + "\n")
    assert check_folder("out").problems == ()
    (OUT / "_rejected-00000-000099.jsonl").write_text("\n".join(lines) + "\n")
    assert problems() == ("_rejected-00000-000099.jsonl belongs to no part",)


def test_wrong_counts(here: Path) -> None:
    truth = build(here / "in")
    embed(truth.inputs, OUT, Hashes(4, truncate="error"), part_rows=10, on_error="skip")
    name = next(
        path.name
        for path in parts_of(OUT)
        if json.loads(pq.read_metadata(path).metadata[b"nomicbert"])["skipped"] == 4
    )
    rewrite(lambda table: table, name, skipped=5)
    assert problems() == (f"{name}: its footer states 5 rows without a text, not 4",)


def test_a_foreign_file(done: None) -> None:
    (OUT / "x.parquet").write_bytes(b"")
    assert problems()[0].startswith("out holds x.parquet, which is no part of this job")


def test_a_gap_between_parts(done: None) -> None:
    rewrite(lambda table: table, start=[0, 6, None])
    assert any(
        "starts at row 6 of source 0, but the parts before it end" in one for one in problems()
    )


def test_not_a_job(here: Path) -> None:
    with pytest.raises(ValueError, match=r"out has no _manifest\.json: it is not the folder of a"):
        check_folder("out")


def test_many_problems_are_counted(here: Path) -> None:
    Path("c.txt").write_text("x\n" * 130)
    embed("c.txt", OUT, part_rows=1)
    for path in parts_of(OUT)[:120]:
        path.write_bytes(b"")
    report = check_folder("out")
    assert (report.problem_count, len(report.problems)) == (120, 100)


def test_an_end_before_the_inputs(done: None) -> None:
    for part in parts_of(OUT)[2:]:
        part.unlink()
    rewrite(lambda table: table, end=True)
    assert problems() == (
        f"{PART}: its footer states that the task ends here, but a.txt, line 11 follows",
    )


@pytest.mark.parametrize("behind", [0, 1])
def test_rows_that_two_parts_hold(done: None, behind: int) -> None:
    """Also where the job is not complete, or the parts before them are not."""
    last = parts_of(OUT)[-1]
    if behind:
        last.unlink()
    again = OUT / "part-00000-000002.parquet"
    again.write_bytes((OUT / PART).read_bytes())
    rewrite(lambda table: table, again.name, number=2)
    assert any(
        "part-00000-000002.parquet starts at row 5 of source 0, but" in p for p in problems()
    )


def test_rows_that_two_parts_of_a_later_task_hold(here: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(units, "STEP", 2)
    embed(INPUTS, OUT, task=(2, 2), part_rows=2)
    again = OUT / "part-00001-000002.parquet"
    again.write_bytes((OUT / "part-00001-000001.parquet").read_bytes())
    rewrite(lambda table: table, again.name, number=2)
    assert any("part-00001-000002.parquet starts at row" in one for one in problems())


def test_a_column_of_texts_that_is_lost(done: None) -> None:
    def lose(table: pa.Table) -> pa.Table:
        index = table.column_names.index("text")
        return table.set_column(index, table.schema.field(index), pa.nulls(5, pa.string()))

    rewrite(lose)
    assert problems() == (f"{PART}: a.txt, line 6 has another text than the input",)


def test_a_text_field_without_a_name(here: Path) -> None:
    Path("c.jsonl").write_text('{"": "one"}\n{"": "two"}\n')
    embed("c.jsonl", OUT, field="")
    name = "part-00000-000000.parquet"
    rewrite(setting("", 1, "other"), name)
    assert problems() == (f"{name}: c.jsonl, line 2 has another text than the input",)


def test_inputs_of_a_given_format_that_were_moved(here: Path) -> None:
    embed("b.jsonl", OUT, input_format=InputFormat.text)
    Path("moved").mkdir()
    Path("b.jsonl").rename("moved/b.jsonl")
    report = check_folder("out", ["moved/b.jsonl"])
    assert report.problems == ()
    assert report.compared


def test_inputs_that_got_other_names(done: None) -> None:
    """Formats are those of the job, in its order."""
    Path("b.jsonl").rename("b.old")
    Path("a.txt").rename("a.csv")
    assert check_folder("out", ["a.csv", "b.old"]).ok
    report = check_folder("out", ["b.old", "a.csv"])
    assert report.problems == (
        "rows were not compared with the inputs: input 1 was a.txt (86 bytes), now it is b.old "
        "(369 bytes)",
    )
    assert "there were 2 inputs, now 1" in check_folder("out", ["a.csv"]).problems[0]


def test_formats_are_compared_before_names() -> None:
    before = Input("x", 5, "0", "text", None)
    assert changes([before], [replace(before, name="y", format="jsonl")]) == [
        "y was read as text, now as jsonl"
    ]
    assert changes([before], [replace(before, name="y", sha256="1")]) == [
        "input 1 was x (5 bytes), now it is y (5 bytes of other content)"
    ]
