"""`nomicbert embed` to one file: inputs of all formats, what is kept of them, what is left out."""

# An imported fixture is named again as an argument.
# ruff: noqa: F811

from __future__ import annotations

import datetime
import gzip
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nomicbert.errors import to_install
from tests.cli.embed_cases import (  # noqa: F401
    FORMATS,
    Recorder,
    needs_pyarrow,
    no_model,
    on_linux,
    recorder,
    small_blocks,
)
from tests.cli.test_embed import read_objects, read_vectors
from tests.support.command_line import one_line, run_cli

pytestmark = pytest.mark.usefixtures("recorder")


@pytest.fixture
def embed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run the command in tmp_path; it must succeed. Returns stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> str:
        code, out, err = run_cli("embed", *args, "-m", "m")
        assert (code, out) == (0, ""), err
        return err

    return run


def put(folder: Path, contents: dict[str, str]) -> None:
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, "utf-8")


def lengths(path: Path) -> list[int]:
    """The lengths of the texts, which are what the recorder makes vectors of."""
    vectors = read_vectors(path)
    assert (vectors == vectors[:, :1]).all()
    return [int(vector[0]) for vector in vectors]


@pytest.mark.parametrize("form", FORMATS)
def test_files_folders_and_patterns_in_their_order(
    form: str, embed: Callable[..., str], tmp_path: Path
) -> None:
    """Rows of several text files say which file they come from, also with .npy."""
    put(
        tmp_path,
        {
            "z.txt": "1\n22\n",
            "docs/b.txt": "333\n",
            "docs/a/c.txt": "4444\n",
            "docs/.hidden": "hidden\n",
            "more/1.txt": "55555\n",
            "more/2.txt": "666666\n7777777\n",
        },
    )
    out = tmp_path / f"v.{form}"
    embed("z.txt", "docs", "more/*.txt", "-o", str(out))
    assert lengths(out) == [1, 2, 4, 3, 5, 6, 7]
    found = read_objects(tmp_path / "v.meta.jsonl" if form == "npy" else out)
    names = ["z.txt"] * 2 + ["docs/a/c.txt", "docs/b.txt", "more/1.txt"] + ["more/2.txt"] * 2
    assert [(o["id"], o["source"]) for o in found] == list(enumerate(names))
    if form != "npy":
        assert [list(o) for o in found] == [["id", "source", "text"]] * 7
        assert [o["text"] for o in found] == [str(n) * n for n in (1, 2, 4, 3, 5, 6, 7)]


FIELDS: dict[str, list[Any]] = {"text": ["a", "bb", "ccc", ""], "n": [1, 2, 3, 4]}


def write_as(form: str, path: Path) -> None:
    """FIELDS as a file of a format."""
    rows = [dict(zip(FIELDS, row, strict=True)) for row in zip(*FIELDS.values(), strict=True)]
    if form in ("csv", "tsv"):
        mark = {"csv": ",", "tsv": "\t"}[form]
        lines = [mark.join(map(str, row.values())) for row in rows]
        path.write_text("\n".join([mark.join(FIELDS), *lines]) + "\n")
    elif form == "json":
        path.write_text(json.dumps(rows, indent=2))
    elif form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif form == "jsonl.gz":
        whole = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(whole[:20]) + gzip.compress(whole[20:]))
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table(FIELDS)
        if form == "parquet":
            pq.write_table(table, path, row_group_size=3)
        else:
            with pa.ipc.new_file(path, table.schema) as writer:
                writer.write_table(table)


INPUTS = ["csv", "tsv", "json", "jsonl"]
OF_ARROW = ["jsonl.gz", "parquet", "arrow"]


@pytest.mark.parametrize("out", FORMATS)
@pytest.mark.parametrize(
    "form", [*INPUTS, *(pytest.param(form, marks=needs_pyarrow) for form in OF_ARROW)]
)
def test_every_format_to_every_format(
    form: str, out: str, embed: Callable[..., str], tmp_path: Path
) -> None:
    write_as(form, tmp_path / f"in.{form}")
    assert one_line(embed(f"in.{form}", "-o", f"v.{out}"))
    assert lengths(tmp_path / f"v.{out}") == [1, 2, 3, 0]
    found = read_objects(tmp_path / ("v.meta.jsonl" if out == "npy" else f"v.{out}"))
    numbers = map(str, FIELDS["n"]) if form in ("csv", "tsv") else FIELDS["n"]
    expected = [{"text": t, "n": n} for t, n in zip(FIELDS["text"], numbers, strict=True)]
    for each in expected:
        if out == "npy":
            del each["text"]
    assert found == expected


def test_jsonl_stays_byte_for_byte(embed: Callable[..., str], tmp_path: Path) -> None:
    lines = ['{"text":"a",  "n": 1.50}', '{"n": "\\u00e9", "text": "bb"}']
    put(tmp_path, {"a.jsonl": lines[0] + "\n\n", "b.jsonl": lines[1], "c.txt": "ccc\n"})
    err = embed("a.jsonl", "b.jsonl", "c.txt", "-o", "v.jsonl")
    assert "nomicbert: skipped 1 row without a text\n" in err
    found = (tmp_path / "v.jsonl").read_text().splitlines()
    vectors = [f', "embedding": [{n}.00000000, {n}.00000000, {n}.00000000]}}' for n in (1, 2, 3)]
    objects = [*lines, '{"id": 2, "text": "ccc"}']
    assert found == [line[:-1] + end for line, end in zip(objects, vectors, strict=True)]


@needs_pyarrow
def test_columns_of_files_with_other_columns(embed: Callable[..., str], tmp_path: Path) -> None:
    """Parquet has the columns of all inputs, with nulls; not only those of the first rows."""
    put(
        tmp_path,
        {
            "a.csv": "text,x\n" + "a,1\n" * 9,
            "b.csv": "y,text\n2,bb\n",
            "c.jsonl": '{"text": "ccc", "z": 1.5}\n',
            "d.txt": "dddd\n",
        },
    )
    embed("a.csv", "b.csv", "c.jsonl", "d.txt", "-o", "v.parquet")
    found = read_objects(tmp_path / "v.parquet")
    empty = {"id": None, "text": None, "x": None, "y": None, "z": None}
    assert found[8:] == [
        empty | {"text": "a", "x": "1"},
        empty | {"text": "bb", "y": "2"},
        empty | {"text": "ccc", "z": 1.5},
        empty | {"text": "dddd", "id": 11},
    ]


COLUMNS = {
    "all": [{"id": "a", "body": "x", "n": 1}, {"id": "b", "body": "yy", "n": 2}],
    "n, id": [{"n": 1, "id": "a"}, {"n": 2, "id": "b"}],
    "none": [{}, {}],
}


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("form", FORMATS)
def test_columns_that_are_kept(
    form: str, columns: str, embed: Callable[..., str], tmp_path: Path
) -> None:
    put(tmp_path, {"a.jsonl": "".join(json.dumps(o) + "\n" for o in COLUMNS["all"])})
    embed("a.jsonl", "--field", "body", "--columns", columns, "-o", f"v.{form}")
    assert lengths(tmp_path / f"v.{form}") == [1, 2]
    meta = tmp_path / "v.meta.jsonl"
    if form == "npy":
        assert meta.exists() == (columns != "none")
    if form != "npy" or meta.exists():
        found = read_objects(meta if form == "npy" else tmp_path / f"v.{form}")
        for each in (wanted := [dict(each) for each in COLUMNS[columns]]):
            if form == "npy":
                each.pop("body", None)
        assert found == wanted
        assert [list(each) for each in found] == [list(each) for each in wanted]


def test_text_without_its_number(embed: Callable[..., str], tmp_path: Path) -> None:
    put(tmp_path, {"a.txt": "a\n", "b.txt": "bb\n"})
    for columns, wanted in (("none", {}), ("text", {"text": "a"})):
        embed("a.txt", "b.txt", "--columns", columns, "-o", f"{columns}.jsonl")
        assert read_objects(tmp_path / f"{columns}.jsonl")[0] == wanted


@needs_pyarrow
def test_dates_and_numbers_of_parquet(embed: Callable[..., str], tmp_path: Path) -> None:
    """Parquet keeps its types in Parquet; JSON has strings for them, and refuses bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    day = datetime.date(2024, 2, 29)
    columns: dict[str, Any] = {"text": ["a"], "day": [day], "raw": [b"\x00"]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    embed("a.parquet", "-o", "v.parquet")
    assert read_objects(tmp_path / "v.parquet") == [{"text": "a", "day": day, "raw": b"\x00"}]
    embed("a.parquet", "--columns", "day", "-o", "v.jsonl")
    assert read_objects(tmp_path / "v.jsonl") == [{"day": "2024-02-29"}]
    code, _, err = run_cli("embed", "a.parquet", "-o", "w.jsonl", "-m", "m")
    assert code == 2
    assert "a.parquet, row 1: the field 'raw' (bytes) has no form in JSON" in one_line(err)


POLICIES = {
    "empty": ([1, 0, 2], "", ["a", None, "bb"]),
    "skip": ([1, 2], "nomicbert: skipped 1 row without a text\n", ["a", "bb"]),
}


@pytest.mark.parametrize("policy", POLICIES)
def test_null_texts(policy: str, embed: Callable[..., str], tmp_path: Path) -> None:
    put(tmp_path, {"a.jsonl": '{"text": "a"}\n{"text": null}\n{"text": "bb"}\n'})
    found, said, kept = POLICIES[policy]
    err = embed("a.jsonl", "--on-null", policy, "-o", "v.jsonl")
    assert lengths(tmp_path / "v.jsonl") == found
    assert [each["text"] for each in read_objects(tmp_path / "v.jsonl")] == kept
    assert err.startswith(said)


@pytest.mark.parametrize("form", FORMATS)
def test_rows_that_cannot_be_used_are_left_out(
    form: str, embed: Callable[..., str], tmp_path: Path
) -> None:
    put(tmp_path, {"a.jsonl": '{"text": "a"}\n{"text": null}\nno\n', "b.jsonl": '{"text": "bb"}\n'})
    (tmp_path / "c.txt").write_bytes(b"\xff\nccc\n")
    err = embed("a.jsonl", "b.jsonl", "c.txt", "--on-error", "skip", "-o", f"v.{form}")
    assert f"nomicbert: left out 3 rows that cannot be used: v.{form}.rejects.jsonl\n" in err
    assert err.endswith(f"v.{form}.rejects.jsonl\n")
    assert lengths(tmp_path / f"v.{form}") == [1, 2, 3]
    rejects = read_objects(tmp_path / f"v.{form}.rejects.jsonl")
    assert [(each["source"], each["row"]) for each in rejects] == [
        ("a.jsonl", 1),
        ("a.jsonl", 2),
        ("c.txt", 0),
    ]
    assert rejects[1]["problem"] == "not JSON: Expecting value at column 1"
    assert rejects[1]["content"] == "no"
    # also a first row that does not fit the output
    put(tmp_path, {"d.jsonl": '{"text": "d", "embedding": 1}\n{"text": "dddd"}\n'})
    if form != "npy":
        embed("d.jsonl", "--on-error", "skip", "-o", f"x.{form}")
        assert lengths(tmp_path / f"x.{form}") == [4]
    # the file is there also when there is nothing in it
    embed("b.jsonl", "--on-error", "skip", "-o", f"w.{form}")
    assert (tmp_path / f"w.{form}.rejects.jsonl").read_bytes() == b""


@pytest.mark.parametrize("form", FORMATS)
def test_an_existing_output_is_replaced_on_request(
    form: str, embed: Callable[..., str], tmp_path: Path
) -> None:
    put(tmp_path, {"a.csv": "text,n\na,1\n", "b.csv": "text,n\nbb,2\nccc,3\n"})
    embed("a.csv", "-o", f"v.{form}", "--on-error", "skip")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    code, _, err = run_cli("embed", "b.csv", "-m", "m", "-o", f"v.{form}")
    assert code == 2
    assert "exists" in one_line(err)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}
    embed("b.csv", "-o", f"v.{form}", "--on-error", "skip", "--overwrite")
    assert lengths(tmp_path / f"v.{form}") == [2, 3]
    found = read_objects(tmp_path / ("v.meta.jsonl" if form == "npy" else f"v.{form}"))
    assert [each["n"] for each in found] == ["2", "3"]


def test_what_was_recognised_by_content_is_said_once(
    embed: Callable[..., str], tmp_path: Path
) -> None:
    line = '{"text": "a"}\n'
    put(tmp_path, {"part-0": line, "part-1": line, "part-2": "b\n", "part-3.jsonl": line})
    err = embed("part-0", "part-1", "part-2", "part-3.jsonl", "-o", "v.npy")
    said = [line for line in err.splitlines() if "look" in line]
    assert said == [
        "nomicbert: part-0 and 1 other input look like JSONL: read as JSONL "
        "(--input-format text reads the lines as texts)"
    ]
    assert "part-0 looks like JSONL: read as" in embed("part-0", "-o", "w.npy")
    assert one_line(embed("part-0", "--input-format", "text", "-o", "x.npy"))
    assert lengths(tmp_path / "x.npy") == [len(line) - 1]


def test_progress_and_summary_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorder: Recorder
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nomicbert.bulk.progress.PERIOD", 0.0)
    recorder.broken = {1}
    put(tmp_path, {"a.jsonl": '{"text": "a"}\n\n{"text": "bb"}\nno\n'})
    code, out, err = run_cli(
        *("embed", "a.jsonl", "-m", "m", "-o", "v.npy", "--json", "--on-error", "skip")
    )
    assert code == 0, err
    *progress, done = map(json.loads, out.splitlines())
    assert [each["event"] for each in progress] == ["progress"] * 2
    assert [each["rows"] for each in progress] == [1, 2]
    assert done.pop("seconds") >= 0
    assert done == {
        "event": "done",
        "outputs": ["v.npy", "v.meta.jsonl", "v.npy.rejects.jsonl"],
        "vectors": 2,
        "width": 3,
        "dtype": "float32",
        "tokens": 3,
        "truncated": 0,
        "skipped": 1,
        "rejected": 1,
        "broken": 1,
        "first_broken": "a.jsonl, line 3",
    }


# Files, arguments -> exit code, message.
BAD: dict[str, tuple[dict[str, str | bytes], list[str], str]] = {
    "a broken line in the third file": (
        {"a.jsonl": '{"text": "a"}\n', "b.txt": "b\n", "c.jsonl": '{"text": "c"}\n\n{"text": \n'},
        ["a.jsonl", "b.txt", "c.jsonl"],
        "c.jsonl, line 3: not JSON: Expecting value at column 9",
    ),
    "a null text": (
        {"a.jsonl": '{"text": "a"}\n{"text": null}\n'},
        ["a.jsonl"],
        "a.jsonl, line 2: the field 'text' must be a string, not null (--on-null",
    ),
    "not UTF-8": (
        {"a.txt": b"a\nb\xe9\n"},
        ["a.txt"],
        "a.txt, line 2: byte 2 (0xe9) is not UTF-8: convert the input first",
    ),
    "a field of the vector's name": (
        {"a.jsonl": '{"text": "a"}\n{"text": "b", "embedding": 1}\n'},
        ["a.jsonl"],
        "a.jsonl, line 2: the field 'embedding' is reserved for the vector: rename it, or choose",
    ),
    "a row of a CSV file with too many fields": (
        {"a.csv": "text,n\na,1\nb,2,3\n"},
        ["a.csv"],
        "a.csv, row 2: ",
    ),
}


@pytest.mark.parametrize("form", ["jsonl", pytest.param("parquet", marks=needs_pyarrow)])
@pytest.mark.parametrize("case", BAD)
def test_bad_rows_leave_no_file(
    case: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files, args, message = BAD[case]
    for name, content in files.items():
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    code, out, err = run_cli("embed", *args, "-m", "m", "-o", f"v.{form}")
    assert (code, out) == (2, "")
    assert message in one_line(err)
    assert {path.name for path in tmp_path.iterdir()} == set(files)


@needs_pyarrow
@pytest.mark.usefixtures("no_model")
def test_columns_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found before the model is loaded, whatever --on-error says."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table({"body": ["a"], "id": [1]}), "a.parquet")
    for args in ([], ["--on-error", "skip"]):
        code, _, err = run_cli("embed", "a.parquet", "-m", "m", "-o", "v.jsonl", *args)
        assert code == 2
        assert "a.parquet" in one_line(err)
        assert "'body', 'id'" in err
    for form in ("npy", "jsonl", "parquet"):
        args = ["--field", "body", "--columns", "id,nope"]
        code, _, err = run_cli("embed", "a.parquet", "-m", "m", "-o", f"v.{form}", *args)
        assert code == 2, form
        assert "'nope'" in one_line(err)


@needs_pyarrow
@pytest.mark.usefixtures("no_model")
def test_inputs_whose_columns_differ_in_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path, {"a.jsonl": '{"text": "a", "n": 1}\n', "b.jsonl": '{"text": "b", "n": "x"}\n'})
    code, _, err = run_cli("embed", "a.jsonl", "b.jsonl", "-m", "m", "-o", "v.parquet")
    assert code == 2
    assert "the column 'n' is int64 in a.jsonl, but string in b.jsonl" in one_line(err)


@needs_pyarrow
def test_numbers_of_texts_beside_names_of_objects(
    embed: Callable[..., str], tmp_path: Path, no_model: None
) -> None:
    """Columns of Parquet have one type, so `id` cannot hold both."""
    put(tmp_path, {"a.txt": "a\n", "b.jsonl": '{"text": "b", "id": "x"}\n'})
    code, _, err = run_cli("embed", "a.txt", "b.jsonl", "-m", "m", "-o", "v.parquet")
    assert code == 2
    assert "the column 'id' is string in some inputs, and int64 for the rows" in one_line(err)


@needs_pyarrow
@on_linux
def test_texts_beside_objects_of_a_stream_have_no_number(
    embed: Callable[..., str], tmp_path: Path
) -> None:
    """Whether the stream has an `id` is known too late."""
    put(tmp_path, {"a.txt": "a\n"})
    embed("a.txt", piped(b'{"text": "bb", "id": "x"}\n'), "-o", "v.parquet")
    assert [each.get("id") for each in read_objects(tmp_path / "v.parquet")] == [None, "x"]


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_columns_that_are_not_there_without_pyarrow(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    put(tmp_path, {"a.csv": "text,id\n", "a.jsonl": '{"text": "a"}\n\n{"text": "b", "id": 1}\n'})
    for form in ("npy", "jsonl"):
        code, _, err = run_cli("embed", name, "-m", "m", "--columns", "id,nope", "-o", f"v.{form}")
        assert code == 2
        assert "no input has the column 'nope': there are 'text', 'id'" in one_line(err)


def piped(content: bytes) -> str:
    """The name of a pipe with some bytes; it stays open."""
    stream, end = os.pipe()
    os.write(end, content)
    os.close(end)
    return f"/dev/fd/{stream}"


@on_linux
@pytest.mark.parametrize("form", FORMATS)
def test_columns_that_a_stream_has_not(
    form: str, embed: Callable[..., str], tmp_path: Path
) -> None:
    """Refused with its first rows; columns of other inputs, and of later lines, are found."""
    put(tmp_path, {"a.csv": "text,id\na,1\n"})
    lines = b'{"text": "bb"}\n{"text": "ccc", "n": "1"}\n'
    args = ["--input-format", "jsonl", "--columns", "text,n,nope", "-o", f"v.{form}"]
    code, _, err = run_cli("embed", piped(lines), "-m", "m", *args)
    assert code == 2
    assert "no input has the column 'nope': it is not in the first rows of /dev/fd/" in err
    assert not (tmp_path / f"v.{form}").exists()
    embed("a.csv", piped(lines), "--columns", "text,n,id", "-o", f"v.{form}")
    assert lengths(tmp_path / f"v.{form}") == [1, 2, 3]


@needs_pyarrow
@pytest.mark.usefixtures("no_model")
def test_columns_of_bytes_that_begin_with_a_null(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.chdir(tmp_path)
    inner = pa.struct({"raw": pa.binary()})
    for column in (
        pa.array([None, b"x"]),
        pa.array([None, [datetime.timedelta(1)]]),
        pa.array([None, {"raw": b"x"}], inner),
    ):
        pq.write_table(pa.table({"text": ["a", "b"], "v": column}), "a.parquet")
        for form in ("jsonl", "npy"):
            code, _, err = run_cli("embed", "a.parquet", "-m", "m", "-o", f"v.{form}")
            assert code == 2
            assert "a.parquet, row 1: the field 'v' (" in one_line(err)
            assert "has no form in JSON" in err


def test_headers_of_all_inputs_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorder: Recorder
) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path, {f"{i:03}.csv": "text\na\n" for i in range(101)} | {"200.csv": "body\na\n"})
    for form in ("jsonl", "npy"):
        code, _, err = run_cli("embed", "*.csv", "-m", "m", "-o", f"v.{form}")
        assert code == 2
        assert "200.csv has no column 'text' among 'body'" in one_line(err)
        assert not recorder.loaded


@on_linux
@pytest.mark.parametrize("form", FORMATS)
def test_names_that_are_not_unicode(
    form: str, embed: Callable[..., str], tmp_path: Path, no_model: None
) -> None:
    """Refused where rows name their source."""
    name = os.fsdecode(b"\xff.txt")
    put(tmp_path, {name: "a\n", "b.txt": "b\n"})
    code, _, err = run_cli("embed", name, "b.txt", "-m", "m", "-o", f"v.{form}")
    assert code == 2
    assert "is not valid Unicode, and each row names its source: rename it" in one_line(err)


@on_linux
def test_a_lone_file_may_have_any_name(embed: Callable[..., str], tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff.txt")
    put(tmp_path, {name: "a\n"})
    embed(name, "-o", "v.jsonl", "--on-error", "skip")
    assert lengths(tmp_path / "v.jsonl") == [1]


def test_outputs_of_one_stem_keep_their_rejects(embed: Callable[..., str], tmp_path: Path) -> None:
    put(tmp_path, {"a.jsonl": "no\n", "b.jsonl": "nor\n"})
    embed("a.jsonl", "-o", "v.npy", "--on-error", "skip")
    embed("b.jsonl", "-o", "v.jsonl", "--on-error", "skip", "--overwrite")
    found = [read_objects(tmp_path / f"v.{form}.rejects.jsonl")[0] for form in ("npy", "jsonl")]
    assert [each["content"] for each in found] == ["no", "nor"]


@needs_pyarrow
@pytest.mark.usefixtures("no_model")
def test_bytes_in_json_are_refused_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table({"text": ["a"], "raw": [b"x"], "embedding": [[1.0]]}), "a.parquet")
    for form, message in (
        ("jsonl", "the field 'embedding' is reserved"),
        ("parquet", "the field 'embedding' is reserved"),
        ("npy", "the field 'raw' (bytes) has no form in JSON"),
    ):
        code, _, err = run_cli("embed", "a.parquet", "-m", "m", "-o", f"v.{form}")
        assert code == 2
        assert f"a.parquet, row 1: {message}" in one_line(err)


def test_the_recorder_sees_every_text(embed: Callable[..., str], tmp_path: Path) -> None:
    """One stream of texts over all inputs: nothing is read twice, however small they are."""
    put(tmp_path, {f"{i:03}.txt": "x" * i + "\n" for i in range(1, 150)})
    embed("*.txt", "-o", "v.npy")
    np.testing.assert_array_equal(lengths(tmp_path / "v.npy"), range(1, 150))


def test_without_pyarrow(
    embed: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is needed for Parquet, Arrow and compressed files only."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for form in INPUTS:
        write_as(form, tmp_path / f"in.{form}")
        for out in ("npy", "jsonl"):
            embed(f"in.{form}", "--columns", "n", "-o", f"{form}.{out}")
            assert lengths(tmp_path / f"{form}.{out}") == [1, 2, 3, 0]
    (tmp_path / "in.jsonl.gz").touch()
    code, _, err = run_cli("embed", "in.jsonl.gz", "-m", "m", "-o", "v.npy")
    assert code == 2
    assert f"in.jsonl.gz needs pyarrow: {to_install('parquet')}" in one_line(err)


@pytest.mark.parametrize("form", FORMATS)
def test_passages_keep_their_line(form: str, embed: Callable[..., str], tmp_path: Path) -> None:
    """Also those of a lone file, whose lines would have no field but their number."""
    put(tmp_path, {"a.md": "# Cats\n\npurr\n\n## Food\nfish\n"})
    out = tmp_path / f"v.{form}"
    assert "looks like" not in embed("a.md", "--input-format", "passages", "-o", str(out))
    assert lengths(out) == [len("Cats\npurr"), len("Cats > Food\nfish")]
    found = read_objects(tmp_path / "v.meta.jsonl" if form == "npy" else out)
    assert [(o["id"], o["line"]) for o in found] == [(0, 3), (1, 6)]
