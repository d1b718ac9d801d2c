"""read_folder: the records it makes, and that each settings file is read once."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import FrozenInstanceError, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from nomicbert import CrossEncoder, Embedder, NomicBert
from nomicbert.describe import describe
from nomicbert.errors import ConfigError
from nomicbert.loading import json_settings
from nomicbert.loading.folder import Limit, Module, find_encoder, read_folder
from tests.support.checkpoints import build_checkpoint, edit_config
from tests.support.rerankers import build_reranker

SETTINGS = {
    "config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "sentence_bert_config.json",
    "tokenizer_config.json",
}


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Number of reads of each file, by name; with the folder's name for a module's files."""
    found: Counter[str] = Counter()
    parse = json_settings._parse

    def counted(path: Path) -> Any:
        found["/".join(path.parts[-2:]) if path.parent.name[:1].isdecimal() else path.name] += 1
        return parse(path)

    monkeypatch.setattr(json_settings, "_parse", counted)
    return found


@pytest.mark.parametrize("what", [Embedder, describe])
def test_each_file_is_read_once(what: Any, reads: Counter[str], tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "conan-v1", num_hidden_layers=1)
    (tmp_path / "config_sentence_transformers.json").write_text('{"prompts": {"query": "q: "}}')
    what(tmp_path)
    assert set(reads) >= SETTINGS | {"1_Pooling/config.json", "2_Dense/config.json"}
    assert set(reads.values()) == {1}


def test_a_rerankers_files_are_read_once(reads: Counter[str], tmp_path: Path) -> None:
    build_reranker(tmp_path)
    (tmp_path / "config_sentence_transformers.json").write_text("{}")
    CrossEncoder(tmp_path)
    assert set(reads) >= {"config.json", "config_sentence_transformers.json"}
    assert set(reads.values()) == {1}


def test_records(tmp_path: Path) -> None:
    """The records are plain, frozen data."""
    build_checkpoint(tmp_path, "conan-v1", num_hidden_layers=1)
    stated = {
        "prompts": {"query": "q: ", "document": ""},
        "default_prompt_name": "query",
        "similarity_fn_name": "dot",
    }
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(stated))
    found = read_folder(tmp_path)
    assert found.encoder == found.folder == found.tokenizer.folder == tmp_path
    assert found.modules is not None
    assert found.modules[1:3] == (
        Module("Pooling", tmp_path / "1_Pooling"),
        Module("Dense", tmp_path / "2_Dense"),
    )
    assert (found.prompts.by_name, found.prompts.default) == (stated["prompts"], "query")
    assert found.similarity == "dot"
    assert found.limit == Limit(512, "sentence_bert_config.json")
    with pytest.raises(FrozenInstanceError):
        found.similarity = "cosine"  # type: ignore[misc]
    assert all(is_dataclass(part) for part in (found.limit, found.prompts, found.tokenizer))
    assert {field.name for field in fields(found)} == set(vars(found))


def test_an_encoder_in_a_folder_of_its_own(tmp_path: Path) -> None:
    inner = tmp_path / "0_Transformer"
    build_checkpoint(inner, "minilm", num_hidden_layers=1)
    kind = "sentence_transformers.models."
    modules = [{"type": f"{kind}Transformer", "path": "0_Transformer"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    assert find_encoder(tmp_path) == read_folder(tmp_path).encoder == inner
    assert read_folder(tmp_path).tokenizer.folder == inner


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("modules.json", [{"type": "my.Code"}], "asks for my.Code, which is custom code"),
        ("modules.json", {}, "must hold a JSON list of objects"),
        ("config_sentence_transformers.json", {"prompts": 3}, "prompts must be an object of names"),
        ("config_sentence_transformers.json", {"default_prompt_name": "x"}, "'x' is not among"),
        ("sentence_bert_config.json", {"max_seq_length": "a"}, "max_seq_length must be a number"),
        ("sentence_bert_config.json", {"do_lower_case": "false"}, "do_lower_case must be true or"),
        ("tokenizer_config.json", {"model_max_length": []}, "model_max_length must be a number"),
        ("tokenizer_config.json", [], "must hold a JSON object, not list"),
    ],
)
def test_invalid_folders_are_refused(name: str, content: Any, message: str, tmp_path: Path) -> None:
    """Each reader refuses the folder with the same error, before any weights are read."""
    build_checkpoint(tmp_path, "minilm", num_hidden_layers=1)
    (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "model.safetensors").unlink()
    readers = (Embedder, describe)
    if "prompts" not in str(content) and "default" not in str(content):
        readers = (*readers, read_folder, CrossEncoder)  # which do not use prompts
    for read in readers:
        with pytest.raises(ConfigError, match=message):
            read(tmp_path)


def test_custom_modules_do_not_concern_the_encoder(tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "minilm", num_hidden_layers=1)
    file = tmp_path / "modules.json"
    file.write_text(file.read_text().replace("sentence_transformers.models", "custom_st"))
    assert NomicBert.from_pretrained(tmp_path).config.num_hidden_layers == 1
    with pytest.raises(ConfigError, match=r"custom_st\.Transformer, which is custom code"):
        Embedder(tmp_path)


def test_unused_settings_are_not_checked(tmp_path: Path) -> None:
    """An embedding model has no activation, a reranker no similarity."""
    build_reranker(tmp_path / "a")
    stated = '{"similarity_fn_name": "angle", "truncate_dim": 3}'
    (tmp_path / "a" / "config_sentence_transformers.json").write_text(stated)
    assert CrossEncoder(tmp_path / "a").num_labels == 1
    build_checkpoint(tmp_path / "b", "minilm", num_hidden_layers=1)
    edit_config(tmp_path / "b", sentence_transformers="4.1.0")
    assert Embedder(tmp_path / "b").max_seq_length


def test_a_factor_overrides_a_folder_that_was_read(tmp_path: Path) -> None:
    """It overrides the checkpoint's own, as when a path is given."""
    build_checkpoint(tmp_path, "nomic-v1.5", num_hidden_layers=1)
    read = read_folder(tmp_path, 3.0)
    for factor, wanted in ((None, 3.0), (2.0, 2.0), (0, None)):
        model = NomicBert.from_pretrained(read, rotary_scaling_factor=factor)
        assert model.config.rotary_scaling_factor == wanted
    assert Embedder(tmp_path, rotary_scaling_factor=2.0).model.config.rotary_scaling_factor == 2.0


@pytest.mark.parametrize("facade", [Embedder, CrossEncoder])
def test_keywords_are_checked_before_the_folder(facade: Any, tmp_path: Path) -> None:
    name = facade.__name__
    with pytest.raises(TypeError, match=f"{name} has no keyword 'devise': did you mean 'device'"):
        facade(tmp_path, devise="cpu")
    with pytest.raises(ValueError, match="unknown device 'gpu'"):
        facade(tmp_path, device="gpu")
