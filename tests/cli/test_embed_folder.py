"""`nomicbert embed` to a folder: the command around the job, and --check."""

# An imported fixture is named again as an argument.
# ruff: noqa: F811

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nomicbert.errors import to_install
from tests.cli.embed_cases import Recorder, needs_pyarrow, no_model, recorder  # noqa: F401
from tests.support.command_line import environment, one_line, run_cli

pytestmark = needs_pyarrow


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `in` with three files, and the current folder around it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for name, content in {
        "a.txt": "a\nbb\n",
        "b.jsonl": '{"text": "ccc", "n": 1}\n\n{"text": "dddd", "row": 7}\n',
        "c.csv": "text,m\neeeee,2\n",
    }.items():
        (tmp_path / "in" / name).write_text(content)
    return tmp_path


def run(*args: str, code: int = 0) -> str:
    """Run the command: stderr."""
    found, out, err = run_cli("embed", *args)
    assert (found, out) == (code, ""), err
    return err


def read(folder: str) -> list[dict[str, Any]]:
    """All rows of a folder, as any reader of Parquet finds them."""
    import pyarrow.dataset as ds

    rows: list[dict[str, Any]] = ds.dataset(folder).to_table().to_pylist()
    return rows


ROWS = [
    ("in/a.txt", 0, "a"),
    ("in/a.txt", 1, "bb"),
    ("in/b.jsonl", 0, "ccc"),
    ("in/b.jsonl", 2, "dddd"),
    ("in/c.csv", 0, "eeeee"),
]


@pytest.mark.usefixtures("recorder")
def test_a_folder_of_parts(files: Path) -> None:
    err = run("in", "-m", "m", "-o", "v/", "--part-rows", "2", "--columns", "text,row")
    assert "nomicbert: the input's column 'row' is carried along as 'input_row'\n" in err
    assert "nomicbert: skipped 1 row without a text\n" in err
    assert "nomicbert: 5 vectors of 3 float32 values in 3 parts, in " in err
    assert err.endswith(" s: v/\n")
    rows = read("v")
    assert [(row["source"], row["row"], row["text"]) for row in rows] == ROWS
    assert [row["embedding"] for row in rows] == [[len(text)] * 3 for _, _, text in ROWS]
    assert [row["input_row"] for row in rows] == [None, None, None, 7, None]
    err = run("in", "-m", "m", "-o", "v", "--part-rows", "2", "--columns", "text,row")
    assert "complete already: 5 vectors of 3 float32 values in 3 parts: v" in err
    err = run("--check", "v")
    assert err.endswith("v: 5 vectors in 3 parts: every row once, in order, beside its own text\n")


def test_the_same_command_goes_on(recorder: Recorder) -> None:
    recorder.fails_at = 3
    command = ("in", "-m", "m", "-o", "v/", "--part-rows", "1", "--columns", "text")
    assert one_line(run(*command, code=2)) == "nomicbert: no more\n"
    err = run("--check", "v/", code=1)
    assert one_line(err) == (
        "nomicbert: v/: 3 vectors in 3 parts: every row once, in order, beside its own text; rows "
        "are still to come: the same command goes on\n"
    )
    recorder.fails_at = None
    err = run(*command)
    assert "nomicbert: v/ holds 3 vectors: going on with the rest\n" in err
    assert "nomicbert: 5 vectors of 3 float32 values in " in err
    assert " parts, 3 of them by earlier runs, in " in err
    assert recorder.seen == ["a", "bb", "ccc", "dddd", "eeeee"]
    assert [(row["source"], row["row"], row["text"]) for row in read("v")] == ROWS


def test_options_of_the_job_are_passed_on(recorder: Recorder) -> None:
    (Path("in") / "b.jsonl").write_text('{"text": null}\n{"text": 1}\n{"text": "f"}\n')
    err = run(
        *("in/b.jsonl", "-m", "m", "-o", "v/", "--on-null", "empty", "--on-error", "skip"),
        *("--columns", "none", "--precision", "int8", "--ranges", "ranges.npy"),
        code=2,
    )
    assert "cannot read --ranges ranges.npy" in err
    err = run(
        *("in/b.jsonl", "-m", "m", "-o", "v/", "--on-null", "empty", "--on-error", "skip"),
        *("--columns", "none", "--prompt", "q: "),
    )
    assert "nomicbert: left out 1 row that cannot be used: v/_rejected-*.jsonl\n" in err
    assert recorder.asked["prompt"] == "q: "
    assert [(row["row"], row["embedding"][0]) for row in read("v")] == [(0, 0.0), (2, 1.0)]
    assert list(read("v")[0]) == ["source", "row", "embedding"]
    (rejected,) = Path("v").glob("_rejected-*")
    assert json.loads(rejected.read_text())["row"] == 1


@pytest.mark.usefixtures("recorder")
def test_shares() -> None:
    for share in ("2/2", "1/2"):
        run("in", "-m", "m", "-o", "v/", "--task", share)
    assert sorted((r["source"], r["row"], r["text"]) for r in read("v")) == ROWS
    err = run("in", "-m", "m", "-o", "v/", "--task", "1/3", code=2)
    assert "v/ holds another job" in one_line(err)
    assert "task" in err


@pytest.mark.usefixtures("recorder")
def test_beginning_anew() -> None:
    run("in/a.txt", "-m", "m", "-o", "v/")
    err = run("in", "-m", "m", "-o", "v/", code=2)
    assert "v/ holds another job" in one_line(err)
    assert "--restart" in err
    run("in", "-m", "m", "-o", "v/", "--restart")
    assert len(read("v")) == 5


@pytest.mark.usefixtures("recorder")
def test_reports_as_json() -> None:
    args = ("in", "-m", "m", "-o", "v/", "--json", "--on-error", "skip")
    code, out, _ = run_cli("embed", *args)
    assert code == 0
    done = json.loads(out.splitlines()[-1])
    assert {key: done[key] for key in ("event", "rows", "made", "kept", "skipped", "parts")} == {
        "event": "done", "rows": 5, "made": 5, "kept": 0, "skipped": 1, "parts": 1,
    }  # fmt: skip
    code, out, _ = run_cli("embed", "--check", "v/", "--json")
    checked = json.loads(out)
    assert code == 0
    assert (checked["event"], checked["ok"], checked["rows"]) == ("checked", True, 5)
    (part,) = Path("v").glob("part-*")
    part.unlink()
    code, out, _ = run_cli("embed", "--check", "v/", "--json")
    assert code == 1
    assert json.loads(out)["ok"] is False


def test_broken_vectors_are_counted(recorder: Recorder) -> None:
    recorder.broken = {1, 3}
    said = "2 vectors with NaN or infinity; the first is that of in/a.txt, "
    assert said in run("in", "-m", "m", "-o", "v/")
    assert said in run("--check", "v/", code=1)


@pytest.mark.usefixtures("recorder")
def test_check_finds_what_is_wrong() -> None:
    run("in", "-m", "m", "-o", "v/", "--part-rows", "2")
    (Path("in") / "a.txt").rename("moved.txt")
    assert "problem" in run("--check", "v/", code=1)
    run("--check", "v/", "moved.txt", "in/b.jsonl", "in/c.csv")
    first = sorted(Path("v").glob("part-*"))[0]
    first.write_bytes(first.read_bytes()[:-9])
    err = run("--check", "v/", "moved.txt", "in/b.jsonl", "in/c.csv", code=1)
    assert "damaged" in err
    assert err.splitlines()[-1].startswith("nomicbert: v/: 3 vectors in 2 parts: ")


# Arguments -> message; all before a model is loaded.
MISTAKES: dict[str, tuple[list[str], str]] = {
    "standard input": (["-", "-m", "m", "-o", "v/"], "standard input cannot be read again"),
    "a folder inside an input": (["in", "-m", "m", "-o", "in/v/"], "in/v/ is inside the input in"),
    "no share": (
        ["in", "-m", "m", "-o", "v/", "--task", "3"],
        "--task '3' must be I/N with I from",
    ),
    "a share too many": (
        ["in", "-m", "m", "-o", "v/", "--task", "3/2"],
        "--task '3/2' must be I/N",
    ),
    "all shares anew": (
        ["in", "-m", "m", "-o", "v/", "--task", "1/2", "--restart"],
        "--restart deletes the parts of all shares, so it does not go with --task",
    ),
    "no seconds": (
        ["in", "-m", "m", "-o", "v/", "--part-seconds", "0"],
        "--part-seconds must be above 0",
    ),
    "field of texts": (["in/a.txt", "-m", "m", "-o", "v/", "--field", "b"], "--field b is for"),
    "no such column": (["in", "-m", "m", "-o", "v/", "--columns", "no"], "column 'no': there are"),
    "foreign files": (["in", "-m", "m", "-o", "other"], "other"),
    "check of nothing": (["--check"], "--check needs the folder to read"),
    "check with a model": (["--check", "in", "-m", "m"], "--model does not go with --check"),
    "check with restart": (["--check", "in", "--restart"], "--restart does not go with --check"),
    "check with a field": (["--check", "in", "--field", "b"], "--field does not go with --check"),
    "check with a prompt": (["--check", "in", "--prompt", ""], "--prompt does not go with --che"),
    "check with the default": (
        ["--check", "in", "--on-error", "fail"],
        "--on-error does not go with --check",
    ),
    "check of another folder": (["--check", "in"], "in has no _manifest.json"),
}


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(case: str, files: Path) -> None:
    (files / "other").mkdir()
    (files / "other" / "data.parquet").write_bytes(b"PAR1")
    args, message = MISTAKES[case]
    assert message in one_line(run(*args, code=2))
    assert not (files / "v").exists() or not list((files / "v").glob("part-*"))


def test_without_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for args in (["in", "-m", "m", "-o", "v/"], ["--check", "v/"]):
        assert f"v/ needs pyarrow: {to_install('parquet')}" in one_line(run(*args, code=2))


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_folder_that_cannot_be_written() -> None:
    """Not even root can create files there."""
    err = run("in", "-m", "m", "-o", "/proc/self/v/", code=1)
    assert "/proc/self/v" in one_line(err)


def test_mistakes_do_not_load_torch() -> None:
    code = (
        "import sys; from nomicbert.cli import app\n"
        "try: app(['embed', 'in', '-m', 'm', '-o', 'v/', '--columns', 'no'])\n"
        "except ValueError as error: print(error, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert "no input has the column 'no'" in done.stdout
    assert done.stdout.endswith(" False\n")
