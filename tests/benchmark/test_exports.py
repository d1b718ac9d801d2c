"""The cache of exports: reuse with unchanged inputs, and only of complete exports."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nomicbert.benchmark import exports
from nomicbert.benchmark.exports import kept
from nomicbert.benchmark.peers import Setting


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    folder = tmp_path / "checkpoint"
    (folder / "1_Pooling").mkdir(parents=True)
    for name in ("model.safetensors", "1_Pooling/config.json"):
        (folder / name).write_text(name)
    return Setting(folder, folder, torch.device("cpu"), 1, tmp_path / "cache", [[1, 2]])


def make(folder: Path) -> None:
    assert not list(folder.iterdir())
    (folder / "model").write_text("exported")


def refuse(folder: Path) -> None:
    pytest.fail("it was exported again")


def test_export_is_made_once(setting: Setting) -> None:
    place = kept(setting, "onnx", ("onnx",), make)
    assert (place / "model").read_text() == "exported"
    assert place.parent == setting.cache
    assert setting.loaded == {exports.MADE: True}
    again = replace(setting, loaded={})
    assert kept(again, "onnx", ("onnx",), refuse) == place
    assert again.loaded == {}
    assert kept(setting, "onnx-int8", ("onnx",), make) != place


@pytest.mark.parametrize("name", ["model.safetensors", "1_Pooling/config.json"])
def test_changed_checkpoint_is_exported_again(name: str, setting: Setting) -> None:
    path = setting.folder / name
    places = [kept(setting, "onnx", (), make)]
    path.write_text("longer than before")
    places.append(kept(setting, "onnx", (), make))
    found = path.stat()
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 1))
    places.append(kept(setting, "onnx", (), make))
    path.rename(path.with_name("other"))
    places.append(kept(setting, "onnx", (), make))
    assert len(set(places)) == 4


def test_encoder_files_are_part_of_the_key(setting: Setting, tmp_path: Path) -> None:
    """The encoder's folder may lie next to the folder of modules.json, not in it."""
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    setting = replace(setting, encoder=encoder)
    first = kept(setting, "onnx", (), make)
    (encoder / "config.json").write_text("{}")
    assert kept(setting, "onnx", (), make) != first


@pytest.mark.parametrize("library", ["abacus", "torch", "transformers"])
def test_other_versions_export_again(
    library: str, setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Includes torch and transformers, which are involved in all exports."""
    place = kept(setting, "onnx", ("abacus",), make)  # which is not installed
    assert kept(setting, "onnx", ("abacus",), refuse) == place
    right = exports.version
    monkeypatch.setattr(exports, "version", lambda x: "0.1" if x == library else right(x))
    assert kept(setting, "onnx", ("abacus",), make) != place


def test_other_inputs_are_part_of_the_key(setting: Setting) -> None:
    assert kept(setting, "x", (), make, [[1, 2]]) != kept(setting, "x", (), make, [[1, 3]])


def test_interrupted_export_is_repeated(setting: Setting) -> None:
    def stop(folder: Path) -> None:
        (folder / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept(setting, "onnx", (), stop)
    assert [path.suffix for path in setting.cache.iterdir()] == [".part"]
    place = kept(setting, "onnx", (), make)
    assert [path.name for path in place.iterdir()] == ["model"]
    assert list(setting.cache.iterdir()) == [place]


def test_cache_inside_the_checkpoint_does_not_change_the_key(setting: Setting) -> None:
    setting = replace(setting, cache=setting.folder / "exports")
    place = kept(setting, "onnx", (), make)
    assert kept(setting, "onnx", (), refuse) == place
