"""Several tasks of one job: the units, the manifest that the first one writes, and the locks."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from nomicbert.bulk.inputs.feed import Feed
from nomicbert.bulk.inputs.rows import Span
from nomicbert.bulk.inputs.selection import Selection
from nomicbert.bulk.inputs.sources import find_sources
from nomicbert.bulk.job import plan, units
from nomicbert.bulk.job.folder import LocalFolder
from nomicbert.bulk.job.manifest import read_manifest
from nomicbert.bulk.job.options import Options
from nomicbert.bulk.job.plan import plan_job
from nomicbert.bulk.job.run import run_job
from nomicbert.bulk.progress import BulkProgress
from tests.bulk.job.standin import Hashes, embed
from tests.bulk.job.truth import build, wrong

OUT = Path("out")
INPUTS = ["a.txt", "b.jsonl"]


def rows_of(sources: Any, spans: tuple[Span, ...]) -> list[tuple[str, int]]:
    feed = Feed(sources, spans, on_error="skip")
    return [(taken.row.name, taken.row.number) for taken in (feed.take() for _ in feed)]


@pytest.mark.parametrize("tasks", [1, 2, 3, 8, 50, 400])
def test_units_cover_every_row_once(
    here: Path, monkeypatch: pytest.MonkeyPatch, tasks: int
) -> None:
    monkeypatch.setattr(units, "BLOCK", 100)
    monkeypatch.setattr(units, "STEP", 3)
    truth = build(here / "in", scale=2)
    Path("one.csv").write_text("text,n\n" + "".join(f'"a\n{n}",{n}\n' for n in range(40)))
    Path("two.json").write_text(json.dumps([{"text": f"{n}"} for n in range(40)]))
    Path("three.txt").write_text("without a line feed")
    inputs = [*truth.inputs, "one.csv", "two.json", "three.txt"]
    sources = find_sources(inputs, None)
    dealt = units.divide(sources, Selection(), tasks)
    assert len(dealt) == tasks
    every = [row for spans in dealt for row in rows_of(sources, spans)]
    assert len(every) == len(truth.rows) + 83  # LONG ones too
    assert Counter(every) == Counter(rows_of(sources, units.undivided(sources)[0]))
    spans = sorted(span for spans in dealt for span in spans)
    # of one source each, without a gap, up to its end
    for before, span in zip([None, *spans], [*spans, None], strict=True):
        if before is None or span is None or before.source != span.source:
            assert before is None or before.stop is None
            assert span is None or span.first == 0
        else:
            assert before.stop == span.first
    if tasks == 8:
        sizes = [len(rows_of(sources, spans)) for spans in dealt]
        assert min(sizes) > max(sizes) / 3
    by_offset = [span for span in spans if span.offset is not None]
    assert {sources[span.source].name.rpartition(".")[2] for span in by_offset} <= {"jsonl", "csv"}
    assert by_offset or tasks < 8


@pytest.mark.parametrize("tasks", [2, 5, 30])
def test_tasks_in_any_order(here: Path, tasks: int) -> None:
    truth = build(here / "in")
    reports = [
        embed(
            truth.inputs,
            OUT,
            Hashes(4, truncate="error"),
            task=(task, tasks),
            part_rows=6,
            on_error="skip",
        )
        for task in range(tasks, 0, -1)
    ]
    assert wrong(OUT, truth, tasks) == []
    assert sum(report.rows for report in reports) == len(truth.rows)
    assert pq.read_table(OUT).num_rows == len(truth.rows)


def test_one_of_one_is_the_same_as_none(here: Path) -> None:
    embed(INPUTS, OUT, task=(1, 1))
    assert embed(INPUTS, OUT).made == 0


def test_the_manifest_is_written_once(here: Path) -> None:
    embed(INPUTS, OUT, task=(3, 4))
    manifest = OUT / "_manifest.json"
    before = manifest.read_bytes(), manifest.stat().st_ino
    for task in (1, 2, 3, 4):
        embed(INPUTS, OUT, task=(task, 4))
    assert (manifest.read_bytes(), manifest.stat().st_ino) == before
    found = read_manifest(LocalFolder("out"))
    assert [unit for task in found.tasks for unit in task]
    assert [one.name for one in found.inputs] == INPUTS


def test_tasks_that_start_at_once(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    """All look before any has written the manifest: one counts, the others wait for it."""
    tasks = 6
    planned = threading.Barrier(tasks)
    failures: list[BaseException] = []
    made: list[int] = []

    def work(task: int) -> None:
        try:
            planned.wait()
            with plan_job(INPUTS, "out", Options(task=(task, tasks))) as job:
                time.sleep(0.05)  # as if a model was loaded
                report = run_job(job, Hashes(3), BulkProgress("none"))
                made.append(report.made)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(task + 1,)) for task in range(tasks)]
    with caplog.at_level("INFO"):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    assert sum(made) == 21
    assert sum("counting the rows" in record.message for record in caplog.records) == 1
    assert any("waiting for the process that begins" in one.message for one in caplog.records)


def test_a_task_that_dies_before_the_manifest(here: Path) -> None:
    """Another one begins the job: nothing is locked for ever."""
    with plan_job(INPUTS, "out", Options(task=(1, 2))) as job:
        assert job.manifest is None
    assert not (OUT / "_manifest.json").exists()
    assert embed(INPUTS, OUT, task=(2, 2)).folder == "out"


def test_the_bytes_of_tasks(here: Path) -> None:
    total = 0
    for task in (1, 2, 3):
        with plan_job(INPUTS, "out", Options(task=(task, 3))) as job:
            total += job.total_bytes
            run_job(job, Hashes(), BulkProgress("none"))
            assert not job.complete  # as it was planned
    assert abs(total - sum(Path(name).stat().st_size for name in INPUTS)) <= 3


@pytest.mark.parametrize("name", ["many.txt", "many.jsonl", "many.csv"])
def test_a_small_file_is_divided(here: Path, name: str) -> None:
    line = '{"text": "x"}\n' if name.endswith("jsonl") else "text\n"
    Path(name).write_text(line * 60_000)
    (source,) = sources = find_sources([name], None)
    dealt = units.divide(sources, Selection(), 4)
    sizes = [len(rows_of(sources, spans)) for spans in dealt]
    assert sum(sizes) == 60_000 - name.endswith("csv")
    assert min(sizes) > 8_000, source


def test_a_restart_deletes_the_manifest_that_a_task_has_seen(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task waits for the job that begins, and does not begin one next to it."""
    embed(INPUTS, OUT)
    manifest = OUT / "_manifest.json"
    content = manifest.read_bytes()
    look = plan.Job.look_at_folder

    def look_late(job: plan.Job) -> None:
        manifest.unlink()
        for part in OUT.glob("part-*"):
            part.unlink()
        with job.folder.lock(".lock"):  # of the restart
            look(job)

    waited = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        manifest.write_bytes(content)

    monkeypatch.setattr(plan.Job, "look_at_folder", look_late)
    monkeypatch.setattr(plan.time, "sleep", sleep)
    with pytest.raises(ValueError, match="tasks was 1, now it is 2"):
        plan_job(INPUTS, "out", Options(task=(1, 2)))
    assert waited


def test_a_task_that_waits_says_so(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The command shows warnings only."""
    with plan_job(INPUTS, "out", Options(task=(1, 2))) as job:
        timer = threading.Timer(0.1, lambda: run_job(job, Hashes(), BulkProgress("none")))
        timer.start()
        plan_job(INPUTS, "out", Options(task=(2, 2))).close()
        timer.join()
    (said,) = [one for one in caplog.records if "waiting for the process" in one.message]
    assert said.levelname == "WARNING"
