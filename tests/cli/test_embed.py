"""`nomicbert embed`: same vectors as `Embedder` for all formats and options."""

# An imported fixture is named again as an argument.
# ruff: noqa: F811

from __future__ import annotations

import inspect
import json
import os
import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from nomicbert.bulk.inputs.rows import OnError, OnNull
from nomicbert.cli import embed_options
from nomicbert.cli.embed import embed
from nomicbert.embedder import Embedder
from nomicbert.runtime import workers
from nomicbert.runtime.dispatch import Dispatcher
from nomicbert.runtime.texts import Truncate
from nomicbert.vectors import quantization
from nomicbert_kernels import linear_int8
from tests.cli.embed_cases import (  # noqa: F401
    DOCS,
    FORMATS,
    TEXTS,
    Recorder,
    checkpoint,
    docs,
    embedder,
    on_linux,
    recorder,
    small_blocks,
    texts,
)
from tests.support.command_line import run_cli
from tests.support.sameness import same


def run_well(*args: str | Path) -> str:
    """Run the command, which must succeed with empty stdout; return its last line on stderr."""
    code, out, err = run_cli("embed", *map(str, args))
    assert (code, out) == (0, ""), err
    return err.splitlines()[-1]


def read_vectors(path: Path) -> Any:
    """The (n, width) vectors of an output file of any format."""
    if path.suffix == ".npy":
        return np.load(path)
    if path.suffix == ".jsonl":
        rows = [json.loads(line)["embedding"] for line in path.read_bytes().split(b"\n")[:-1]]
        return np.array(rows, np.float32)
    import pyarrow.parquet as pq

    column = pq.read_table(path)["embedding"].combine_chunks()
    return column.values.to_numpy().reshape(len(column), -1)


def read_objects(path: Path) -> list[dict[str, Any]]:
    """The other fields of a JSONL or Parquet output."""
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
    assert (
        len(np.unique(expected, axis=0)) == 7
    )  # two are blank; the others differ, so that a wrong order shows
    found = read_vectors(out)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)

    assert last.startswith(f"nomicbert: 8 vectors of {expected.shape[1]} float32 values in ")
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


@pytest.mark.parametrize("name", [p.value for p in embed_options.Precision])
@pytest.mark.parametrize("form", FORMATS)
def test_precisions(
    name: str, form: str, texts: Path, checkpoint: Path, embedder: Embedder, tmp_path: Path
) -> None:
    more, ranges = [], None
    if name in ("int8", "uint8"):
        vectors = embedder.encode(TEXTS, prompt="")
        ranges = np.stack(
            [vectors.min(0) - 1, vectors.max(0)]
        )  # differ from the range of these vectors
        np.save(tmp_path / "ranges.npy", ranges)
        more = ["--ranges", tmp_path / "ranges.npy"]
    out = tmp_path / f"out.{form}"
    run_well(texts, "-m", checkpoint, "-o", out, "--prompt", "", "--precision", name, *more)
    expected = embedder.encode(TEXTS, prompt="", precision=name, ranges=ranges)
    found = read_vectors(out)
    if form != "jsonl":
        assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found.astype(expected.dtype), expected)


@pytest.mark.skipif(linear_int8.why_not() is not None, reason="no int8 instructions on this CPU")
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
    monkeypatch.setattr(workers, "LEAST_CHARACTERS", 8)
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
    same(np.load(out), embedder.encode(TEXTS, prompt="", truncate="chunk", max_length=4))


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
    "mean": (
        ["--max-length", "12", "--truncate", "mean"],
        {"max_length": 12, "truncate": "mean"},
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


def test_every_option_is_passed_on(texts: Path, tmp_path: Path, recorder: Recorder) -> None:
    out = ("-o", tmp_path / "out.npy", "-m", "some/model", "--overwrite")
    run_well(texts, *out)
    assert recorder.loaded == {
        "path_or_repo_id": "some/model",
        "revision": None,
        "local_files_only": False,
        "dtype": "float32",
        "device": "auto",
        "backend": "auto",
        "rotary_scaling_factor": None,
    }
    assert recorder.asked == {
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
    }
    run_well(
        texts, *out, *"--revision r --local-files-only --dtype fastest --device cuda:1".split(),
        *"--backend torch --rotary-scaling-factor 2 --prompt-name p --matryoshka-dim 2".split(),
        *"--normalize --precision binary --batch-tokens 9 --max-length 8".split(),
        *"--truncate error --no-progress".split(),
    )  # fmt: skip
    assert recorder.loaded == {
        "path_or_repo_id": "some/model",
        "revision": "r",
        "local_files_only": True,
        "dtype": "fastest",
        "device": "cuda:1",
        "backend": "torch",
        "rotary_scaling_factor": 2.0,
    }
    assert recorder.asked == {
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
    }
    run_well(texts, *out, "--prompt", "q", "--truncate-dim", "3")
    assert (recorder.asked["prompt"], recorder.asked["truncate_dim"]) == ("q", 3)


def test_the_choices_are_those_of_the_library() -> None:
    for choices, known in (
        (embed_options.Precision, quantization.Precision),
        (embed_options.Truncate, Truncate),
        (embed_options.OnErrorName, OnError),
        (embed_options.OnNullName, OnNull),
    ):
        assert [choice.value for choice in choices] == [*get_args(known)]


def test_a_progress_bar_on_request(texts: Path, checkpoint: Path, tmp_path: Path) -> None:
    out = ("-m", str(checkpoint), "-o", str(tmp_path / "o.npy"), "--prompt", "")
    assert "tokens/s" in run_cli("embed", str(texts), *out, "--progress")[2]
    assert "tokens/s" not in run_cli("embed", str(texts), *out)[2]


@on_linux
def test_the_bar_is_cleared_before_an_error(texts: Path, checkpoint: Path) -> None:
    args = ("-m", str(checkpoint), "-o", "/dev/full", "--prompt", "", "--progress")
    code, _, err = run_cli("embed", str(texts), *args)
    assert code == 1
    assert "tokens/s" in err
    assert err.endswith("nomicbert: cannot write /dev/full: No space left on device\n")


def test_nan_and_infinity_are_counted(texts: Path, tmp_path: Path, recorder: Recorder) -> None:
    recorder.broken = {4, 5, 7}
    code, _, err = run_cli("embed", str(texts), "-m", "m", "-o", str(tmp_path / "out.npy"))
    assert code == 0
    assert f"3 vectors with NaN or infinity; the first is that of {texts}, line 5\n" in err
    assert np.isnan(np.load(tmp_path / "out.npy")).sum() == 3


@pytest.mark.usefixtures("recorder")
def test_no_input_and_no_output() -> None:
    assert "0 vectors of 3 float32" in run_well(os.devnull, "-m", "m", "-o", os.devnull)


def test_help_has_the_essentials() -> None:
    code, out, _ = run_cli("embed", "--help")
    assert code == 0
    flat = " ".join(out.split())
    assert "after a crash the same command goes on" in flat
    assert "Examples: nomicbert embed texts.txt -m" in flat


def test_help_groups_its_options() -> None:
    """Every option is listed, in a group, in lines of 80 columns."""
    out = run_cli("embed", "--help")[1]
    sections = re.findall(r"^(\S.*):$", out, re.M)
    assert sections == [
        "Input", "Output", "Output to a folder", "Model and computation", "Vectors", "Long texts",
    ]  # fmt: skip
    for name in inspect.signature(embed).parameters:
        option = "chunks" if name == "chunk_tokens" else name.replace("_", "-")
        assert f"--{option}" in out or name in ("context", "inputs")
    options, _, _ = out.partition("Examples:")
    assert max(map(len, options.splitlines())) <= 80
    input_options = out.partition("Input:")[2].partition("Output:")[0]
    assert "INPUT" in input_options
    assert "--on-null" in input_options
    assert "--device" not in input_options
