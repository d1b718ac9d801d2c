"""`nomicbert embed`: mistakes that are refused, and errors that leave no file."""

# An imported fixture is named again as an argument.
# ruff: noqa: F811

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.main import get_command

from nomicbert import cli
from nomicbert.cli.commands import naming_options
from nomicbert.errors import to_install
from tests.cli.embed_cases import checkpoint, docs, no_model, small_blocks, texts  # noqa: F401
from tests.support.command_line import one_line, run_cli


def bad_ranges(folder: Path, name: str) -> Path:
    path = folder / f"{name}.npy"
    contents: dict[str, Any] = {
        "shape": np.zeros((3, 4)),
        "words": np.array([["a"], ["b"]]),
        "inverted": np.array([[0.0, 3.0], [1.0, 2.0]]),
        "width": np.array([[0.0] * 7, [1.0] * 7]),
    }
    if name == "broken":
        path.write_bytes(b"not an array")
    else:
        np.save(path, contents[name])
    return path


INT8 = ["--precision", "int8"]
BODY = ["--field", "body"]
SKIP = ["--on-error", "skip"]
SIX = ["--truncate-dim", "6"]
# Arguments, where {in} is the folder of texts.txt and docs.jsonl, {out} an empty one -> message.
MISTAKES: dict[str, tuple[list[str], str]] = {
    "no such input": (["{in}/none.txt", "-o", "{out}/v.npy"], "none.txt: No such file"),
    "a folder without files": (["{out}", "-o", "{out}/v.npy"], "out holds no files"),
    "no match": (["{in}/*.none", "-o", "{out}/v.npy"], "no file matches"),
    "given twice": (
        ["{in}/texts.txt", "{in}/texts.txt", "-o", "{out}/v.npy"],
        "texts.txt is given twice",
    ),
    "no such url": (["memory://none/a.txt", "-o", "{out}/v.npy"], "memory://none/a.txt"),
    "output a url": (
        ["{in}/texts.txt", "-o", "s3://b/v.npy"],
        "s3://b/v.npy is a URL, and only a folder of parts can be one: end it in /",
    ),
    "no such folder": (["{in}/texts.txt", "-o", "{out}/a/v.npy"], "out/a does not exist"),
    "no format": (
        ["{in}/texts.txt", "-o", "{out}/v.txt"],
        ".npy, .jsonl or .parquet, or in / for a folder of parts",
    ),
    "npy to stdout": (
        ["{in}/texts.txt", "-o", "-", "--output-format", "npy"],
        "standard output is a stream, which supports jsonl only: npy needs a file",
    ),
    "over the input": (["{in}/docs.jsonl", "-o", "{in}/docs.jsonl"], "would be overwritten"),
    "over the input as meta": (["{in}/a.meta.jsonl", "-o", "{in}/a.npy"], "would be overwritten"),
    "an old meta file": (
        ["{in}/texts.txt", "-o", "{in}/a.npy"],
        "a.meta.jsonl exists from another run",
    ),
    "there already, npy": (["{in}/texts.txt", "-o", "{in}/there.npy"], "there.npy exists: pass"),
    "there already, meta": (
        ["{in}/docs.jsonl", "-o", "{in}/a.npy", *BODY],
        "a.meta.jsonl exists: pass --overwrite to replace it",
    ),
    "there already, jsonl": (
        ["{in}/texts.txt", "-o", "{in}/there.jsonl"],
        "there.jsonl exists: pass --overwrite to replace it",
    ),
    "there already, rejects": (
        ["{in}/texts.txt", "-o", "{in}/b.npy", *SKIP],
        "b.npy.rejects.jsonl exists: pass --overwrite to replace it",
    ),
    "an old file of rejects": (
        ["{in}/texts.txt", "-o", "{in}/b.npy", "--overwrite"],
        "b.npy.rejects.jsonl exists from another run",
    ),
    "inside an input": (
        ["{in}", "-o", "{in}/new.npy", *BODY],
        "new.npy is inside the input ",
    ),
    "rejects without a folder": (
        ["{in}/texts.txt", "-o", "-", *SKIP],
        "standard output has no folder: name a file, or pass --on-error fail",
    ),
    "json twice": (["{in}/texts.txt", "-o", "-", "--json"], "--json and the vectors would both"),
    "restart of a file": (
        ["{in}/texts.txt", "-o", "{out}/v.npy", "--restart"],
        "v.npy, pass --overwrite",
    ),
    "parts of a file": (
        ["{in}/texts.txt", "-o", "{out}/v.npy", "--part-rows", "9"],
        "--part-rows is for an output that is a folder: end ",
    ),
    "task of a file": (
        ["{in}/texts.txt", "-o", "{out}/v.npy", "--task", "1/2"],
        "--task is for an output that is a folder: end ",
    ),
    "overwriting a folder": (
        ["{in}/texts.txt", "-o", "{out}", "--overwrite"],
        "anew, pass --restart",
    ),
    "format of a folder": (
        ["{in}/texts.txt", "-o", "{out}/", "--output-format", "npy"],
        "--output-format is for an output that is a file: ",
    ),
    "columns without a name": (
        ["{in}/docs.jsonl", "-o", "{out}/v.npy", "--columns", "id,,tags"],
        "--columns 'id,,tags' must be all, none, or different names",
    ),
    "columns twice": (["{in}/docs.jsonl", "-o", "{out}/v.npy", "--columns", "a,a"], "'a,a' must"),
    "field of a text": (
        ["{in}/texts.txt", "-o", "{out}/v.npy", "--field", "a"],
        "--field a is for inputs with fields, but ",
    ),
    "no such field": (
        ["{in}/docs.jsonl", "-o", "{out}/v.npy"],
        "docs.jsonl, line 1: there is no field 'text' among 'id', 'body', 'tags', 'score'",
    ),
    "not jsonl": (
        ["{in}/texts.txt", "-o", "{out}/v.npy", "--input-format", "jsonl"],
        "texts.txt, line 1: not JSON",
    ),
    "both prompts": (
        ["{in}/texts.txt", "-o", "{out}/v.npy", "--prompt", "", "--prompt-name", "a"],
        "give --prompt-name or --prompt, not both",
    ),
    "both widths": (
        ["{in}/texts.txt", "-o", "{out}/v.npy", "--matryoshka-dim", "2", "--truncate-dim", "2"],
        "give --matryoshka-dim or --truncate-dim, not both",
    ),
    "no ranges": (
        ["{in}/texts.txt", "-o", "{out}/v.npy", *INT8],
        "--precision int8 needs --ranges FILE.npy: the minimum and maximum of each column; "
        'make it from the vectors of a float32 run: python -c "import numpy as np; v = np.load',
    ),
    "ranges of float32": (
        ["{in}/texts.txt", "-o", "{out}/v.npy", "--ranges", "{ranges width}"],
        "only, not to 'float32'",
    ),
    "no such ranges": (
        ["{in}/texts.txt", "-o", "{out}/v.npy", *INT8, "--ranges", "{in}/no.npy"],
        "no.npy: No such file",
    ),
    "ranges that are no array": (
        ["{in}/texts.txt", "-o", "{out}/v.npy", *INT8, "--ranges", "{ranges broken}"],
        "broken.npy is not a .npy file of numbers",
    ),
    "ranges of another shape": (
        ["{in}/texts.txt", "-o", "{out}/v.npy", *INT8, "--ranges", "{ranges shape}"],
        "holds float64 (3, 4), wanted (2, dim)",
    ),
    "ranges of words": (
        ["{in}/texts.txt", "-o", "{out}/v.npy", *INT8, "--ranges", "{ranges words}"],
        "holds <U1 (2, 1), wanted (2, dim)",
    ),
    "inverted ranges": (
        ["{in}/texts.txt", "-o", "{out}/v.npy", *INT8, "--ranges", "{ranges inverted}"],
        "column 1 runs from 3.0 to 2.0",
    ),
    "ranges of another width": (
        ["{in}/texts.txt", "-o", "{out}/v.npy", *INT8, "--ranges", "{ranges width}", *SIX],
        "--ranges must be (2, 6)",
    ),
    "ranges overwritten": (
        ["{in}/texts.txt", "-o", "{ranges width}", *INT8, "--ranges", "{ranges width}"],
        "would be overwritten",
    ),
}


if sys.platform == "linux":  # not even root can create files there
    args = ["{in}/texts.txt", "-o", "/proc/self/v.npy"]
    MISTAKES["not to be written"] = (args, "cannot write /proc/self/v.npy: ")


@pytest.fixture
def places(docs: Path, tmp_path: Path) -> Callable[[list[str]], list[str]]:
    """Fill in the folders of MISTAKES."""
    docs.with_name("a.meta.jsonl").write_text('{"text": ""}\n')
    for name in ("there.npy", "there.jsonl", "b.npy.rejects.jsonl"):
        docs.with_name(name).touch()
    (tmp_path / "out").mkdir()

    def fill(args: list[str]) -> list[str]:
        names = {"{in}": str(docs.parent), "{out}": str(tmp_path / "out")}
        filled = []
        for arg in args:
            if arg.startswith("{ranges "):
                arg = str(bad_ranges(docs.parent, arg[8:-1]))
            for name, path in names.items():
                arg = arg.replace(name, path)
            filled.append(arg)
        return filled

    return fill


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_found_before_a_model_is_loaded(
    case: str,
    places: Callable[[list[str]], list[str]],
    tmp_path: Path,
) -> None:
    args, message = MISTAKES[case]
    filled = places(args)
    before = {path: path.read_bytes() for path in (tmp_path / "in").iterdir()}
    code, out, err = run_cli("embed", "-m", "m", *filled)
    assert (code, out) == (2, "")
    assert message in one_line(err)
    assert {path: path.read_bytes() for path in (tmp_path / "in").iterdir()} == before
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.usefixtures("no_model")
def test_parquet_without_pyarrow(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    code, out, err = run_cli("embed", str(texts), "-m", "m", "-o", str(tmp_path / "v.parquet"))
    assert (code, out) == (2, "")
    assert f"v.parquet needs pyarrow: {to_install('parquet')}" in one_line(err)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--precision", "int4"], "'float32', 'float16', 'int8', 'uint8', 'binary', 'ubinary'"),
        (["--truncate", "middle"], "'end', 'error', 'chunk', 'mean'"),
        (["--dtype", "float64"], "'float32', 'float16', 'bfloat16', 'auto', 'fastest'"),
        (["--output-format", "csv"], "'npy', 'jsonl', 'parquet'"),
        (["--input-format", "xml"], "'text', 'jsonl', 'csv', 'tsv', 'json', 'parquet', 'arrow', "),
        (["--on-error", "ignore"], "'fail', 'skip'"),
        (["--on-null", "fail"], "'error', 'empty', 'skip'"),
        (["--part-rows", "0"], "--part-rows"),
        (["--max-length", "0"], "--max-length"),
        (["--batch-tokens", "0"], "--batch-tokens"),
        (["--truncate-dim", "0"], "--truncate-dim"),
        (["--matryoshka-dim", "-1"], "--matryoshka-dim"),
        (["--rotary-scaling-factor", "-1"], "--rotary-scaling-factor"),
    ],
)
def test_invalid_option_values(args: list[str], message: str, tmp_path: Path) -> None:
    code, out, err = run_cli("embed", "-m", "m", "-o", str(tmp_path / "v.npy"), *args)
    assert (code, out) == (2, "")
    assert message in err
    assert args[0] in err
    assert "Traceback" not in err


def test_model_and_output_are_required() -> None:
    for args, missing in ((["-m", "m"], "--output"), (["-o", "v.npy"], "--model")):
        code, out, err = run_cli("embed", *args)
        assert (code, out) == (2, "")
        assert f"the option {missing} is missing" in one_line(err)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-m", "{none}"], "none' does not exist"),
        (["--matryoshka-dim", "9999"], "--matryoshka-dim must be 1 to"),
        (["--prompt-name", "nope"], "unknown --prompt-name 'nope'"),
        (["--truncate-dim", "9999"], "--truncate-dim must be 1 to"),
        (["--device", "nope"], "unknown device 'nope'"),
        ([*INT8, "--ranges", "{width}"], "--ranges must be (2, "),
        (["--prompt", "", "--max-length", "9", "--truncate", "error"], "line 3: it is longer than"),
    ],
)
def test_errors_of_the_model_leave_no_file(
    args: list[str], message: str, texts: Path, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    names = {"{none}": f"{tmp_path}/none", "{width}": str(bad_ranges(tmp_path, "width"))}
    args = [names.get(arg, arg) for arg in args]
    code, printed, err = run_cli(
        "embed", str(texts), "-m", str(checkpoint), "-o", f"{out}/v.npy", *args
    )
    assert (code, printed) == (2, "")
    assert message in one_line(err)
    assert list(out.iterdir()) == []


def test_names_of_arguments_are_those_of_options() -> None:
    """But not the names of fields and files."""
    named = partial(naming_options, parameters=get_command(cli.app).commands["embed"].params)
    other = "max_length/a.txt, line 1: no field 'prompt_name' among 'max_length'; ranges"
    assert named(f"max_length=3 {other}") == f"--max-length=3 {other}"
    assert named("prompt_name, or call encode_query and encode_document") == "--prompt-name"
    assert named("ranges must be finite") == "--ranges must be finite"
    for known in ("--ranges must be finite", "model_name is no argument", "model must be"):
        assert named(known) == known


def test_a_late_invalid_line_leaves_no_file(docs: Path, checkpoint: Path, tmp_path: Path) -> None:
    with docs.open("a") as file:
        file.write('\n{"body": "fine"}\n{"body": 1}\n')
    out = tmp_path / "out"
    out.mkdir()
    args = ("-m", str(checkpoint), "-o", f"{out}/v.npy", "--prompt", "", "--field", "body")
    code, _, err = run_cli("embed", str(docs), *args)
    assert code == 2
    assert f"{docs}, line 10: the field 'body' must be a string, not a number" in one_line(err)
    assert list(out.iterdir()) == []
