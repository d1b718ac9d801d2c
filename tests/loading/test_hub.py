"""hub.resolve: the files fetched, their commit, and the error messages."""

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import constants

from nomicbert import Embedder, NomicBert
from nomicbert.errors import ConfigError, HubError, NomicBertError
from nomicbert.loading.hub import resolve
from nomicbert.loading.hub_files import choose_files
from nomicbert.loading.sentence_settings import TRANSFORMER_FILES
from tests.support.checkpoints import build_checkpoint
from tests.support.fake_hub import FakeHub, Repository

REPO = "some-lab/small-encoder"
CONFIG = b'{"model_type": "nomic_bert"}'

# Listings of supported checkpoints: all files, and the ones to choose.
TEXT = {
    "README.md",
    "config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
}
LISTINGS = {
    "nomic v1.5: safetensors and onnx": (
        {".gitattributes", "onnx/model.onnx", "onnx/model_int8.onnx", "onnx/config.json"},
        {"1_Pooling/config.json", "model.safetensors"},
    ),
    "Conan: both formats and a Dense module": (
        {"pytorch_model.bin", "onnx/model.onnx", "2_Dense/pytorch_model.bin"},
        {
            "1_Pooling/config.json",
            "2_Dense/config.json",
            "2_Dense/model.safetensors",
            "model.safetensors",
        },
    ),
    "xiaobu: only .bin, the Dense module too": (
        {".gitattributes"},
        {
            "1_Pooling/config.json",
            "2_Dense/config.json",
            "2_Dense/pytorch_model.bin",
            "pytorch_model.bin",
        },
    ),
    "v1-ablated: .bin and code": (
        {"configuration_hf_nomic_bert.py", "modeling_hf_nomic_bert.py", "optimizer.pt"},
        {"1_Pooling/config.json", "2_Normalize/config.json", "pytorch_model.bin"},
    ),
    "chinese-roberta: three frameworks, .bin only": (
        {"tf_model.h5", "flax_model.msgpack"},
        {"adapter_config.json", "added_tokens.json", "pytorch_model.bin"},
    ),
    "MiniLM: every format there is": (
        {
            "data_config.json",
            "openvino/openvino_model.bin",
            "pytorch_model.bin",
            "rust_model.ot",
            "tf_model.h5",
            "train_script.py",
        },
        {"1_Pooling/config.json", "model.safetensors"},
    ),
    "shards": (
        {
            "consolidated.safetensors",
            "old/model-00001-of-00002.safetensors",
            "pytorch_model-00001-of-00002.bin",
            "pytorch_model.bin",
            "pytorch_model.bin.index.json",
        },
        {
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
        },
    ),
    "shards, .bin only": (
        {"tf_model.h5"},
        {
            "pytorch_model-00001-of-00002.bin",
            "pytorch_model-00002-of-00002.bin",
            "pytorch_model.bin.index.json",
        },
    ),
    "whole and shards: the whole": (
        {"model-00001-of-00001.safetensors", "model.safetensors.index.json"},
        {"model.safetensors"},
    ),
    "names that only look right": (
        {
            "../config.json",
            "1_Pooling/deep/config.json",
            "1_Pooling/model.onnx",
            "2_../config.json",
            "Pooling/config.json",
            "model.fp16.safetensors",
            "model.safetensors.bak",
        },
        {"model.safetensors"},
    ),
}


@pytest.mark.parametrize("label", LISTINGS)
def test_choose_files_takes_what_loading_reads(label: str) -> None:
    unwanted, wanted = LISTINGS[label]
    modules = ("", "1_Pooling", "2_Dense", "2_Normalize")
    found = choose_files(sorted(TEXT | unwanted | wanted), "", modules)
    assert found == sorted(TEXT | wanted)


def test_choose_files_of_an_encoder_in_a_folder_of_its_own() -> None:
    wanted = {
        "README.md",
        "modules.json",
        "0_Transformer/config.json",
        "0_Transformer/pytorch_model.bin.index.json",
        "0_Transformer/pytorch_model-00001-of-00002.bin",
        "0_Transformer/vocab.txt",
        "parts/dense/config.json",
        "parts/dense/model.safetensors.index.json",
        "parts/dense/model-00001-of-00001.safetensors",
    }
    unwanted = {
        "pytorch_model.bin",
        "0_Transformer/pytorch_model-00001-of-00002.safetensors",
        "0_Transformer/rust_model.ot",
        "parts/config.json",
        "parts/dense/pytorch_model.bin",
        "1_Pooling/config.json",
    }
    found = choose_files(wanted | unwanted, "0_Transformer", ["0_Transformer", "parts/dense"])
    assert found == sorted(wanted)


def test_choose_files_of_a_repository_that_lost_its_modules_json() -> None:
    """Loading refuses it by the folder of its pooling, also under another name."""
    names = ["config.json", "model.safetensors", "x/y_Pooling/config.json", "2_Dense/config.json"]
    assert choose_files(names) == ["config.json", "model.safetensors", "x/y_Pooling/config.json"]
    listed = choose_files([*names, "modules.json"])
    assert listed == ["config.json", "model.safetensors", "modules.json"]


def test_choose_files_takes_the_settings_under_older_names() -> None:
    assert set(choose_files([*TRANSFORMER_FILES, "sentence_t5_config.json"])) == {
        *TRANSFORMER_FILES
    }


def test_choose_files_without_weights() -> None:
    assert choose_files(["config.json", "onnx/model.onnx", "model.gguf"]) == ["config.json"]


def modules_json(*places: str) -> bytes:
    """The encoder, pooling, and then Dense layers, in these folders."""
    kinds = ("Transformer", "Pooling", *["Dense"] * len(places))
    pairs = zip(kinds, places, strict=False)
    entries = [{"type": f"sentence_transformers.models.{k}", "path": p} for k, p in pairs]
    return json.dumps(entries).encode()


def small_files(marker: bytes = b"main") -> dict[str, bytes]:
    return {
        "config.json": CONFIG,
        "model.safetensors": b"weights of " + marker,
        "pytorch_model.bin": b"pickled",
        "modeling.py": b"raise SystemExit('executed')",
        "tokenizer.json": b"{}",
        "modules.json": modules_json("", "1_Pooling"),
        "1_Pooling/config.json": b'{"pooling_mode": "mean"}',  # equal files are fetched once
        "2_Dense/config.json": b"of no module",
        "onnx/model.onnx": b"onnx",
        "README.md": b"license: apache-2.0",
    }


SMALL_WANTED = {
    "README.md",
    "config.json",
    "modules.json",
    "tokenizer.json",
    "1_Pooling/config.json",
    "model.safetensors",
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A fake hub with one repository; huggingface_hub talks to it and keeps files in tmp_path."""
    server = FakeHub()
    server.repositories[REPO] = Repository()
    server.repositories[REPO].commit("main", small_files())
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # huggingface_hub retries after a failure; skip its waits.
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    server.start()
    yield server
    huggingface_hub.close_session()
    server.stop()


def names_in(folder: Path) -> set[str]:
    return {each.relative_to(folder).as_posix() for each in folder.rglob("*") if each.is_file()}


def test_fetches_only_what_is_needed(hub: FakeHub) -> None:
    folder = resolve(REPO)
    assert names_in(folder) == SMALL_WANTED
    assert hub.fetched() == SMALL_WANTED
    assert (folder / "model.safetensors").read_bytes() == b"weights of main"
    assert folder.name == hub.repositories[REPO].refs["main"]


def test_second_call_asks_only_which_commit_it_is(hub: FakeHub) -> None:
    first = resolve(REPO)
    hub.requests.clear()
    assert resolve(REPO) == first
    assert [path for _, path, _ in hub.requests] == [f"/api/models/{REPO}/revision/main"] * 2


def test_what_another_program_left_out_is_fetched(hub: FakeHub) -> None:
    """transformers fetches neither modules.json nor the folders of the modules."""
    for name in ("config.json", "model.safetensors"):
        huggingface_hub.hf_hub_download(REPO, name)
    partial = resolve(REPO, local_files_only=True)
    assert names_in(partial) == {"config.json", "model.safetensors"}
    assert names_in(resolve(REPO)) == SMALL_WANTED


def test_revision_is_honoured(hub: FakeHub) -> None:
    old = hub.repositories[REPO].commit("v1", small_files(b"v1"))
    by_tag, by_commit = resolve(REPO, revision="v1"), resolve(REPO, revision=old)
    assert by_tag == by_commit
    assert (by_tag / "model.safetensors").read_bytes() == b"weights of v1"
    assert (resolve(REPO) / "model.safetensors").read_bytes() == b"weights of main"


def test_all_files_are_of_one_commit(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The branch moves right after it was listed: files of two commits are never mixed."""
    repository, answer = hub.repositories[REPO], hub.answer
    listed = []

    def answer_then_move(request):
        answer(request)
        if "/revision/" in request.path and not listed:
            listed.append(request.path)
            repository.commit("main", small_files(b"later"))

    monkeypatch.setattr(hub, "answer", answer_then_move)
    folder = resolve(REPO)
    assert folder.name == repository.refs["main"]
    assert names_in(folder) == SMALL_WANTED
    assert (folder / "model.safetensors").read_bytes() == b"weights of later"


def test_moved_branch_is_followed(hub: FakeHub) -> None:
    before = resolve(REPO)
    hub.repositories[REPO].commit("main", small_files(b"later"))
    after = resolve(REPO)
    assert before != after
    assert (after / "model.safetensors").read_bytes() == b"weights of later"
    assert resolve(REPO, local_files_only=True) == after


def in_subfolder(hub: FakeHub, **more: bytes) -> None:
    files = {"config.json": CONFIG, "model.safetensors": b"inner", "vocab.txt": b"a"}
    inner = {f"parts/encoder/{name}": content for name, content in files.items()}
    hub.repositories[REPO].commit("main", small_files() | inner | more)


def test_subfolder_is_fetched_alone(hub: FakeHub) -> None:
    """Without modules.json, which speaks of the top; later calls find it in the cache."""
    in_subfolder(hub)
    folder = resolve(REPO, subfolder="parts/encoder/")
    assert folder.parts[-2:] == ("parts", "encoder")
    assert names_in(folder) == {"config.json", "model.safetensors", "vocab.txt"}
    assert (folder / "model.safetensors").read_bytes() == b"inner"
    fetched = hub.fetched()
    assert "model.safetensors" not in fetched
    assert not {name for name in fetched if name.startswith("1_Pooling")}
    assert resolve(REPO, subfolder="parts/encoder", local_files_only=True) == folder
    with pytest.raises(HubError, match="is not in the cache"):
        resolve(REPO, subfolder="parts", local_files_only=True)
    with pytest.raises(HubError, match=r"has no config.json in 'parts': it is not a checkpoint"):
        resolve(REPO, subfolder="parts")


def test_force_download_fetches_again(hub: FakeHub) -> None:
    """A file of the cache that is damaged stays so without."""
    folder = resolve(REPO)
    (folder / "model.safetensors").resolve().write_bytes(b"damaged")
    assert (resolve(REPO) / "model.safetensors").read_bytes() == b"damaged"
    assert resolve(REPO, force_download=True) == folder
    assert (folder / "model.safetensors").read_bytes() == b"weights of main"
    with pytest.raises(HubError, match="force_download needs a request"):
        resolve(REPO, force_download=True, local_files_only=True)
    hub.stop()
    with pytest.raises(HubError, match="No connection"):
        resolve(REPO, force_download=True)
    assert resolve(REPO) == folder


def test_use_safetensors_chooses_the_files(hub: FakeHub) -> None:
    assert names_in(resolve(REPO, use_safetensors=True)) == SMALL_WANTED
    wanted = SMALL_WANTED - {"model.safetensors"} | {"pytorch_model.bin"}
    resolve(REPO, use_safetensors=False)
    assert hub.fetched() == SMALL_WANTED | wanted
    files = {name: b for name, b in small_files().items() if name != "model.safetensors"}
    hub.repositories[REPO].commit("main", files)
    with pytest.raises(HubError, match="at its top level, and use_safetensors is True"):
        resolve(REPO, use_safetensors=True)
    assert "pytorch_model.bin" in names_in(resolve(REPO, use_safetensors=False))


def test_token_is_sent_with_every_request(hub: FakeHub) -> None:
    hub.repositories[REPO].token = "hf_secret"
    resolve(REPO, token="hf_secret")
    assert {authorization for _, _, authorization in hub.requests} == {"Bearer hf_secret"}


def test_no_token_without_login(hub: FakeHub) -> None:
    resolve(REPO)
    assert {authorization for _, _, authorization in hub.requests} == {None}


def test_cache_dir_is_honoured_and_works_with_the_server_down(hub: FakeHub, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    hub.repositories[REPO].commit("v1", small_files(b"v1"))
    fetched = {name: resolve(REPO, revision=name, cache_dir=elsewhere) for name in ("main", "v1")}
    assert all(elsewhere in folder.parents for folder in fetched.values())
    assert not (tmp_path / "cache").exists()
    hub.stop()
    hub.requests.clear()
    for name, folder in fetched.items():
        assert resolve(REPO, revision=name, cache_dir=elsewhere, local_files_only=True) == folder
    found = resolve(REPO, cache_dir=str(elsewhere), local_files_only=True)
    assert names_in(found) == SMALL_WANTED
    assert hub.requests == []


def test_shards_are_fetched(hub: FakeHub) -> None:
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = json.dumps({"weight_map": {"a": shards[0], "b": shards[1], "c": shards[1]}})
    files = {"config.json": CONFIG, "model.safetensors.index.json": index.encode()}
    hub.repositories[REPO].commit("main", files | {shard: shard.encode() for shard in shards})
    folder = resolve(REPO)
    assert names_in(folder) == {*files, *shards}
    assert resolve(REPO, local_files_only=True) == folder


def test_without_a_connection_the_cache_is_used_and_logged(
    hub: FakeHub, caplog: pytest.LogCaptureFixture
) -> None:
    fetched = resolve(REPO)
    hub.stop()
    with caplog.at_level(logging.WARNING, "nomicbert.loading.hub"):
        assert resolve(REPO) == fetched
    (record,) = [each for each in caplog.records if each.name == "nomicbert.loading.hub"]
    assert record.getMessage() == f"no connection to {hub.endpoint}: using {REPO} from the cache"


def test_offline_environment_makes_no_request(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = resolve(REPO)
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve(REPO) == fetched
    with pytest.raises(HubError, match=r"'v9' is not in the cache.*HF_HUB_OFFLINE"):
        resolve(REPO, revision="v9")
    assert hub.requests == []


def message_of(*args, **kwargs) -> str:
    """Message of the HubError that resolve raises, after a check that it is one line."""
    with pytest.raises(HubError) as caught:
        resolve(*args, **kwargs)
    assert isinstance(caught.value, NomicBertError)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_unknown_repository(hub: FakeHub) -> None:
    text = message_of("some-lab/smal-encoder")
    assert "'some-lab/smal-encoder'" in text
    assert "no folder of that name" in text
    assert "check the spelling" in text


def test_private_repository_needs_the_token(hub: FakeHub) -> None:
    hub.repositories[REPO].token = "hf_secret"
    for token in (None, "stale"):
        text = message_of(REPO, token=token)
        assert f"{REPO!r}" in text
        assert "pass a token if it is private" in text


def test_gated_repository(hub: FakeHub) -> None:
    hub.repositories[REPO].gated = True
    text = message_of(REPO)
    assert f"{REPO!r} is gated" in text
    assert f"{hub.endpoint}/{REPO}" in text
    assert "token" in text


def test_unknown_revision(hub: FakeHub) -> None:
    text = message_of(REPO, revision="v9")
    assert f"{REPO!r} has no revision 'v9'" in text
    assert "branches, tags or commits" in text


def test_no_connection_and_nothing_cached(hub: FakeHub) -> None:
    hub.stop()
    text = message_of(REPO)
    assert f"No connection to {hub.endpoint}" in text
    assert f"{REPO!r} at revision 'main' is not in the cache" in text
    assert "check the network" in text


def test_broken_server(hub: FakeHub) -> None:
    hub.broken = {"revision"}
    assert f"{hub.endpoint} answered 500 for {REPO!r}" in message_of(REPO)
    hub.broken = {"tree", "resolve"}
    text = message_of(REPO)
    assert f"The connection to {hub.endpoint} broke while {REPO!r} was fetched: try again" in text


def test_offline_and_not_cached(hub: FakeHub) -> None:
    text = message_of(REPO, local_files_only=True)
    assert f"{REPO!r} at revision 'main' is not in the cache" in text
    assert "local_files_only" in text
    assert hub.requests == []


def test_repository_without_weights(hub: FakeHub) -> None:
    files = {"config.json": CONFIG, "onnx/model.onnx": b"onnx", "2_Dense/model.safetensors": b"d"}
    hub.repositories[REPO].commit("main", files)
    text = message_of(REPO)
    assert text.startswith(f"{REPO!r} at revision 'main' has no model.safetensors and no pytorch")
    assert hub.fetched() == set()


def test_repository_without_config(hub: FakeHub) -> None:
    hub.repositories[REPO].commit("main", {"model.safetensors": b"weights"})
    assert f"{REPO!r} at revision 'main' has no config.json" in message_of(REPO)


def test_cached_copy_that_lost_its_weights(hub: FakeHub) -> None:
    (resolve(REPO) / "model.safetensors").unlink()
    text = message_of(REPO, local_files_only=True)
    assert "in the cache" in text
    assert "no model.safetensors" in text


def test_login_that_does_not_exist(hub: FakeHub) -> None:
    assert "token=True asks for the stored login, and there is none" in message_of(REPO, token=True)


def test_cache_that_cannot_be_written(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "a-file").write_text("in the way")
    text = message_of(REPO, cache_dir=tmp_path / "a-file")
    assert f"{REPO!r} cannot be fetched from {hub.endpoint} into the cache" in text


@pytest.mark.parametrize("name", ["two words", "lab/na me", "-lab/name", "a--b", "lab/name."])
def test_invalid_name(hub: FakeHub, name: str) -> None:
    text = message_of(name)
    assert f"{name!r} is neither a folder here nor a valid repository id" in text
    assert hub.requests == []


def test_the_cause_is_kept(hub: FakeHub) -> None:
    with pytest.raises(HubError) as caught:
        resolve(REPO, revision="v9")
    assert isinstance(caught.value.__cause__, huggingface_hub.errors.RevisionNotFoundError)


def test_local_folder_is_returned_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "some-lab" / "small-encoder"
    folder.mkdir(parents=True)
    assert resolve(folder) == folder
    assert resolve(str(folder), revision="v9", local_files_only=True) == folder
    monkeypatch.chdir(tmp_path)
    assert resolve(REPO) == Path(REPO)  # a folder of that name wins over a repository
    assert resolve("./" + REPO).samefile(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/" + REPO) == folder


@pytest.mark.parametrize(
    "name", ["./small", "../small", "/no/small", "~/small", "a/b/c", "lab/", "a\\b", "C:/small"]
)
def test_folder_that_does_not_exist(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert f"The folder {name!r} does not exist: check the path" in message_of(name)
    assert hub.requests == []


def test_path_object_is_never_a_repository(hub: FakeHub) -> None:
    assert f"The folder {REPO!r} does not exist" in message_of(Path(REPO))
    assert hub.requests == []


def test_file_instead_of_folder(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"")
    text = message_of(weights)
    assert f"{str(weights)!r} is a file" in text
    assert "folder" in text


def test_empty_name() -> None:
    assert "is empty" in message_of("")


def test_local_folder_does_not_import_huggingface_hub(tmp_path: Path) -> None:
    code = (
        "import sys; from nomicbert.loading.hub import resolve; resolve(sys.argv[1]); "
        "print([name for name in ('huggingface_hub', 'httpx', 'httpx2') if name in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "kernels")])},
    )
    assert done.stdout.strip() == "[]"


OLD = {
    "README.md": b"",
    "config.json": b'{"__version__": "0.3.0"}',
    "modules.json": modules_json("0_Transformer", "pooling", "parts/one", "parts/[two]"),
    "0_Transformer/config.json": CONFIG,
    "0_Transformer/model.safetensors.index.json": b"{}",
    "0_Transformer/model-00001-of-00001.safetensors": b"weights",
    "0_Transformer/vocab.txt": b"words",
    "0_Transformer/sentence_bert_config.json": b"{}",
    "pooling/config.json": b"{}",
    "parts/one/config.json": b"{}",
    "parts/one/pytorch_model.bin": b"dense",
    "parts/[two]/config.json": b"{}",
    "parts/[two]/model.safetensors": b"dense",
}
OTHERS = {"model.safetensors": b"x", "0_Transformer/run.py": b"x", "parts/config.json": b"x"}


@pytest.mark.parametrize("top", [True, False])
def test_old_layout(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, top: bool) -> None:
    """modules.json says where the files are: online, in the cache, offline, without a network."""
    wanted = {name: data for name, data in OLD.items() if top or name != "config.json"}
    hub.repositories[REPO].commit("v1", wanted | OTHERS)
    folder = resolve(REPO, revision="v1")
    assert names_in(folder) == set(wanted)
    assert hub.fetched() <= set(wanted)  # equal files are fetched once
    hub.requests.clear()
    assert resolve(REPO, revision="v1") == folder
    assert [path for _, path, _ in hub.requests] == [f"/api/models/{REPO}/revision/v1"] * 2
    hub.requests.clear()
    assert resolve(REPO, revision="v1", local_files_only=True) == folder
    commit = hub.repositories[REPO].refs["v1"]
    assert resolve(REPO, revision=commit, local_files_only=True) == folder
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert resolve(REPO, revision="v1") == folder
    assert hub.requests == []
    hub.stop()
    assert resolve(REPO, revision="v1") == folder


def test_old_layout_without_the_encoders_files(hub: FakeHub) -> None:
    for lost, text in (
        ("0_Transformer/config.json", "has no config.json in '0_Transformer', where its modules"),
        (
            "0_Transformer/model.safetensors.index.json",
            "has no model.safetensors and no pytorch_model.bin in '0_Transformer'",
        ),
    ):
        files = {name: data for name, data in (OLD | OTHERS).items() if name != lost}
        hub.repositories[REPO].commit(lost[14:20], files)
        assert text in message_of(REPO, revision=lost[14:20])
        assert hub.fetched() == {"modules.json"}
    hub.repositories[REPO].commit("whole", OLD)
    (resolve(REPO, revision="whole") / "0_Transformer/model.safetensors.index.json").unlink()
    text = message_of(REPO, revision="whole", local_files_only=True)
    assert "in the cache" in text
    assert "no model.safetensors" in text


def test_download_that_broke_off_after_modules_json(hub: FakeHub) -> None:
    commit = hub.repositories[REPO].commit("main", OLD)
    hub.broken = {"tree"}
    assert "broke while" in message_of(REPO)
    assert hub.fetched() == {"modules.json"}
    for revision in ("main", commit):
        text = message_of(REPO, revision=revision, local_files_only=True)
        assert f"{REPO!r} at revision {revision!r} is not in the cache" in text
    hub.broken = set()
    assert names_in(resolve(REPO)) == set(OLD)


@pytest.mark.parametrize(
    ("stated", "text"),
    [
        (b"[", "is not JSON"),
        (b"{}", "must hold a JSON list of objects"),
        (modules_json("../0_Transformer"), "names the path '../0_Transformer', which leaves"),
        (modules_json("/etc"), "names the path '/etc', which leaves its folder"),
    ],
)
def test_damaged_modules_json(hub: FakeHub, stated: bytes, text: str) -> None:
    """It is refused before the weights are fetched."""
    hub.repositories[REPO].commit("main", small_files() | {"modules.json": stated})
    with pytest.raises(ConfigError, match=re.escape(text)) as caught:
        resolve(REPO)
    assert "modules.json" in str(caught.value)
    assert hub.fetched() == {"modules.json"}


def test_modules_of_custom_code_do_not_keep_an_encoder_from_loading(hub: FakeHub) -> None:
    stated = modules_json("", "1_Pooling").replace(b"sentence_transformers.models", b"custom_st")
    hub.repositories[REPO].commit("main", small_files() | {"modules.json": stated})
    assert names_in(resolve(REPO)) == SMALL_WANTED


def test_model_and_embedder_of_an_old_layout(hub: FakeHub, tmp_path: Path) -> None:
    """The same vectors as from the new layout, by the repository's id."""
    new = build_checkpoint(tmp_path / "new", "conan-v1", num_hidden_layers=1)
    files = {n: (new / n).read_bytes() for n in names_in(new) if n != "modules.json"}
    top = ("config_sentence_transformers.json",)
    files = {
        name if name in top else name.replace("1_Pooling/", "pooling/").replace("2_", "more/2_")
        if "/" in name else f"0_Transformer/{name}": data
        for name, data in files.items()
    }  # fmt: skip
    files["modules.json"] = modules_json("0_Transformer", "pooling", "more/2_Dense")
    hub.repositories[REPO].commit("main", files)
    texts = ["one", "two three"]
    found = Embedder(REPO).encode(texts)
    np.testing.assert_array_equal(found, Embedder(new).encode(texts))
    assert found.shape[1] == 112
    ids = torch.tensor([[2, 5, 6, 3]])
    with torch.no_grad():
        pair = [NomicBert.from_pretrained(name)(ids)[0] for name in (REPO, new)]
    assert torch.equal(*pair)


KNOWN = {
    "all-MiniLM-L6-v2": "sentence-transformers",
    "all-mpnet-base-v2": "sentence-transformers",
    "paraphrase-multilingual-MiniLM-L12-v2": "sentence-transformers",
    "multi-qa-MiniLM-L6-cos-v1": "sentence-transformers",
    "LaBSE": "sentence-transformers",
    "nomic-embed-text-v1.5": "nomic-ai",
    "nomic-bert-2048": "nomic-ai",
    "CodeRankEmbed": "nomic-ai",
    "bge-small-en-v1.5": "BAAI",
    "Conan-embedding-v1": "TencentBAC",
    "conan-embedding-v1": "TencentBAC",
    "xiaobu-embedding-v2": "lier007",
    "e5-base-v2": "intfloat",
    "gte-large": "thenlper",
    "gte-large-en-v1.5": "Alibaba-NLP",
    "ms-marco-MiniLM-L6-v2": "cross-encoder",
    "stsb-roberta-large": "cross-encoder",
    "stsb-roberta-base-v2": "sentence-transformers",
    "bert-base-uncased": "google-bert",
    "chinese-roberta-wwm-ext-large": "hfl",
    "snowflake-arctic-embed-m-long": "Snowflake",
}


@pytest.mark.parametrize("name", KNOWN)
def test_id_without_its_organisation(hub: FakeHub, name: str) -> None:
    assert message_of(name, local_files_only=True).endswith(f"mean '{KNOWN[name]}/{name}'?")


def test_id_without_its_organisation_in_every_case(hub: FakeHub) -> None:
    meant = "Did you mean 'sentence-transformers/all-MiniLM-L6-v2'?"
    general = "An id is 'organisation/name', such as 'nomic-ai/nomic-embed-text-v1.5'."
    for stopped in (False, True):  # 404, then no connection
        if stopped:
            hub.stop()
        assert message_of("all-MiniLM-L6-v2").endswith(meant)
        assert message_of("my-model").endswith(general)
        assert "organisation" not in message_of("lab/all-MiniLM-L6-v2")
    assert message_of("my-model", local_files_only=True).endswith(general)
