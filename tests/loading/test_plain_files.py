"""Files of a checkpoint that are not what their names say: refused at once, whichever they are."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nomicbert import CheckpointError, ConfigError, Embedder, NomicBertError, TokenizerError
from nomicbert.describe import describe
from nomicbert.loading.license import read_license
from nomicbert.loading.plain_files import SETTINGS_LIMIT, check_file, read_file
from nomicbert.text.tokenizer_files import MOST_VOCAB_BYTES
from nomicbert.text.tokenizer_json import MOST_BYTES
from tests.support.checkpoints import build_checkpoint
from tests.support.guards import guarded

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def fifo(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def cycle(path: Path) -> None:
    path.symlink_to(path.name)


def nowhere(path: Path) -> None:
    path.symlink_to("nowhere")


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def pointer(path: Path) -> None:
    path.write_bytes(POINTER)


KINDS: dict[Callable[[Path], None], str] = {
    fifo: " is a named pipe, not a file",
    folder: " is a folder, not a file",
    cycle: " cannot be read: Too many levels of symbolic links",
    nowhere: " is a link to a file that is gone: fetch it again",
    endless: " is a device, not a file",
    pointer: " is a pointer of Git LFS, not the file itself: run 'git lfs pull' in its "
    "repository, or download the file",
}
FILES = {
    "config.json": ConfigError,
    "modules.json": ConfigError,
    "1_Pooling/config.json": ConfigError,
    "2_Dense/config.json": ConfigError,
    "sentence_bert_config.json": ConfigError,
    "config_sentence_transformers.json": ConfigError,
    "tokenizer_config.json": ConfigError,
    "special_tokens_map.json": ConfigError,
    "added_tokens.json": ConfigError,
    "tokenizer.json": TokenizerError,
    "model.safetensors": CheckpointError,
    "2_Dense/model.safetensors": CheckpointError,
}


def refused(place: Path, name: str, error: type[NomicBertError], message: str) -> None:
    for load in (Embedder, describe):
        with guarded(), pytest.raises(error) as caught:
            load(place)
        assert str(caught.value) == f"{place / name}{message}"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", FILES)
def test_every_file_that_is_none(name: str, kind: Callable[[Path], None], tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "conan-v1")
    (tmp_path / name).unlink(missing_ok=True)
    kind(tmp_path / name)
    refused(tmp_path, name, FILES[name], KINDS[kind])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_files_of_other_formats(kind: Callable[[Path], None], tmp_path: Path) -> None:
    old = build_checkpoint(tmp_path / "bin", "chinese-roberta-wwm-ext-large")
    (old / "pytorch_model.bin").unlink()
    kind(old / "pytorch_model.bin")
    refused(old, "pytorch_model.bin", CheckpointError, KINDS[kind])

    shards = build_checkpoint(tmp_path / "shards", "e5", weights="sharded")
    shard = "model-00002-of-00002.safetensors"
    (shards / shard).unlink()
    kind(shards / shard)
    refused(shards, shard, CheckpointError, KINDS[kind])
    (shards / "model.safetensors.index.json").unlink()
    kind(shards / "model.safetensors.index.json")
    refused(shards, "model.safetensors.index.json", ConfigError, KINDS[kind])

    words = build_checkpoint(tmp_path / "words", "bge-en")
    (words / "tokenizer.json").unlink()
    (words / "vocab.txt").unlink()
    kind(words / "vocab.txt")
    refused(words, "vocab.txt", TokenizerError, KINDS[kind])


@pytest.mark.parametrize("name", ["config.json", "modules.json", "tokenizer_config.json"])
def test_a_settings_file_of_20_gigabytes(name: str, tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "bge-en")
    os.truncate(tmp_path / name, 20 * 2**30)  # sparse
    refused(
        tmp_path,
        name,
        ConfigError,
        " has 21,474,836,480 bytes, but no file of this kind has more than "
        f"{SETTINGS_LIMIT:,}: the copy is damaged",
    )


def test_a_tokenizer_of_20_gigabytes(tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "bge-en")
    for name, most in (("tokenizer.json", MOST_BYTES), ("vocab.txt", MOST_VOCAB_BYTES)):
        os.truncate(tmp_path / name, 20 * 2**30)
        message = " has 21,474,836,480 bytes, but no file of this kind has more than "
        refused(tmp_path, name, TokenizerError, f"{message}{most:,}: the copy is damaged")
        (tmp_path / name).unlink()


def test_weights_of_20_gigabytes(tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "bge-en")
    os.truncate(tmp_path / "model.safetensors", 20 * 2**30)
    with guarded(), pytest.raises(CheckpointError, match="is not a valid safetensors file"):
        Embedder(tmp_path)


def test_the_limit_is_the_last_size_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert check_file(path, 5, ConfigError) == 5
    assert read_file(path, 5, ConfigError) == b"12345"
    for call in (check_file, read_file):
        with pytest.raises(TokenizerError, match="has 5 bytes, but no file of this kind has more"):
            call(path, 4, TokenizerError)


@pytest.mark.parametrize("name", ["a\0b", "a\ud800", "a" * 300])
def test_names_that_no_file_has(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is not a valid name of a file|name too long"):
        check_file(tmp_path / name, None, CheckpointError)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_permission(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "config.json").chmod(0)
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        read_file(tmp_path / "config.json", 10, ConfigError)


@pytest.mark.parametrize("kind", [fifo, folder, cycle, endless, nowhere])
def test_a_card_is_not_needed(kind: Callable[[Path], None], tmp_path: Path) -> None:
    kind(tmp_path / "README.md")
    with guarded():
        assert read_license(tmp_path) is None


def test_of_a_large_card_only_the_beginning_is_read(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text("---\nlicense: mit\n---\n")
    os.truncate(card, 20 * 2**30)
    with guarded():
        found = read_license(tmp_path)
    assert found is not None
    assert found.name == "mit"
