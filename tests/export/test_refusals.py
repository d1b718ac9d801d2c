"""What an export refuses, replaces and leaves: folders, interrupts, full disks, packages."""

from __future__ import annotations

import errno
import os
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nomicbert import Embedder, ExportError
from nomicbert.errors import to_install
from nomicbert.export import check, folder, graph, run
from nomicbert.export import onnx as export
from nomicbert.export.source import Source
from nomicbert.vectors.embedding_model import EmbeddingModel
from nomicbert.vectors.pooling import Pooling
from tests.support.checkpoints import build_checkpoint


@pytest.fixture(autouse=True)
def short_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "LONGEST", 32)
    monkeypatch.setattr(check, "TEXTS", check.TEXTS[:3])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("models") / "m", "bge-en", num_hidden_layers=1)


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder: name -> content, None for a folder. Hidden ones too."""
    return {
        path.relative_to(folder).as_posix(): None if path.is_dir() else path.read_bytes()
        for path in folder.rglob("*")
    }


# Places


def test_a_new_place(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative names, folders that do not exist yet, an empty one, inside the model's folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    inside = build_checkpoint(tmp_path / "model", "bge-en", num_hidden_layers=1)
    for output in ("onnx", "a/b/c/", "a/../d", "./e", "empty", "model/onnx"):
        made = export(inside, output)
        assert made.folder == Path(output)
        assert (tmp_path / output / "onnx/model.onnx").is_file()
    assert not [name for name in tree(tmp_path) if Path(name).name.startswith(".")]
    assert Embedder(inside).encode("still there", prompt="").any()


def test_the_current_folder(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell would stay in a folder that is gone; the same for those around it."""
    (tmp_path / "a/b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a/b")
    for output in (".", "", "..", "../../a", tmp_path / "a/b"):
        with pytest.raises(
            ExportError, match="it is the current folder, one around it, or a mount"
        ):
            export(model, output)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "b")
    with pytest.raises(ExportError, match="name a new folder in it"):
        export(model, "a/b")
    assert tree(tmp_path) == {"a": None, "a/b": None}


def test_a_file_or_a_link(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    (tmp_path / "to-folder").symlink_to(tmp_path / "folder")
    before = tree(tmp_path / "folder")
    for name in ("file", "link", "to-folder"):
        for overwrite in (False, True):
            with pytest.raises(ExportError, match=f"{name} is a file or a link: choose another"):
                export(model, tmp_path / name, overwrite=overwrite)
    with pytest.raises(NotADirectoryError) as caught:
        export(model, tmp_path / "file/onnx")
    assert caught.value.filename == str(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    assert tree(tmp_path / "folder") == before == {}


def test_a_place_that_cannot_be_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found before the model is loaded."""

    def refuse(*args: Any, **more: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path / ".x-123"))

    monkeypatch.setattr(folder.tempfile, "TemporaryDirectory", refuse)
    monkeypatch.setattr(run, "load", lambda *args: pytest.fail("loaded"))
    with pytest.raises(PermissionError) as caught:
        export(model, tmp_path / "onnx")
    assert caught.value.filename == str(tmp_path / "onnx")


# Overwriting


def test_an_earlier_export(model: Path, tmp_path: Path) -> None:
    """Only with `overwrite`; files of the earlier one that are not made again are removed."""
    export(model, tmp_path / "onnx", dtypes=("fp16", "q8"))
    before = tree(tmp_path)
    with pytest.raises(ExportError, match="onnx exists: choose another folder, or overwrite it"):
        export(model, tmp_path / "onnx")
    assert tree(tmp_path) == before
    export(model, tmp_path / "onnx", overwrite=True)
    names = {Path(name).name for name in tree(tmp_path) if name.endswith(".onnx")}
    assert names == {"model.onnx"}
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]


@pytest.mark.parametrize("name", ["README.md", ".git/HEAD", "onnx/mine.onnx"])
def test_files_of_others_are_kept(name: str, model: Path, tmp_path: Path) -> None:
    export(model, tmp_path / "onnx")
    path = tmp_path / "onnx" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(ExportError, match=f"no earlier export has written: {name}. Move them"):
        export(model, tmp_path / "onnx", overwrite=True)
    (tmp_path / "onnx/zzz").symlink_to(model)
    with pytest.raises(ExportError, match=f"{name} and 1 more"):
        export(model, tmp_path / "onnx", overwrite=True)
    (tmp_path / "onnx/zzz").unlink()
    assert tree(tmp_path) == before


@pytest.mark.parametrize("record", [None, "", "[]", "{", '{"contents": 3}', '{"contents": []}'])
def test_a_folder_that_is_no_export(record: str | None, model: Path, tmp_path: Path) -> None:
    """Above all the model's own folder."""
    (tmp_path / "config.json").write_text("mine")
    if record is not None:
        (tmp_path / "nomicbert_export.json").write_text(record)
    before = tree(tmp_path)
    with pytest.raises(ExportError, match="is not overwritten"):
        export(model, tmp_path, overwrite=True)
    assert tree(tmp_path) == before
    before = tree(model)
    for overwrite in (False, True):
        with pytest.raises(ExportError, match=r"exists|no earlier export"):
            export(model, model, overwrite=overwrite)
    assert tree(model) == before


def test_a_folder_that_appears_meanwhile(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program's, while this one computes."""

    def appear(text: str) -> None:
        (tmp_path / "onnx").mkdir(exist_ok=True)
        (tmp_path / "onnx/mine").write_text("mine")

    with pytest.raises(ExportError, match="onnx exists"):
        export(model, tmp_path / "onnx", step=appear)
    assert tree(tmp_path) == {"onnx": None, "onnx/mine": b"mine"}


# Ends


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError, MemoryError])
@pytest.mark.parametrize(
    "where",
    ["load", "cases_of", "differences", "record", "second", "Source.save_settings"],
)
@pytest.mark.parametrize("earlier", [False, True])
def test_an_interrupted_export(
    error: type[BaseException],
    where: str,
    earlier: bool,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is left, and an earlier export stays, file by file."""
    if earlier:
        export(model, tmp_path / "onnx")
    before = tree(tmp_path)
    calls = []

    def stop(*args: Any) -> Any:
        calls.append(args)
        if where == "second" and len(calls) == 1:
            return check.differences(*args)
        raise error("stop")

    name = {"second": "differences"}.get(where, where)
    monkeypatch.setattr(f"nomicbert.export.run.{name}", stop)
    with pytest.raises(error):
        export(model, tmp_path / "onnx", dtypes=("fp32", "q8"), overwrite=True)
    assert calls
    assert tree(tmp_path) == before


@pytest.mark.parametrize("fails", [1, 2])
def test_an_interrupt_while_folders_are_swapped(
    fails: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first rename puts the earlier export aside, the second the new one in its place."""
    export(model, tmp_path / "onnx")
    before, rename, calls = tree(tmp_path), Path.rename, []

    def stop(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == fails:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stop)
    with pytest.raises(KeyboardInterrupt):
        export(model, tmp_path / "onnx", overwrite=True)
    assert tree(tmp_path) == before


# Full disks


def limited(call: Callable[..., Any], size: int) -> Callable[..., Any]:
    """Run a function in which no file may grow beyond a size: writing fails in the system."""

    def other(*args: Any) -> Any:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            return call(*args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return other


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("run._write_graph", "_write_graph"),
        # its libraries are written in Rust, and raise no OSError
        ("run.Source.save_settings", "save_settings"),
        ("run.record", "record"),
    ],
)
def test_a_disk_that_takes_no_more(
    place: str, name: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error of the system names the folder that was asked for, and nothing is left."""
    call = getattr(Source, name, None) or getattr(run, name)
    monkeypatch.setattr(f"nomicbert.export.{place}", limited(call, 100))
    with pytest.raises(OSError, match="File too large") as caught:
        export(model, tmp_path / "onnx")
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == str(tmp_path / "onnx")
    assert tree(tmp_path) == {}


def test_a_full_disk(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(graph, "write", full)
    with pytest.raises(OSError, match=r"No space left on device: .*onnx'") as caught:
        export(model, tmp_path / "onnx")
    assert caught.value.filename == str(tmp_path / "onnx")
    assert tree(tmp_path) == {}


def test_errors_of_other_libraries_are_not_of_the_disk(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"^no number"), folder.written_to(tmp_path):
        raise RuntimeError("no number (os error)")
    with pytest.raises(OSError, match=re.escape(str(tmp_path))), folder.written_to(tmp_path):
        raise RuntimeError("Input/output error (os error 5)")


# Arguments, packages, weights


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtypes": "fp32"}, r"dtypes \(--dtype\) must be a list of fp32, fp16, q8, not 'fp32'"),
        ({"dtypes": ()}, r"dtypes \(--dtype\) must be a list of fp32, fp16, q8, not "),
        ({"dtypes": ("fp32", "int8")}, "not .'fp32', 'int8'."),
        ({"dtypes": ("float32",)}, "not .'float32',."),
        ({"task": "translation"}, "task must be one of auto, feature-extraction, .*'translation'"),
        ({"task": None}, "task must be one of auto, .* not None"),
        ({"pooling": "median"}, "median"),
        ({"rotary_scaling_factor": -1.0}, "rotary_scaling_factor"),
    ],
)
def test_wrong_arguments(
    options: dict[str, Any], message: str, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        export(model, tmp_path / "onnx", **options)
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("missing", [("onnx",), ("onnxruntime",), ("onnx", "onnxruntime")])
def test_missing_packages(
    missing: tuple[str, ...], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "find_spec", lambda name: None if name in missing else name)
    with pytest.raises(ImportError) as caught:
        export(model, tmp_path / "onnx")
    named = re.findall(r"\bonnx\w*", str(caught.value).split(":")[0])
    assert tuple(named) == missing
    assert to_install("onnx") in str(caught.value)


def test_weights_beyond_two_gigabytes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named with what fits; that limit is the sum of all tensors of this graph."""
    made = export(model, tmp_path / "onnx", dtypes=("fp32", "fp16", "q8"))
    first, *others = (file.size for file in made.files)
    assert first > max(others)
    monkeypatch.setattr(graph, "MOST_BYTES", max(others))
    export(model, tmp_path / "small", dtypes=("fp16", "q8"))
    with pytest.raises(ExportError, match=r"0.0 GiB in fp32, more than .*: export q8 or fp16$"):
        export(model, tmp_path / "large")
    monkeypatch.setattr(graph, "MOST_BYTES", 1000)
    with pytest.raises(ExportError, match=r"in fp16, more than .*: export q8$"):
        export(model, tmp_path / "large", dtypes=("fp16",))
    with pytest.raises(ExportError, match=r"in q8, more than .*: no precision is smaller$"):
        export(model, tmp_path / "large", dtypes=("q8",))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["onnx", "small"]


def test_a_weight_that_float16_cannot_hold(model: Path, tmp_path: Path) -> None:
    embedder = Embedder(model)
    weight = embedder.model.layers[0].attention.out.bias
    weight.data = weight.data.clone()
    for value, holds in ((65504.0, True), (65536.0, False)):
        weight.data[3] = -value
        embedder.save_pretrained(tmp_path / "model")
        if holds:
            export(tmp_path / "model", tmp_path / "held", dtypes=("fp16",))
            continue
        wanted = "layers.0.attention.out.bias has a value of 6.55e.04, which float16 cannot hold"
        with pytest.raises(ExportError, match=wanted):
            export(tmp_path / "model", tmp_path / "onnx", dtypes=("fp32", "fp16"))
        assert not (tmp_path / "onnx").exists()
        export(tmp_path / "model", tmp_path / "onnx", dtypes=("fp32", "q8"))


def test_pooling_without_the_prompt(model: Path, tmp_path: Path) -> None:
    embedder = Embedder(model)
    embedder.embedding_model = EmbeddingModel(embedder.model, Pooling(64, include_prompt=False))
    embedder.save_pretrained(tmp_path / "model")
    with pytest.raises(ExportError, match=r"leaves out the tokens of the prompt \(include_prompt"):
        export(tmp_path / "model", tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()
