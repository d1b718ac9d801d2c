"""loading.publishing: models are uploaded to a hub on loopback, and loaded from it again."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, constants

from nomicbert import (
    CrossEncoder,
    Embedder,
    HubError,
    ModelCardData,
    NomicBert,
    NomicBertForTokenClassification,
)
from tests.support.checkpoints import build_checkpoint
from tests.support.fake_hub import FakeHub
from tests.support.heads import build_head
from tests.support.rerankers import build_reranker

REPO = "me/my-model"
TEXTS = ["what is deep learning", "the river is long"]


def cross_encoder(folder: Path) -> CrossEncoder:
    return CrossEncoder(build_reranker(folder))


def embedder(folder: Path) -> Embedder:
    return Embedder(build_checkpoint(folder, "minilm"))


def encoder(folder: Path) -> NomicBert:
    return NomicBert.from_pretrained(build_checkpoint(folder, "minilm"))


def head(folder: Path) -> NomicBertForTokenClassification:
    build_head(folder, "Bert", "TokenClassification")
    return NomicBertForTokenClassification.from_pretrained(folder)


MAKERS: dict[str, Callable[[Path], Any]] = {
    make.__name__: make for make in (embedder, cross_encoder, encoder, head)
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A hub without repositories. Temporary folders are made in tmp_path / "tmp"."""
    server = FakeHub()
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    server.start()
    yield server
    huggingface_hub.close_session()
    server.stop()
    assert [*(tmp_path / "tmp").iterdir()] == []  # whatever happened


@pytest.fixture
def model(tmp_path: Path) -> Embedder:
    return embedder(tmp_path / "source")


def names_in(folder: Path) -> set[str]:
    return {each.relative_to(folder).as_posix() for each in folder.rglob("*") if each.is_file()}


def results(model: Any) -> np.ndarray:
    """What a model computes."""
    if isinstance(model, Embedder):
        return np.asarray(model.encode(TEXTS))
    if isinstance(model, CrossEncoder):
        return np.asarray(model.predict([(TEXTS[0], TEXTS[1])]))
    with torch.no_grad():
        found: np.ndarray = model(torch.tensor([[2, 7, 9]]))[0].numpy()
    return found


@pytest.mark.parametrize("make", MAKERS)
def test_what_is_uploaded_loads_again(make: str, hub: FakeHub, tmp_path: Path) -> None:
    source = tmp_path / "source"
    model = MAKERS[make](source)
    (source / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n\n# Theirs\n", "utf-8")
    model = type(model).from_pretrained(source)
    url = model.push_to_hub(REPO, token="writes", private=True)
    sha = hub.repositories[REPO].refs["main"]
    assert url == f"{hub.endpoint}/{REPO}/commit/{sha}"
    (commit,) = hub.pushed
    assert commit["summary"] == f"Add new {type(model).__name__} model"
    assert (commit["description"], commit["ref"]) == ("", "main")
    model.save_pretrained(tmp_path / "saved")
    assert set(commit["files"]) == names_in(tmp_path / "saved")
    for name in commit["files"].keys() - {"README.md"}:
        assert commit["files"][name] == (tmp_path / "saved" / name).read_bytes(), name
    card = ModelCard(commit["files"]["README.md"].decode())
    assert card.data.license == "cc-by-nc-4.0"
    assert f'("{REPO}")' in card.text
    assert "Theirs" not in card.text
    again = type(model).from_pretrained(REPO)
    np.testing.assert_array_equal(results(again), results(model))
    # a model that was loaded from there names it
    again.save_pretrained(tmp_path / "next")
    found = ModelCard.load(tmp_path / "next" / "README.md")
    assert (found.data.base_model, found.data.license) == (REPO, "cc-by-nc-4.0")
    assert f"commit `{sha}`" in found.text


@pytest.mark.parametrize("make", MAKERS)
def test_a_repository_that_exists(make: str, hub: FakeHub, tmp_path: Path) -> None:
    """As in the library that has the class: sentence-transformers refuses, transformers adds."""
    model = MAKERS[make](tmp_path / "source")
    model.push_to_hub(REPO, token="writes")
    if make in ("encoder", "head"):
        model.push_to_hub(REPO, token="writes")
        with pytest.raises(HubError, match=f"'{REPO}' exists at .*: pass exist_ok=True"):
            model.push_to_hub(REPO, token="writes", exist_ok=False)
    else:
        with pytest.raises(HubError, match=f"'{REPO}' exists at .*: pass exist_ok=True"):
            model.push_to_hub(REPO, token="writes")
        model.push_to_hub(REPO, token="writes", exist_ok=True, commit_message="Again")
    first, second = hub.pushed
    assert "README.md" in first["files"]
    assert "README.md" not in second["files"]


def test_a_card_on_the_hub_stays_unless_it_is_to_be_replaced(hub: FakeHub, model: Embedder) -> None:
    model.push_to_hub(REPO, token="writes")
    hub.repositories[REPO].commit("main", {"README.md": b"mine"})
    model.push_to_hub(REPO, token="writes", exist_ok=True)
    assert "README.md" not in hub.pushed[-1]["files"]
    model.push_to_hub(REPO, token="writes", exist_ok=True, replace_model_card=True)
    assert b"# me/my-model" in hub.pushed[-1]["files"]["README.md"]
    # a hub that does not say whether there is one
    hub.broken.add("resolve")
    model.push_to_hub(REPO, token="writes", exist_ok=True)
    assert "README.md" not in hub.pushed[-1]["files"]


def test_a_card_of_a_local_folder(hub: FakeHub, model: Embedder, tmp_path: Path) -> None:
    """It replaces one of the repository as little as that of a model does."""
    (tmp_path / "mine").mkdir()
    for name in ("README.md", "notes.txt"):
        (tmp_path / "mine" / name).write_text(name)
    given: Any = {"token": "writes", "local_model_path": tmp_path / "mine", "exist_ok": True}
    both = {"README.md", "notes.txt"}
    for more, names in (({}, both), ({}, {"notes.txt"}), ({"replace_model_card": True}, both)):
        model.push_to_hub(REPO, **given, **more)
        assert set(hub.pushed[-1]["files"]) == names


def test_a_pull_request(hub: FakeHub, model: Embedder) -> None:
    url = model.push_to_hub(REPO, token="writes", create_pr=True)
    assert url == f"{hub.endpoint}/{REPO}/discussions/1"
    (commit,) = hub.pushed
    assert commit["ref"] == "refs/pr/1"
    assert repr(model) in commit["description"]
    assert f'model = Embedder("{REPO}", revision="refs/pr/NUMBER")' in commit["description"]
    model.push_to_hub(REPO, token="writes", create_pr=True, commit_description="Mine")
    assert hub.pushed[-1]["description"] == "Mine"


def test_a_branch(hub: FakeHub, model: Embedder) -> None:
    for _ in range(2):
        model.push_to_hub(REPO, token="writes", revision="next", exist_ok=True)
        assert hub.pushed[-1]["ref"] == "next"
    repository = hub.repositories[REPO]
    assert set(repository.commits[repository.refs["main"]]) == {".gitattributes"}
    again = Embedder(REPO, revision="next")
    np.testing.assert_array_equal(results(again), results(model))


def test_a_name_alone_goes_to_the_account(hub: FakeHub, model: Embedder) -> None:
    url = model.push_to_hub("my-model", token="writes")
    assert url.startswith(f"{hub.endpoint}/someone/my-model/commit/")
    assert model.model_card_data.model_id == "someone/my-model"
    assert b'Embedder("someone/my-model")' in hub.pushed[0]["files"]["README.md"]


def test_data_sets_and_tags(hub: FakeHub, model: Embedder) -> None:
    model.model_card_data = ModelCardData(tags=["old"], train_datasets=[{"id": "org/a"}])
    for _ in range(2):
        model.push_to_hub(
            REPO, token="writes", exist_ok=True, replace_model_card=True,
            train_datasets=["org/a", "org/b"], tags=["new"],
        )  # fmt: skip
    card = ModelCard(hub.pushed[-1]["files"]["README.md"].decode())
    assert card.data.datasets == ["org/a", "org/b"]
    assert card.data.tags[-2:] == ["old", "new"]


def test_a_lone_name_is_one_name(hub: FakeHub, model: Embedder) -> None:
    model.push_to_hub(REPO, token="writes", train_datasets="org/a", tags="recipes")
    card = ModelCard(hub.pushed[-1]["files"]["README.md"].decode())
    assert card.data.datasets == ["org/a"]
    assert card.data.tags[-1] == "recipes"


def test_a_refused_call_adds_nothing(model: Embedder) -> None:
    with pytest.raises(HubError, match="is not the id"):
        model.push_to_hub("a/b/c", train_datasets=["org/a"], tags=["new"])
    assert model.model_card_data == ModelCardData()


def test_a_call_that_saves_may_name_the_model(model: Embedder) -> None:
    model._note_for_card("me/my-model", ["org/a", "notes"], None)
    model._note_for_card("My model", ["org/a"], True)
    data = model.model_card_data
    assert (data.model_id, data.model_name) == ("me/my-model", "My model")
    assert data.train_datasets == [{"id": "org/a"}, {"name": "notes"}]
    with pytest.raises(ValueError, match="safe_serialization=False is not supported"):
        model._note_for_card(None, None, False)


def test_a_folder_in_place_of_the_model(hub: FakeHub, model: Embedder, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    model.push_to_hub(REPO, token="writes", local_model_path=tmp_path / "mine")
    assert hub.pushed[0]["files"] == {"notes.txt": b"mine"}
    assert names_in(tmp_path / "mine") == {"notes.txt"}
    with pytest.raises(ValueError, match=r"local_model_path '.*nowhere' is not a folder"):
        model.push_to_hub(
            REPO, token="writes", exist_ok=True, local_model_path=tmp_path / "nowhere"
        )
    assert len(hub.pushed) == 1


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        (
            {"repo_id": "a/b/c"},
            HubError,
            "repo_id 'a/b/c' is not the id of a repository: give",
        ),
        ({"repo_id": ""}, HubError, "repo_id '' is not"),
        ({"repo_id": "my model"}, HubError, "repo_id 'my model' is not"),
        ({"repo_id": None}, TypeError, "repo_id must be a string, not None"),
        ({"repo_id": REPO, "token": 3}, TypeError, "token must be a string"),
        ({"repo_id": REPO, "token": "a b"}, HubError, "token has spaces"),
        ({"repo_id": REPO, "organization": "me"}, TypeError, "repo_id as 'organization/name'"),
        ({"repo_id": REPO, "repo_name": "x"}, TypeError, "no keyword 'repo_name': give repo_id"),
        ({"repo_id": REPO, "max_shard_size": "5GB"}, TypeError, "'max_shard_size': leave it out"),
        ({"repo_id": REPO, "use_temp_dir": True}, TypeError, "'use_temp_dir': leave it out"),
        ({"repo_id": REPO, "commit_msg": "x"}, TypeError, "did you mean 'commit_message'"),
        ({"repo_id": REPO, "safe_serialization": False}, ValueError, "safe_serialization=False"),
        ({"repo_id": REPO, "train_datasets": [3]}, TypeError, "train_datasets must be"),
        ({"repo_id": REPO, "tags": [3]}, TypeError, "tags must be"),
        (
            {"repo_id": REPO, "create_pr": True, "revision": "next"},
            ValueError,
            "create_pr=True is for the branch main, not for revision='next'",
        ),
    ],
)
def test_what_is_refused_before_any_request(
    keywords: dict[str, Any], error: type[Exception], message: str, hub: FakeHub, model: Embedder
) -> None:
    with pytest.raises(error, match=message):
        model.push_to_hub(**{"token": "writes", **keywords})
    assert hub.requests == []


def test_a_model_that_cannot_be_saved_makes_no_repository(
    hub: FakeHub, model: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("nomicbert.loading.tensor_files.save_file", fails)
    with pytest.raises(OSError, match="no space left"):
        model.push_to_hub(REPO, token="writes")
    assert hub.requests == []


def test_a_token_that_may_not_write(hub: FakeHub, model: Embedder) -> None:
    for token in (None, "reads"):
        with pytest.raises(HubError, match=f"does not let this account write to '{REPO}'.*token"):
            model.push_to_hub(REPO, token=token)
    with pytest.raises(HubError, match="token=True asks for the stored login, and there is none"):
        model.push_to_hub(REPO, token=True)
    assert hub.pushed == []


def test_a_hub_that_breaks(hub: FakeHub, model: Embedder) -> None:
    hub.broken.add("commit")
    with pytest.raises(HubError, match=f"(?s)answered 500 to .*'{REPO}'.*was made and is empty"):
        model.push_to_hub(REPO, token="writes")
    with pytest.raises(HubError, match=f"answered 500 to the upload of '{REPO}'") as caught:
        model.push_to_hub(REPO, token="writes", exist_ok=True)
    assert "was made" not in str(caught.value)
    hub.broken.clear()
    hub.valid_cards = False
    with pytest.raises(HubError, match=r"(?s)refuses the upload: .*license must be known"):
        model.push_to_hub(REPO, token="writes", exist_ok=True)
    assert hub.pushed == []


def test_no_connection(model: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(HubError, match=f"No connection to http://127.0.0.1:9 .*'{REPO}' was not"):
        model.push_to_hub(REPO, token="writes")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    try:
        with pytest.raises(HubError, match=f"HF_HUB_OFFLINE forbids requests: .*'{REPO}'"):
            model.push_to_hub(REPO, token="writes")
    finally:
        huggingface_hub.close_session()


def test_the_old_name(hub: FakeHub, model: Embedder, caplog: pytest.LogCaptureFixture) -> None:
    """The warnings are those that callers of sentence-transformers know."""
    caplog.set_level(logging.WARNING, "nomicbert")
    old = "`save_to_hub` method is deprecated"
    model.save_to_hub(REPO, token="writes", commit_message="Mine")
    assert [old in record.message for record in caplog.records] == [True]
    assert hub.pushed[0]["summary"] == "Mine"
    caplog.clear()
    model.save_to_hub("my-model", "me", True, token="writes", exist_ok=True)
    assert hub.pushed[1]["repo_id"] == REPO
    assert 'Please use `repo_id="me/my-model"` instead.' in caplog.records[1].message
    model.save_to_hub(REPO, organization="me", token="writes", exist_ok=True)
    caplog.clear()
    model.save_to_hub(repo_name=REPO, token="writes", exist_ok=True)
    assert "`repo_name` keyword argument" in caplog.records[0].message
    assert old in caplog.records[1].message
    assert [commit["repo_id"] for commit in hub.pushed] == [REPO] * 4
    with pytest.raises(ValueError, match="Providing an `organization` to `save_to_hub`"):
        model.save_to_hub(REPO, organization="other", token="writes")
    with pytest.raises(TypeError, match="save_to_hub needs repo_id"):
        model.save_to_hub()
    with pytest.raises(TypeError, match="no keyword 'commit_msg'"):
        model.save_to_hub(REPO, commit_msg="x")  # type: ignore[call-arg]


def test_a_folder_that_cannot_be_written(model: Embedder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        model.save_pretrained(tmp_path / "file")
    if os.geteuid() == 0:
        return
    (tmp_path / "shut").mkdir(mode=0o500)
    with pytest.raises(PermissionError, match="shut"):
        model.save_pretrained(tmp_path / "shut")
