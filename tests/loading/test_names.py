"""Names that no file, folder, revision or token can have are errors of this package."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from nomicbert import Embedder, NomicBert
from nomicbert.errors import CheckpointError, ConfigError, HubError
from nomicbert.loading.hub import resolve
from tests.support.checkpoints import build_checkpoint

HALF = "\ud800"


@pytest.fixture(autouse=True)
def nothing_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def message_of(*args: Any, **keywords: Any) -> str:
    """The message of the HubError, made without a request; printable, and not endless."""
    with pytest.raises(HubError) as caught:
        resolve(*args, local_files_only=True, **keywords)
    text = str(caught.value)
    assert len(text.encode()) < 500
    assert "\0" not in text
    return text


@pytest.mark.parametrize("made", [str, Path])
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("x" * 300, "File name too long"),
        ("./" + "x/" * 3000, "File name too long"),
        ("lab/a\0b", "embedded null"),
        ("~a\0b/c", "embedded null"),
        (f"lab/a{HALF}", "surrogates not allowed"),
        (f"~{HALF}/a", "surrogates not allowed"),
        ("loop", "Too many levels of symbolic links"),
        ("loop/model", "Too many levels of symbolic links"),
    ],
)
def test_checkpoint(made: Any, name: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    text = message_of(made(name))
    assert text.startswith("The checkpoint '")
    assert "cannot be opened" in text
    assert why in text


@pytest.mark.parametrize("name", ["lab/" + "x" * 200, "x" * 97])
def test_an_id_that_is_too_long(name: str) -> None:
    assert "is neither a folder here nor a valid repository id" in message_of(name)
    assert "does not exist: check the path" in message_of(Path(name))


def test_a_folder_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "'./file/model' does not exist: check the path" in message_of("./file/model")
    assert "'file/model' at revision 'main' is not in the cache" in message_of("file/model")


def test_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def access(path: Any, mode: int) -> bool:
        asked.append((str(path), mode))
        return False  # root could read it

    monkeypatch.setattr(os, "access", access)
    text = message_of(tmp_path)
    assert text == f"The folder {str(tmp_path)!r} cannot be read: permission denied."
    assert asked == [(str(tmp_path), os.R_OK | os.X_OK)]


@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_neither_file_nor_folder(kind: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    place = tmp_path / "fifo" if kind == "fifo" else Path("/dev/null")
    assert f"{str(place)!r} is a file: give the folder" in message_of(place)


class Bytes(os.PathLike[bytes]):
    def __fspath__(self) -> bytes:
        return b"name"


@pytest.mark.parametrize("value", [b"lab/name", 3, None, ["a"], Bytes()])
def test_types(value: Any) -> None:
    message = "path_or_repo_id must be a string or a path, not "
    with pytest.raises(TypeError, match="missing" if value is None else message):
        Embedder(value)
    with pytest.raises(TypeError, match=message):
        resolve(value)
    if value is not None:
        with pytest.raises(TypeError, match="cache_dir must be a string or a path, not "):
            resolve("lab/name", cache_dir=value)
        with pytest.raises(TypeError, match="revision must be a string, not "):
            resolve("lab/name", revision=value)
        with pytest.raises(TypeError, match="token must be a string, True, False or None, not"):
            resolve("lab/name", token=value)


REVISIONS = ("x" * 256, "é" * 128, "a\0b", f"a{HALF}", "../../x", "/etc", "a b", "a\n", "main^")


@pytest.mark.parametrize("name", REVISIONS)
def test_revision(name: str) -> None:
    text = message_of("lab/name", revision=name)
    assert text.startswith("revision ")
    assert text.endswith(" cannot be the name of a branch, tag or commit.")


@pytest.mark.parametrize("name", [None, "", "main", "v1.0", "refs/pr/1", "x" * 255, "feature/ä"])
def test_revisions_that_may_exist(name: str | None) -> None:
    assert "is not in the cache" in message_of("lab/name", revision=name)


@pytest.mark.parametrize(
    ("name", "why"),
    [("x" * 300, "too long"), ("a\0b", "null"), (f"a{HALF}", "surrogates"), ("loop", "levels")],
)
def test_cache_dir(name: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    text = message_of("lab/name", cache_dir=tmp_path / name)
    assert text.startswith("cache_dir ")
    assert why in text


@pytest.mark.parametrize("token", ["hf_secret\n", "hf secret", "hf_sécret", f"hf_secret{HALF}"])
def test_a_token_that_cannot_be_sent_is_not_shown(token: str) -> None:
    text = message_of("lab/name", token=token)
    assert "copy it again" in text
    assert "cret" not in text


IMPOSSIBLE = ("x" * 300, "a/" * 3000, "a\0b", f"a{HALF}")


@pytest.mark.parametrize("name", [*IMPOSSIBLE, "../x", "/etc", 3, None, ["a"]])
@pytest.mark.parametrize("place", [0, 1])
def test_names_that_modules_json_states(name: Any, place: int, tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "conan-v1", num_hidden_layers=1)
    file = tmp_path / "modules.json"
    modules = json.loads(file.read_text())
    modules[place]["path"] = name
    file.write_text(json.dumps(modules))
    why = "no file can have" if name in IMPOSSIBLE else "leaves its folder"
    wanted = re.escape(f"{file} names the path {name!r:.80}, which {why}")
    with pytest.raises(ConfigError, match=wanted):
        Embedder(tmp_path)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", f"a{HALF}", "a\udcff"])
def test_names_that_an_index_states(name: str, tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "minilm", num_hidden_layers=1, weights="sharded")
    file = tmp_path / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"] |= dict.fromkeys(list(index["weight_map"])[:1], name)
    file.write_text(json.dumps(index))
    wanted = re.escape(f"{file} names the shard {name!r:.80}, which is missing")
    with pytest.raises(CheckpointError, match=wanted):
        NomicBert.from_pretrained(tmp_path)
