"""`nomicbert embed`: the vectors of `Embedder`, whatever goes in and comes out, and how it ends."""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeAlias, get_args

import numpy as np
import pytest

import nomicbert.embedder
from nomicbert.bulk import blocks
from nomicbert.bulk.reading import InputFormat, open_reader
from nomicbert.cli import embed
from nomicbert.embedder import Embedder
from nomicbert.runtime import workers
from nomicbert.runtime.dispatch import Dispatcher
from nomicbert.runtime.texts import Truncate
from nomicbert.vectors import quantization
from nomicbert_kernels import linear_int8
from tests.support.checkpoints import build_checkpoint
from tests.support.command_line import environment, one_line, run_cli, run_python
from tests.support.sameness import same

TEXTS = ["first", "", "the second one is longer", "你好 world", "x" * 300, "", "a b c d e f g", "8"]
DOCS = [
    {"id": f"doc-{row}", "body": text, "tags": ["t"] * row, "score": row / 3}
    for row, text in enumerate(TEXTS)
]
Start: TypeAlias = Callable[..., subprocess.Popen[bytes]]
HAS_PYARROW = importlib.util.find_spec("pyarrow") is not None
needs_pyarrow = pytest.mark.skipif(not HAS_PYARROW, reason="pyarrow is not installed")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and /dev/full")
FORMATS = ["npy", "jsonl", pytest.param("parquet", marks=needs_pyarrow)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("c"), "nomic-v1.5", num_hidden_layers=1)


@pytest.fixture(scope="module")
def embedder(checkpoint: Path) -> Embedder:
    return Embedder(checkpoint)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "in/texts.txt"
    path.parent.mkdir()
    path.write_text("\n".join(TEXTS) + "\n", "utf-8")
    return path


@pytest.fixture
def docs(texts: Path) -> Path:
    path = texts.with_name("docs.jsonl")
    path.write_text("\n".join(json.dumps(doc) for doc in DOCS), "utf-8")
    return path


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 3)


def run_well(*args: str | Path) -> str:
    """Run the command, which must succeed without a word on stdout; its last line on stderr."""
    code, out, err = run_cli("embed", *map(str, args))
    assert (code, out) == (0, ""), err
    return err.splitlines()[-1]


def read_vectors(path: Path) -> Any:
    """(n, width) of any output."""
    if path.suffix == ".npy":
        return np.load(path)
    if path.suffix == ".jsonl":
        rows = [json.loads(line)["embedding"] for line in path.read_bytes().split(b"\n")[:-1]]
        return np.array(rows, np.float32)
    import pyarrow.parquet as pq

    column = pq.read_table(path)["embedding"].combine_chunks()
    return column.values.to_numpy().reshape(len(column), -1)


def read_objects(path: Path) -> list[dict[str, Any]]:
    """What stands beside the vectors of a JSONL or Parquet output."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        objects = pq.read_table(path).to_pylist()
    else:
        objects = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    for found in objects:
        found.pop("embedding", None)
    return objects


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("source", ["texts", "docs"])
def test_the_vectors_of_encode_in_the_order_of_the_input(
    source: str,
    form: str,
    request: pytest.FixtureRequest,
    checkpoint: Path,
    embedder: Embedder,
    tmp_path: Path,
) -> None:
    path, out = request.getfixturevalue(source), tmp_path / f"out.{form}"
    field = ("--field", "body") if source == "docs" else ()
    prompt = ("--prompt-name", "search_document")
    last = run_well(path, *field, "-m", checkpoint, "-o", out, *prompt)
    expected = embedder.encode(TEXTS, prompt_name="search_document")
    assert len(np.unique(expected, axis=0)) == 7  # two are blank; else order would not be seen
    found = read_vectors(out)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)

    assert last.startswith(f"nomicbert: 8 vectors of {expected.shape[1]} float32 numbers in ")
    assert str(out) in last
    meta = tmp_path / "out.meta.jsonl"
    assert meta.exists() == (form == "npy" and source == "docs")
    assert (str(meta) in last) == meta.exists()
    plain = [{"id": row, "text": text} for row, text in enumerate(TEXTS)]
    if form != "npy":
        assert read_objects(out) == (plain if source == "texts" else DOCS)
    elif source == "docs":
        assert read_objects(meta) == [
            {key: value for key, value in doc.items() if key != "body"} for doc in DOCS
        ]
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == sorted(
        p.name for p in (out, meta) if p.exists()
    )


@pytest.mark.parametrize("form", FORMATS)
def test_no_texts_at_all(form: str, checkpoint: Path, embedder: Embedder, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    out = tmp_path / f"out.{form}"
    last = run_well(tmp_path / "empty.txt", "-m", checkpoint, "-o", out, "--truncate-dim", "5")
    assert "0 vectors of 5 float32" in last
    if form == "npy":
        assert np.load(out).shape == (0, 5)
    else:
        assert read_objects(out) == []


@pytest.mark.parametrize("name", [p.value for p in embed.Precision])
@pytest.mark.parametrize("form", FORMATS)
def test_precisions(
    name: str, form: str, texts: Path, checkpoint: Path, embedder: Embedder, tmp_path: Path
) -> None:
    more, ranges = [], None
    if name in ("int8", "uint8"):
        vectors = embedder.encode(TEXTS, prompt="")
        ranges = np.stack([vectors.min(0) - 1, vectors.max(0)])  # not those of the call itself
        np.save(tmp_path / "ranges.npy", ranges)
        more = ["--ranges", tmp_path / "ranges.npy"]
    out = tmp_path / f"out.{form}"
    run_well(texts, "-m", checkpoint, "-o", out, "--prompt", "", "--precision", name, *more)
    expected = embedder.encode(TEXTS, prompt="", precision=name, ranges=ranges)
    found = read_vectors(out)
    if form != "jsonl":
        assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found.astype(expected.dtype), expected)


@pytest.mark.skipif(linear_int8.why_not() is not None, reason="no int8 products on this CPU")
def test_backend_int8(texts: Path, checkpoint: Path, embedder: Embedder, tmp_path: Path) -> None:
    out = tmp_path / "out.npy"
    options = ("--prompt", "", "--backend", "int8", "--device", "cpu")
    run_well(texts, "-m", checkpoint, "-o", out, *options)
    found, plain = np.load(out), embedder.encode(TEXTS, prompt="")
    expected = Embedder(checkpoint, backend="int8").encode(TEXTS, prompt="")
    np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(found, plain)


def test_several_devices(
    texts: Path,
    checkpoint: Path,
    embedder: Embedder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers, "LEAST_LETTERS", 8)
    started = []
    start = Dispatcher._start
    monkeypatch.setattr(
        Dispatcher, "_start", lambda self, names: (started.extend(names), start(self, names))
    )
    out, long = tmp_path / "out.npy", ("--truncate", "chunk", "--max-length", "4")
    run_well(
        *(texts, "-m", checkpoint, "-o", out, "--prompt", "", *long),
        *("--device", "cpu", "--device", "cpu"),
    )
    assert started == ["cpu", "cpu"]
    wanted = embedder.encode(TEXTS, prompt="", truncate="chunk", max_length=4)
    np.testing.assert_array_equal(np.load(out), wanted)


OPTIONS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "prompt name": (["--prompt-name", "clustering"], {"prompt_name": "clustering"}),
    "prompt": (["--prompt", "one two: "], {"prompt": "one two: "}),
    "matryoshka": (["--matryoshka-dim", "16"], {"matryoshka_dim": 16}),
    "slice": (["--truncate-dim", "16"], {"truncate_dim": 16}),
    "normalize": (["--normalize"], {"normalize_embeddings": True}),
    "length": (["--max-length", "4"], {"max_length": 4}),
    "chunks": (
        ["--max-length", "4", "--truncate", "chunk"],
        {"max_length": 4, "truncate": "chunk"},
    ),
}


@pytest.mark.filterwarnings("ignore::nomicbert.user_warnings.TruncationWarning")
@pytest.mark.filterwarnings("ignore::nomicbert.user_warnings.PromptWarning")
@pytest.mark.parametrize("case", OPTIONS)
def test_options_of_encode(
    case: str, texts: Path, checkpoint: Path, embedder: Embedder, tmp_path: Path
) -> None:
    args, keywords = OPTIONS[case]
    run_well(texts, "-m", checkpoint, "-o", tmp_path / "out.npy", *args)
    found, expected = np.load(tmp_path / "out.npy"), embedder.encode(TEXTS, **keywords)
    np.testing.assert_array_equal(found, expected)
    plain = embedder.encode(TEXTS)
    assert found.shape != plain.shape or (found != plain).any()


class Recorder:
    """An Embedder that only says what it has been asked for."""

    loaded: dict[str, Any]
    asked: dict[str, Any]

    def __init__(self, model: str, **keywords: Any) -> None:
        type(self).loaded = {"model": model} | keywords

    def encode(self, texts: list[str], **keywords: Any) -> Any:
        assert texts == []
        type(self).asked = dict(keywords)
        return np.empty((0, 3), np.float32)

    def encode_iter(self, texts: Iterator[str], **keywords: Any) -> Iterator[Any]:
        assert keywords | self.asked == keywords
        type(self).asked = keywords
        return (np.full(3, len(text), np.float32) for text in texts)


def test_every_option_arrives(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nomicbert.embedder, "Embedder", Recorder)
    out = ("-o", tmp_path / "out.npy", "-m", "some/model")
    run_well(texts, *out)
    assert Recorder.loaded == {
        "model": "some/model",
        "revision": None,
        "local_files_only": False,
        "dtype": "float32",
        "device": "auto",
        "backend": "auto",
        "rotary_scaling_factor": None,
    }
    assert Recorder.asked == {
        "device": None,
        "prompt_name": None,
        "prompt": None,
        "matryoshka_dim": None,
        "truncate_dim": None,
        "normalize_embeddings": False,
        "precision": "float32",
        "ranges": None,
        "batch_tokens": None,
        "max_length": None,
        "truncate": "end",
        "show_progress_bar": None,
    }
    run_well(
        texts, *out, *"--revision r --local-files-only --dtype fastest --device cuda:1".split(),
        *"--backend torch --rotary-scaling-factor 2 --prompt-name p --matryoshka-dim 2".split(),
        *"--normalize --precision binary --batch-tokens 9 --max-length 8".split(),
        *"--truncate error --no-progress".split(),
    )  # fmt: skip
    assert Recorder.loaded == {
        "model": "some/model",
        "revision": "r",
        "local_files_only": True,
        "dtype": "fastest",
        "device": "cuda:1",
        "backend": "torch",
        "rotary_scaling_factor": 2.0,
    }
    assert Recorder.asked == {
        "device": None,
        "prompt_name": "p",
        "prompt": None,
        "matryoshka_dim": 2,
        "truncate_dim": None,
        "normalize_embeddings": True,
        "precision": "binary",
        "ranges": None,
        "batch_tokens": 9,
        "max_length": 8,
        "truncate": "error",
        "show_progress_bar": False,
    }
    run_well(texts, *out, "--prompt", "q", "--truncate-dim", "3", "--progress")
    assert (Recorder.asked["prompt"], Recorder.asked["truncate_dim"]) == ("q", 3)
    assert Recorder.asked["show_progress_bar"] is True


def test_the_choices_are_those_of_the_library() -> None:
    assert [choice.value for choice in embed.Precision] == [*get_args(quantization.Precision)]
    assert [choice.value for choice in embed.Truncate] == [*get_args(Truncate)]


def test_a_progress_bar_on_request(texts: Path, checkpoint: Path, tmp_path: Path) -> None:
    out = ("-m", str(checkpoint), "-o", str(tmp_path / "o.npy"), "--prompt", "")
    assert "tokens/s" in run_cli("embed", str(texts), *out, "--progress")[2]
    assert "tokens/s" not in run_cli("embed", str(texts), *out)[2]


@on_linux
def test_the_bar_is_gone_when_an_error_is_told(texts: Path, checkpoint: Path) -> None:
    args = ("-m", str(checkpoint), "-o", "/dev/full", "--prompt", "", "--progress")
    code, _, err = run_cli("embed", str(texts), *args)
    assert code == 1
    assert "tokens/s" in err
    assert err.endswith("nomicbert: cannot write /dev/full: No space left on device\n")


def test_numbers_that_are_none_are_counted(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Recorder):
        def encode_iter(self, texts: Iterator[str], **keywords: Any) -> Iterator[Any]:
            for number, text in enumerate(texts):
                yield np.array([1, np.nan if number in (4, 5, 7) else len(text), 2], np.float32)

    monkeypatch.setattr(nomicbert.embedder, "Embedder", Broken)
    code, _, err = run_cli("embed", str(texts), "-m", "m", "-o", str(tmp_path / "out.npy"))
    assert code == 0
    assert f"3 vectors hold NaN or infinity, the first that of {texts}, line 5\n" in err
    assert np.isnan(np.load(tmp_path / "out.npy")).sum() == 3


def test_long_lines_are_written_in_smaller_blocks(
    texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_LETTERS", 100)
    reader = open_reader(str(texts), InputFormat.text, "text")
    vectors = (np.full(2, len(text)) for text in reader)
    found = list(blocks._blocks(vectors, reader))
    reader.close()
    # three rows, or fewer where lines and their fields come to a hundred letters: the fifth has 300
    assert [[record.fields["id"] for record in records] for records, _ in found] == [
        [0, 1, 2],
        [3, 4],
        [5, 6, 7],
    ]
    assert [row[0] for _, rows in found for row in rows] == [len(text) for text in TEXTS]


def test_nothing_to_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nomicbert.embedder, "Embedder", Recorder)
    assert "0 vectors of 3 float32" in run_well(os.devnull, "-m", "m", "-o", os.devnull)


class Unloadable:
    """An Embedder that must not be asked for."""

    def __init__(self, *_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded before the mistake was found")


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
SIX = ["--truncate-dim", "6"]
# Arguments, where {in} is the folder of texts.txt and docs.jsonl, {out} an empty one -> message.
MISTAKES: dict[str, tuple[list[str], str]] = {
    "no such input": (["{in}/none.txt", "-o", "{out}/v.npy"], "none.txt: No such file"),
    "input a folder": (["{in}", "-o", "{out}/v.npy"], "in: Is a directory"),
    "input of another kind": (["{in}/a.csv", "-o", "{out}/v.npy"], "--input-format text or jsonl"),
    "output a folder": (["{in}/texts.txt", "-o", "{out}"], "out is a folder"),
    "no such folder": (["{in}/texts.txt", "-o", "{out}/a/v.npy"], "out/a does not exist"),
    "no format": (["{in}/texts.txt", "-o", "{out}/v.txt"], ".npy, .jsonl or .parquet"),
    "npy to stdout": (
        ["{in}/texts.txt", "-o", "-", "--output-format", "npy"],
        "standard output is a stream, which takes jsonl only: npy needs a file",
    ),
    "over the input": (["{in}/docs.jsonl", "-o", "{in}/docs.jsonl"], "would be overwritten"),
    "over the input as meta": (["{in}/a.meta.jsonl", "-o", "{in}/a.npy"], "would be overwritten"),
    "an old meta file": (["{in}/texts.txt", "-o", "{in}/a.npy"], "a.meta.jsonl is there from ano"),
    "field of a text": (["{in}/texts.txt", "-o", "{out}/v.npy", "--field", "a"], "is for JSONL"),
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
        "--precision int8 needs --ranges FILE.npy: the smallest and largest number of each column; "
        'make it from the vectors of a float32 run: python -c "import numpy as np; v = np.load',
    ),
    "ranges of float32": (
        ["{in}/texts.txt", "-o", "{out}/v.npy", "--ranges", "{ranges width}"],
        "not to precision 'float32'",
    ),
    "no such ranges": (
        ["{in}/texts.txt", "-o", "{out}/v.npy", *INT8, "--ranges", "{in}/no.npy"],
        "no.npy: No such file",
    ),
    "ranges that are no array": (
        ["{in}/texts.txt", "-o", "{out}/v.npy", *INT8, "--ranges", "{ranges broken}"],
        "broken.npy is no .npy file of numbers",
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
        "ranges must be (2, 6)",
    ),
    "ranges overwritten": (
        ["{in}/texts.txt", "-o", "{ranges width}", *INT8, "--ranges", "{ranges width}"],
        "would be overwritten",
    ),
}


if sys.platform == "linux":  # nobody, root included, makes files in there
    args = ["{in}/texts.txt", "-o", "/proc/self/v.npy"]
    MISTAKES["not to be written"] = (args, "cannot write /proc/self/v.npy: ")


@pytest.fixture
def places(docs: Path, tmp_path: Path) -> Callable[[list[str]], list[str]]:
    """Fill in the folders of MISTAKES."""
    docs.with_name("a.csv").touch()
    docs.with_name("a.meta.jsonl").write_text('{"text": ""}\n')
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


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_found_before_a_model_is_loaded(
    case: str,
    places: Callable[[list[str]], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nomicbert.embedder, "Embedder", Unloadable)
    args, message = MISTAKES[case]
    filled = places(args)
    before = {path: path.read_bytes() for path in (tmp_path / "in").iterdir()}
    code, out, err = run_cli("embed", "-m", "m", *filled)
    assert (code, out) == (2, "")
    assert message in one_line(err)
    assert {path: path.read_bytes() for path in (tmp_path / "in").iterdir()} == before
    assert list((tmp_path / "out").iterdir()) == []


def test_parquet_without_pyarrow(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nomicbert.embedder, "Embedder", Unloadable)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    code, out, err = run_cli("embed", str(texts), "-m", "m", "-o", str(tmp_path / "v.parquet"))
    assert (code, out) == (2, "")
    assert 'v.parquet needs pyarrow: pip install "nomicbert[parquet]"' in one_line(err)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--precision", "int4"], "'float32', 'float16', 'int8', 'uint8', 'binary', 'ubinary'"),
        (["--truncate", "middle"], "'end', 'error', 'chunk'"),
        (["--dtype", "float64"], "'float32', 'float16', 'bfloat16', 'auto', 'fastest'"),
        (["--output-format", "csv"], "'npy', 'jsonl', 'parquet'"),
        (["--input-format", "csv"], "'text', 'jsonl'"),
        (["--max-length", "0"], "--max-length"),
        (["--batch-tokens", "0"], "--batch-tokens"),
        (["--truncate-dim", "0"], "--truncate-dim"),
        (["--matryoshka-dim", "-1"], "--matryoshka-dim"),
        (["--rotary-scaling-factor", "-1"], "--rotary-scaling-factor"),
    ],
)
def test_values_that_no_option_has(args: list[str], message: str, tmp_path: Path) -> None:
    code, out, err = run_cli("embed", "-m", "m", "-o", str(tmp_path / "v.npy"), *args)
    assert (code, out) == (2, "")
    assert message in err
    assert args[0] in err
    assert "Traceback" not in err


def test_model_and_output_are_required() -> None:
    for args, missing in ((["-m", "m"], "--output"), (["-o", "v.npy"], "--model")):
        code, out, err = run_cli("embed", *args)
        assert (code, out) == (2, "")
        assert missing in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-m", "{none}"], "none' does not exist"),
        (["--matryoshka-dim", "9999"], "matryoshka_dim must be 1 to"),
        (["--prompt-name", "nope"], "unknown prompt_name 'nope'"),
        (["--device", "nope"], "unknown device 'nope'"),
        ([*INT8, "--ranges", "{width}"], "ranges must be (2, "),
        (["--prompt", "", "--max-length", "9", "--truncate", "error"], "line 3: it is longer than"),
    ],
)
def test_mistakes_that_the_model_finds_leave_nothing(
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


def test_a_broken_line_far_down_leaves_nothing(
    docs: Path, checkpoint: Path, tmp_path: Path
) -> None:
    with docs.open("a") as file:
        file.write('\n{"body": "fine"}\n{"body": 1}\n')
    out = tmp_path / "out"
    out.mkdir()
    args = ("-m", str(checkpoint), "-o", f"{out}/v.npy", "--prompt", "", "--field", "body")
    code, _, err = run_cli("embed", str(docs), *args)
    assert code == 2
    assert f"{docs}, line 10: the field 'body' must be a string, not a number" in one_line(err)
    assert list(out.iterdir()) == []


def test_help_says_what_matters() -> None:
    code, out, _ = run_cli("embed", "--help")
    assert code == 0
    flat = " ".join(out.split())
    assert "row i is line i" in flat
    assert "Examples: nomicbert embed texts.txt -m" in flat


# From here on processes of their own, whose Embedder needs no model and no torch.
STAND_IN = """
import os, sys, types
import numpy as np

class Embedder:
    def __init__(self, model, **_):
        pass

    def encode(self, texts, **_):
        return np.empty((0, 4), np.float32)

    def encode_iter(self, texts, **_):
        for text in texts:
            yield np.full(4, len(text), np.float32)

module = types.ModuleType("nomicbert.embedder")
module.Embedder = Embedder
sys.modules["nomicbert.embedder"] = module
from nomicbert.bulk import blocks
from nomicbert.cli import main
blocks.BLOCK_ROWS = int(os.environ["ROWS"])
main()
"""


@pytest.fixture
def start() -> Iterator[Start]:
    """Start the command on the stand-in; what still runs after the test is killed."""
    with ExitStack() as stack:

        def run(*args: str | Path, rows: int = 2, **options: Any) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                [sys.executable, "-c", STAND_IN, "embed", "-m", "m", *map(str, args)],
                env=environment(ROWS=str(rows)),
                stderr=subprocess.PIPE,
                **({"stdout": subprocess.PIPE} | options),
            )
            stack.callback(close, process)
            return process

        yield run


def close(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with suppress(BrokenPipeError):
                stream.close()


def wait_until(true: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if true():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("waited for 30 s")


def test_the_command_imports_nothing_heavy() -> None:
    code = "import sys, nomicbert.cli.embed; print(*sys.modules)"
    done = run_python("-c", code)
    assert "nomicbert.cli.embed" in done.stdout.split()
    heavy = {"numpy", "pyarrow", "tokenizers", "torch", "nomicbert.embedder"}
    assert not heavy & set(done.stdout.split())


def test_standard_input_and_output(checkpoint: Path, embedder: Embedder) -> None:
    command = ["-m", "nomicbert", "embed", "-m", str(checkpoint), "-o", "-", "--prompt", ""]
    done = run_python(*command, input="\n".join(TEXTS) + "\n")
    assert done.returncode == 0, done.stderr
    assert ": standard output" in one_line(done.stderr)
    objects = [json.loads(line) for line in done.stdout.split("\n")[:-1]]
    found = np.array([each.pop("embedding") for each in objects], np.float32)
    assert objects == [{"id": row, "text": text} for row, text in enumerate(TEXTS)]
    assert all(map(same, found, embedder.encode(TEXTS, prompt="")))


def test_jsonl_from_standard_input(start: Start, tmp_path: Path) -> None:
    out = tmp_path / "v.npy"
    process = start("-", "--input-format", "jsonl", "-o", out, stdin=subprocess.PIPE)
    _, err = process.communicate(b'{"text": "abc", "n": 1}\n{"text": "d", "n": 2}\n')
    assert process.returncode == 0, err
    np.testing.assert_array_equal(np.load(out), [[3.0] * 4, [1.0] * 4])
    assert (tmp_path / "v.meta.jsonl").read_text() == '{"n": 1}\n{"n": 2}\n'
    process = start("-", "--input-format", "jsonl", "-o", out, stdin=subprocess.PIPE)
    _, err = process.communicate(b'{"text": "abc"}\n[]\n')
    assert process.returncode == 2
    assert b"nomicbert: standard input, line 2: there must be an object" in err


def test_a_closed_standard_input(start: Start, tmp_path: Path) -> None:
    process = start("-o", tmp_path / "v.npy", preexec_fn=lambda: os.close(0))
    _, err = process.communicate()
    assert process.returncode == 2
    assert b"cannot read the input standard input: Bad file descriptor" in err


def test_standard_input_is_not_overwritten(start: Start, texts: Path) -> None:
    before = texts.read_bytes()
    with texts.open("rb") as file:
        process = start("-o", texts, "--output-format", "jsonl", stdin=file)
        assert b"would be overwritten" in process.communicate()[1]
    assert process.returncode == 2
    assert texts.read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("form", ["npy", "jsonl", pytest.param("parquet", marks=needs_pyarrow)])
def test_nothing_stands_under_the_name_before_the_end(
    form: str, number: signal.Signals, start: Start, tmp_path: Path, seed: int
) -> None:
    out = tmp_path / f"v.{form}"
    out.write_bytes(b"of an earlier run")
    args = ("-o", out, "--input-format", "jsonl")
    process = start(*args, stdin=subprocess.PIPE, preexec_fn=heed_interrupts)
    assert process.stdin
    # enough for some blocks, and for a file's buffer to overflow
    more = np.random.default_rng(seed).bytes(50_000).hex().encode()
    process.stdin.write(b'{"text": "a", "more": "%s"}\n' % more * 40)
    process.stdin.flush()
    wait_until(lambda: any(path.stat().st_size for path in beside(out)), process)
    assert len(beside(out)) == 1 + (form == "npy")
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == (-9 if number is signal.SIGKILL else 128 + number), err
    assert out.read_bytes() == b"of an earlier run"
    if number is not signal.SIGKILL:
        assert list(tmp_path.iterdir()) == [out]
        assert err == (b"nomicbert: interrupted\n" if number is signal.SIGINT else b"")


def heed_interrupts() -> None:
    """A shell's background jobs, which this suite may be one of, ignore them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def beside(out: Path) -> list[Path]:
    """What else is in an output's folder: the files that are being written."""
    return [path for path in out.parent.iterdir() if path != out]


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_that_cannot_grow(form: str, start: Start, tmp_path: Path) -> None:
    source, out = tmp_path / "many.txt", tmp_path / "out"
    source.write_text("a text\n" * 20_000)
    out.mkdir()
    process = start(source, "-o", out / f"v.{form}", rows=100, preexec_fn=limit_files)
    _, err = process.communicate()
    assert process.returncode == 1
    assert one_line(err.decode()) == f"nomicbert: cannot write {out}/v.{form}: File too large\n"
    assert list(out.iterdir()) == []


@on_linux
def test_a_full_device(start: Start, texts: Path) -> None:
    process = start(texts, "-o", "/dev/full")
    _, err = process.communicate()
    assert process.returncode == 1
    assert err == b"nomicbert: cannot write /dev/full: No space left on device\n"
    with open("/dev/full", "wb") as full:
        process = start(texts, "-o", "-", stdout=full)
        _, err = process.communicate()
    assert process.returncode == 1
    assert err == b"nomicbert: cannot write standard output: No space left on device\n"


def test_a_reader_that_has_seen_enough(start: Start, tmp_path: Path) -> None:
    source = tmp_path / "many.txt"
    source.write_text("a text\n" * 20_000)
    process = start(source, "-o", "-")
    assert process.stdout
    assert process.stdout.readline().startswith(b'{"id": 0, "text": "a text", "embedding": [6.0000')
    process.stdout.close()
    assert process.wait(30) == 1
    assert process.stderr
    assert process.stderr.read() == b""


@pytest.mark.skipif(not os.path.exists("/dev/stdout"), reason="has no /dev/stdout")
def test_the_name_of_standard_output(start: Start, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_bytes(b"before\n")
    for name in ("/dev/stdout", out):
        with out.open("ab") as file:
            process = start(texts, "-o", name, stdout=file)
            _, err = process.communicate()
            assert process.returncode == 0, err
    lines = out.read_bytes().split(b"\n")[:-1]
    assert lines[0] == b"before"
    assert [json.loads(line)["id"] for line in lines[1:]] == [*range(8), *range(8)]


@on_linux
def test_memory_does_not_grow_with_the_input(start: Start, tmp_path: Path) -> None:
    """A tenth of the lines, then the others: the most memory ever held must be the same."""
    line = b'{"text": "a text", "more": "%s"}\n' % (b"x" * 20_000)
    for form in ("npy", "jsonl", "parquet") if HAS_PYARROW else ("npy", "jsonl"):
        out = tmp_path / f"v.{form}"
        args = ("--input-format", "jsonl", "-o", out)
        process = start(*args, rows=100, stdin=subprocess.PIPE)
        assert process.stdin
        peaks = []
        for count in (500, 4500):
            for _ in range(count):
                process.stdin.write(line)
            process.stdin.flush()
            peaks.append(peak_memory(process.pid))
        _, err = process.communicate()
        assert process.returncode == 0, err
        # what all but the first tenth would take: 90 MB, and twice that with what is parsed
        assert peaks[1] - peaks[0] < 30e6, f"{form}: {peaks}"


def peak_memory(process: int) -> int:
    """Bytes of RAM that a process has held at most."""
    status = Path(f"/proc/{process}/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def test_standard_output_is_not_the_input(texts: Path, checkpoint: Path) -> None:
    """Else it would read what it writes, without end."""
    before = texts.read_bytes()
    command = [sys.executable, "-m", "nomicbert", "embed", str(texts), "-m", str(checkpoint)]
    with texts.open("ab") as itself:
        done = subprocess.run(
            [*command, "--prompt", "", "-o", "-"],
            stdout=itself,
            stderr=subprocess.PIPE,
            env=environment(),
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert "standard output is read and would be overwritten" in one_line(done.stderr)
    assert texts.read_bytes() == before


@on_linux
def test_a_closed_standard_output(texts: Path, checkpoint: Path, embedder: Embedder) -> None:
    """As a daemon's may be: the file is what counts."""
    out = texts.with_name("v.npy")
    command = [sys.executable, "-m", "nomicbert", "embed", str(texts), "-m", str(checkpoint)]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *command, "--prompt", "", "-o", str(out)],
        stderr=subprocess.PIPE,
        env=environment(),
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(np.load(out)) == len(TEXTS)
    assert all(map(same, np.load(out), embedder.encode(TEXTS, prompt="")))
