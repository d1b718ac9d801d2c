"""What a job refuses, and that it says why: nothing is embedded twice, or into the wrong folder."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nomicbert.bulk.inputs.formats import InputFormat
from nomicbert.bulk.job import fingerprints, plan, units
from nomicbert.bulk.job import options as job_options
from nomicbert.bulk.job.check import check_folder
from nomicbert.bulk.job.folder import LocalFolder
from nomicbert.bulk.job.locked import Locked
from nomicbert.bulk.job.manifest import read_manifest
from nomicbert.bulk.job.options import Options
from nomicbert.bulk.job.plan import plan_job
from tests.bulk.job.standin import Hashes, embed, parts_of

OUT = Path("out")
INPUTS = ["a.txt", "b.jsonl"]
PART = "part-00000-000001.parquet"
WAYS_OUT = (
    ". Give the same to go on, choose another folder, or pass restart=True (--restart), which "
    "deletes its parts first"
)


def refused(*args: Any, inputs: Any = INPUTS, **options: Any) -> str:
    """The message of a refusal, which changes nothing in the folder."""
    before = {path.name: path.read_bytes() for path in OUT.glob("[!.]*") if path.is_file()}
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        embed(inputs, OUT, *args, **{"part_rows": 5, **options})
    after = {path.name: path.read_bytes() for path in OUT.glob("[!.]*") if path.is_file()}
    assert before == after
    return str(caught.value)


@pytest.fixture
def done(here: Path) -> None:
    """A finished job of five parts."""
    assert embed(INPUTS, OUT, part_rows=5).parts == 5


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"field": "body"}, 'field was "text", now it is "body"'),
        ({"columns": ["id"]}, 'columns was null, now it is ["id"]'),
        ({"columns": ()}, "columns was null, now it is []"),
        ({"on_null": "empty"}, 'on_null was "error", now it is "empty"'),
        ({"task": (2, 3)}, "tasks was 1, now it is 3"),
        ({"encoder": Hashes(model="new")},
         'vectors was "hashes", now it is "new"; model was "model hashes", now it is "model new"'),
        ({"encoder": Hashes(truncate="error")}, 'truncate was "end", now it is "error"'),
        ({"inputs": ["a.txt"]}, "there were 2 inputs, now 1: b.jsonl is not in both"),
        ({"inputs": ["b.jsonl", "a.txt"]},
         "input 1 was a.txt (86 bytes), now it is b.jsonl (369 bytes)"),
        ({"input_format": InputFormat.text}, "b.jsonl was read as jsonl, now as text"),
    ],
)  # fmt: skip
def test_another_job(done: None, options: dict[str, Any], difference: str) -> None:
    assert refused(**options) == f"out holds another job: {difference}{WAYS_OUT}"


def test_another_version(done: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_options, "__version__", "9.9")
    assert 'version of nomicbert was "' in (said := refused())
    assert '", now it is "9.9"' in said


def test_several_differences_are_all_named(done: None) -> None:
    said = refused(Hashes(model="new"), on_null="skip", field="body")
    assert 'on_null was "error"' in said
    assert 'field was "text"' in said


@pytest.mark.parametrize(
    ("content", "difference"),
    [
        ("more\n", "b.jsonl has changed: it had 369 bytes, now 5"),
        (None, "b.jsonl has changed: other content of the same size"),
    ],
)
def test_a_changed_input(done: None, content: str | None, difference: str) -> None:
    file = Path("b.jsonl")
    file.write_text(file.read_text().replace("text 8", "TEXT 8") if content is None else content)
    assert refused() == f"out holds another job: {difference}{WAYS_OUT}"


def test_an_appended_line(done: None) -> None:
    with Path("a.txt").open("a") as file:
        file.write("another\n")
    assert "a.txt has changed: it had 86 bytes, now 94" in refused()


def test_another_directory_is_the_same_job(done: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows keep the names that their sources had when the job began."""
    (OUT / "part-00000-000002.parquet").unlink()
    report = embed([os.path.abspath(name) for name in INPUTS], OUT, part_rows=5)
    assert (report.made, report.kept) == (5, 16)
    names = {name for path in parts_of(OUT) for name in pq.read_table(path)["source"].to_pylist()}
    assert names == {"a.txt", "b.jsonl"}


def test_an_input_that_changes_while_it_is_read(here: Path) -> None:
    class Appending(Hashes):
        def vector(self, text: str) -> Any:
            if text == "line 3":
                with Path("a.txt").open("a") as file:
                    file.write("late\n")
            return super().vector(text)

    with pytest.raises(ValueError, match=r"a\.txt has changed while it was read: it had 86 bytes"):
        embed(INPUTS, OUT, Appending(), part_rows=5)


def test_an_input_that_lost_rows(done: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change that its fingerprint does not show, as in the middle of a large file."""
    (OUT / "part-00000-000002.parquet").unlink()
    file = Path("b.jsonl")
    found = read_manifest(LocalFolder("out")).inputs
    monkeypatch.setattr(plan, "fingerprints", lambda sources: found)
    file.write_text(" " * (file.stat().st_size - 1) + "\n")
    assert refused() == (
        "the inputs have fewer rows than when the job began: they end at row 1 of source 1, and "
        "the next part starts at row 3 of source 1. Begin anew with restart=True (--restart)"
    )


@pytest.mark.parametrize("task", [None, (1, 2)])
def test_lines_that_have_moved(
    here: Path, monkeypatch: pytest.MonkeyPatch, task: tuple[int, int] | None
) -> None:
    """A change that the fingerprint does not show: reading would go on within a line."""
    monkeypatch.setattr(fingerprints, "END", 8)
    monkeypatch.setattr(units, "STEP", 2)
    Path("a.txt").write_text("".join(f"line {n}\n" for n in range(12)).removesuffix("\n"))
    embed(INPUTS, OUT, part_rows=5, task=task)
    parts_of(OUT)[1].unlink()
    at = 5 * len("line 0\n")
    if task is not None:
        spans = read_manifest(LocalFolder("out")).tasks[0]
        at = next(span.offset for span in spans if span.offset and span.source == 0)
    file = Path("a.txt")
    sound = file.read_text()
    file.write_text(f"{sound[: at - 1]}.{sound[at:]}")
    said = refused(task=task)
    assert said.startswith(f"a.txt has changed: it has no end of a line at byte {at}, where ")
    assert said.endswith(" goes on. Begin anew with restart=True (--restart)")
    file.write_text(sound)
    assert embed(INPUTS, OUT, part_rows=5, task=task).made


@pytest.mark.parametrize("name", ["c.txt", "c.csv"])
def test_a_last_line_without_an_end(here: Path, name: str) -> None:
    """A part may end there."""
    Path(name).write_text("text\none\ntwo")
    embed([name, "b.jsonl"], OUT, part_rows=1)
    for part in parts_of(OUT)[2:5]:
        part.unlink()
    assert embed([name, "b.jsonl"], OUT).made == 3


def test_a_second_writer(here: Path) -> None:
    with plan_job(INPUTS, "out", Options()):
        said = refused()
        assert said.startswith(f"another process is writing to out (process {os.getpid()} on ")
        with pytest.raises(Locked):
            plan_job(INPUTS, "out", Options(restart=True))
    assert embed(INPUTS, OUT).rows == 21


def test_a_second_writer_of_one_task(here: Path) -> None:
    with plan_job(INPUTS, "out", Options(task=(2, 3))) as first:
        with pytest.raises(Locked):
            plan_job(INPUTS, "out", Options(task=(2, 3)))
        first.close()
    embed(INPUTS, OUT, task=(1, 3))
    with plan_job(INPUTS, "out", Options(task=(2, 3))):
        assert embed(INPUTS, OUT, task=(3, 3)).folder == "out"  # others may go on
        with pytest.raises(Locked):
            plan_job(INPUTS, "out", Options(restart=True))


def test_another_number_of_tasks(here: Path) -> None:
    embed(INPUTS, OUT, task=(1, 3))
    assert "tasks was 3, now it is 4" in refused(task=(1, 4))
    assert "tasks was 3, now it is 1" in refused()


@pytest.mark.parametrize("name", ["vectors.parquet", "part-1.parquet", "part-00001-000000.parquet"])
def test_a_foreign_file(done: None, name: str) -> None:
    (OUT / name).write_bytes(b"x")
    advice = "which is no part of this job: move it away, or choose another folder"
    assert refused() == f"out holds {name}, {advice}"
    assert refused(restart=True) == f"out holds {name}, {advice}"


def test_a_folder_that_is_not_empty(here: Path) -> None:
    OUT.mkdir()
    (OUT / "notes.txt").write_text("mine")
    (OUT / ".hidden").write_text("ignored")
    assert refused().startswith("out holds notes.txt, which is no part of this job")


@pytest.mark.parametrize("size", [0, 3, 100, -1])
def test_a_part_cut_short(done: None, size: int) -> None:
    part = OUT / PART
    part.write_bytes(part.read_bytes()[:size])
    said = refused()
    assert said.startswith(f"out: {PART} is damaged (")
    assert said.endswith("): delete it to embed its rows again")
    part.unlink()
    assert embed(INPUTS, OUT, part_rows=5).made == 5


def test_a_part_of_another_job(done: None) -> None:
    embed(INPUTS, Path("other"), Hashes(model="new"), part_rows=5)
    shutil.copy(f"other/{PART}", OUT)
    for options in ({}, {"restart": True}):
        said = refused(**options)
        assert said.startswith(f"out: {PART} belongs to another job (run ")
        assert said.endswith("): move it to another folder")


def test_a_parquet_file_under_the_name_of_a_part(done: None) -> None:
    pq.write_table(pa.table({"x": [1]}), OUT / PART)
    wanted = f"out: {PART} was not written by a job: move it to another folder"
    assert refused() == refused(restart=True) == wanted


def test_a_footer_that_is_no_text(done: None) -> None:
    table = pq.read_table(OUT / PART)
    pq.write_table(table.replace_schema_metadata({b"nomicbert": b"\xff{}"}), OUT / PART)
    wanted = f"out: {PART} has a footer that nomicbert does not read: "
    assert refused().startswith(wanted)
    assert refused(restart=True).startswith(wanted)


def test_a_part_that_was_renamed(done: None) -> None:
    (OUT / PART).rename(OUT / "part-00000-000009.parquet")
    said = refused()
    assert said == f"out: part-00000-000009.parquet was {PART}: give it its name again"


def test_parts_that_do_not_follow(done: None) -> None:
    """The same job, cut otherwise."""
    embed(INPUTS, Path("other"), part_rows=4)
    shutil.copy("other/part-00000-000002.parquet", OUT)
    said = refused()
    assert "part-00000-000002.parquet starts at row 8 of source 0, but the parts before" in said
    assert "end at row 10 of source 0: delete it" in said


def test_a_part_behind_the_end(done: None) -> None:
    embed(INPUTS, Path("other"), part_rows=3)
    shutil.copy("other/part-00000-000006.parquet", OUT)
    assert "part-00000-000006.parquet starts at" in refused()


def test_parts_without_a_manifest(done: None) -> None:
    (OUT / "_manifest.json").unlink()
    for options in ({}, {"restart": True}):
        said = refused(**options)
        assert said.startswith("out holds part-00000-000000.parquet but no _manifest.json")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text[:-20], "out: _manifest.json is damaged ("),
        (lambda text: "[]", "out: _manifest.json is damaged ("),
        (lambda text: text.replace('"version": 1', '"version": 2'),
         "out: _manifest.json has version 2, and this nomicbert reads 1"),
        (lambda text: text.replace('"field": "text"', '"field": "body"'),
         "out: _manifest.json was changed: its run id is that of other content"),
        (lambda text: text.replace('"schema": "', '"schema": "A'), "is damaged"),
    ],
)  # fmt: skip
def test_a_damaged_manifest(done: None, change: Any, said: str) -> None:
    manifest = OUT / "_manifest.json"
    manifest.write_text(change(manifest.read_text()))
    assert said in refused()
    assert said in refused(restart=True)


def test_an_output_that_is_a_file(here: Path) -> None:
    Path("out").write_text("x")
    with pytest.raises(ValueError, match=r"the output out is a file, but parts need a folder"):
        embed(INPUTS, OUT)


def test_inputs_and_output_overlap(here: Path) -> None:
    Path("in").mkdir()
    Path("in/x.txt").write_text("one\n")
    with pytest.raises(ValueError, match=r"the output in/out is inside the input in, so its parts"):
        embed("in", Path("in/out"))
    with pytest.raises(ValueError, match=r"the output in is inside the input in"):
        embed("in", Path("in"))
    with pytest.raises(ValueError, match=r"the input in/x\.txt is inside the output in"):
        embed("in/x.txt", Path("in"))
    Path("link").symlink_to("in")
    with pytest.raises(ValueError, match=r"the input link/x\.txt is inside the output in"):
        embed("link/x.txt", Path("in"))
    assert sorted(os.listdir("in")) == ["x.txt"]


def test_a_pattern_that_matches_the_parts_too(here: Path) -> None:
    """It does so from the second time on."""
    Path("in").mkdir()
    pq.write_table(pa.table({"text": ["a", "b"]}), "in/x.parquet")
    assert embed("*/*.parquet", OUT, part_rows=1).made == 2
    assert embed("*/*.parquet", OUT, part_rows=1).made == 0
    assert embed(["a.txt", "**/*.parquet"], OUT, restart=True).made == 14
    assert check_folder("out", ["a.txt", "**/*.parquet"]).ok
    part = "out/part-00000-000000.parquet"
    inside = f"the input {part} is inside the output out: choose another output"
    assert refused(inputs=["in/x.parquet", part]) == inside
    assert refused(inputs=["out/*.parquet"]) == (
        "all inputs are inside the output out: choose another output"
    )


def test_a_name_that_is_not_unicode(here: Path) -> None:
    name = os.fsdecode(b"\xff.txt")
    Path(name).write_text("one\n")
    assert "is not valid Unicode, and each row names its source: rename it" in refused(inputs=name)


def test_streams(here: Path) -> None:
    assert refused(inputs="-").startswith("standard input cannot be read again after an")
    os.mkfifo("pipe")
    said = refused(inputs=["a.txt", "pipe"])
    assert said == (
        "the input pipe, a pipe, cannot be read again after an interruption: write it to a file "
        "first, or choose a single file as output"
    )


def test_mistakes_leave_no_folder(here: Path) -> None:
    """What the inputs show is refused before the folder is made."""
    assert "no input has the column 'title'" in refused(columns=["title"])
    Path("b.jsonl").write_text("{}\n")
    assert "b.jsonl, line 1: there is no field 'text'" in refused()
    assert not OUT.exists()


def test_a_read_only_place(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match=r"cannot create the folder /proc/vectors: "):
        embed(INPUTS, Path("/proc/vectors"))
    OUT.mkdir()

    def read_only(*args: Any, **keywords: Any) -> Any:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("builtins.open", read_only)
    with pytest.raises(OSError, match=r"cannot write into out: Read-only file system"):
        LocalFolder("out").lock(".lock").__enter__()


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"part_rows": 0}, ValueError, "part_rows must be at least 1, not 0"),
        ({"part_rows": 1.5}, TypeError, "part_rows must be a whole number, not 1.5"),
        ({"part_seconds": 0}, ValueError, "part_seconds must be above 0, not 0"),
        ({"part_seconds": float("nan")}, ValueError, "part_seconds must be above 0, not nan"),
        ({"columns": "id"}, TypeError, "columns must be a list of names, not the string 'id'"),
        ({"on_error": "warn"}, ValueError, "on_error must be 'fail' or 'skip', not 'warn'"),
        ({"on_null": None}, ValueError, "on_null must be 'error', 'empty' or 'skip', not None"),
        ({"task": (0, 3)}, ValueError, "task must be (i, n) with 1 <= i <= n <= 99999, not (0, 3)"),
        ({"task": (4, 3)}, ValueError, "task must be (i, n) with 1 <= i <= n <= 99999, not (4, 3)"),
        ({"task": (1, 2), "restart": True}, ValueError, "restart deletes the parts of all tasks"),
    ],
)
def test_options(options: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error) as caught:
        Options(**options)
    assert str(caught.value).startswith(said)


def test_restart_deletes_its_own_files_only(done: None) -> None:
    (OUT / ".mine").write_text("kept")
    (OUT / "_mine.json").write_text("kept")
    (OUT / ".part-00000-000002.parquet.0123abcd.tmp").write_text("left by a crash")
    (OUT / PART).write_bytes(b"damaged")
    report = embed(INPUTS, OUT, Hashes(model="new"), restart=True, part_rows=50)
    assert (report.made, report.kept, report.parts) == (21, 0, 1)
    assert {path.name for path in OUT.iterdir()} == {
        ".lock", ".mine", "_mine.json", "_manifest.json", "part-00000-000000.parquet"
    }  # fmt: skip
    assert json.loads((OUT / "_manifest.json").read_text())["want"]["vectors"] == "new"


def test_restart_of_tasks(here: Path) -> None:
    for task in (1, 2, 3):
        embed(INPUTS, OUT, task=(task, 3), part_rows=2)
    report = embed(INPUTS, OUT, restart=True)
    assert (report.made, report.parts) == (21, 1)
    assert [path.name for path in parts_of(OUT)] == ["part-00000-000000.parquet"]


def test_restart_without_a_job(here: Path) -> None:
    assert embed(INPUTS, OUT, restart=True).made == 21
