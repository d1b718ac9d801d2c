"""Names of models, and loading them as a server does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nomicbert import Embedder
from nomicbert.serve.engine import calibrate
from nomicbert.serve.http.problems import Problem, Reason
from nomicbert.serve.models import load
from nomicbert.serve.names import Names, primary_name
from nomicbert.serve.served import SELF_TEST
from nomicbert.serve.settings import ServeSettings
from tests.support.checkpoints import build_checkpoint
from tests.support.engines import load_models
from tests.support.sameness import HAS_ONEDNN

NOMIC = "nomic-ai/nomic-embed-text-v1.5"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def names(*models: str, **settings: Any) -> Names:
    return Names(ServeSettings(models=models, **settings))


def test_a_repository_and_its_well_known_names() -> None:
    found = names(NOMIC, MINILM)
    assert found.primary == [NOMIC, MINILM]
    assert list(found.by_name) == [
        NOMIC, MINILM,
        "nomic-embed-text-v1.5", "nomic-embed-text", "nomic-embed-text:latest",
        "nomic-embed-text:v1.5", "all-MiniLM-L6-v2",
    ]  # fmt: skip
    assert [found.find(name) for name in found.by_name] == [0, 1, 0, 0, 0, 0, 1]
    assert found.find(None) is None
    assert list(names("nomic-ai/nomic-embed-text-v2-moe").by_name) == [
        "nomic-ai/nomic-embed-text-v2-moe", "nomic-embed-text-v2-moe",
    ]  # fmt: skip


def test_the_first_of_two_versions_has_the_short_name() -> None:
    found = names("nomic-ai/nomic-embed-text-v1", NOMIC)
    assert [found.find(f"nomic-embed-text{end}") for end in ("", ":latest", ":v1", ":v1.5")] == [
        0, 0, 0, 1,
    ]  # fmt: skip


def test_unknown_names() -> None:
    found = names(NOMIC)
    for name in ("", "nomic-embed-text-v1", "NOMIC-EMBED-TEXT", "x" * 10_000):
        with pytest.raises(Problem, match="this server has 'nomic-ai/nomic-embed") as caught:
            found.find(name)
        assert caught.value.reason is Reason.UNKNOWN_MODEL
        assert caught.value.param == "model"
        assert len(caught.value.message) < 500
    lenient = names(MINILM, NOMIC, any_model_name=True)
    assert [lenient.find(name) for name in ("gpt", "", None, NOMIC)] == [None] * 3 + [1]


def test_the_path_of_a_folder_is_accepted_but_not_shown(tmp_path: Path) -> None:
    folder = tmp_path / "secret" / "nomic-embed-text-v1.5"
    folder.mkdir(parents=True)
    found = names(str(folder), model_aliases=(("mine", str(folder)),))
    assert found.primary == ["nomic-embed-text-v1.5"]
    assert found.find(str(folder)) == found.find("nomic-embed-text:v1.5") == found.find("mine") == 0
    assert "secret" not in " ".join(found.by_name)
    with pytest.raises(Problem) as caught:
        found.find("other")
    assert "secret" not in caught.value.message


def test_the_name_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "model")
    monkeypatch.setenv("HOME", str(tmp_path))
    given = [".", "../model/", str(tmp_path / "a" / "model"), "~/a/model"]
    assert [primary_name(model) for model in given] == ["model"] * 4
    assert primary_name(MINILM) == MINILM


def test_served_names_and_aliases() -> None:
    openai = "text-embedding-3-small"
    found = names(
        NOMIC,
        MINILM,
        served_model_names=("mine", "mine-too"),
        model_aliases=((openai, "all-MiniLM-L6-v2"), ("m", "mine"), ("nomic-embed-text", MINILM)),
    )
    assert list(found.by_name)[:6] == ["mine", "mine-too", NOMIC, MINILM, openai, "m"]
    assert [found.find(name) for name in ("mine", "mine-too", openai, "m")] == [0, 0, 1, 0]
    # a stated name wins over one that follows from another model's
    assert found.find("nomic-embed-text") == 1
    assert found.find("nomic-embed-text:latest") == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"model_aliases": (("a", "gpt"),)},
            "--model-alias a=gpt: no model 'gpt'; known: 'nomic-ai/nomic",
        ),
        ({"model_aliases": ((MINILM, NOMIC),)}, f"two models are called '{MINILM}'"),
        ({"served_model_names": (MINILM,)}, f"two models are called '{MINILM}'"),
    ],
)
def test_names_that_contradict_each_other(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        names(NOMIC, MINILM, **settings)


def test_two_folders_of_one_name(tmp_path: Path) -> None:
    for parent in "ab":
        (tmp_path / parent / "model").mkdir(parents=True)
    with pytest.raises(ValueError, match="two models are called 'model': rename a folder"):
        names(str(tmp_path / "a" / "model"), str(tmp_path / "b" / "model"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    where = tmp_path_factory.mktemp("models")
    return [build_checkpoint(where / name, name) for name in ("nomic-v1.5", "minilm")]


def test_what_is_loaded(folders: list[Path]) -> None:
    loaded = load_models(*folders, devices=("cpu", "cpu"), max_length=100)
    assert [model.name for model in loaded.models] == ["nomic-v1.5", "minilm"]
    assert [model.max_length for model in loaded.models] == [100, 100]
    assert [model.width for model in loaded.models] == [64, 64]
    assert loaded.budgets == [128, 128]
    assert loaded.rates == [0, 0]
    assert [len(replicas) for replicas in loaded.replicas] == [2, 2]
    for model, replica, copy in zip(loaded.models, *loaded.replicas, strict=True):
        assert replica.model is model.embedder.embedding_model
        assert copy.model is not replica.model
        job = model.self_test_job()
        for one in (replica, copy):
            with torch.inference_mode():
                row = one.model.encode_ids(job.pieces, job.finish)[0]
            assert model.is_same(row)
            assert not model.is_same(row + 0.1)
            # without oneDNN bits depend on the batch: the self-test must not fail under load
            assert model.is_same(row + 1e-7) != HAS_ONEDNN


def test_a_measured_budget(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    def measured(encode: Any, ids: list[int]) -> tuple[int, float]:
        seen.append((len(encode([ids, ids])), len(ids)))
        return 512, 1234.5

    monkeypatch.setattr(calibrate, "measure_budget", measured)
    loaded = load_models(*folders, max_batch_tokens=None, max_length=50)
    assert (loaded.budgets, loaded.rates) == ([512, 512], [1234.5, 1234.5])
    assert seen == [(2, 50), (2, 50)]  # texts of that length


def test_the_default_prompt(folders: list[Path]) -> None:
    def prompt(**settings: Any) -> str:
        return load_models(folders[0], **settings).models[0].default_prompt

    assert prompt() == ""
    assert prompt(default_prompt="for all: ") == "for all: "
    assert prompt(default_prompt_name="search_query") == "search_query: "
    with pytest.raises(ValueError, match="prompt_name"):
        prompt(default_prompt_name="nothing")
    with pytest.raises(ValueError, match="max_seq_length"):
        load_models(folders[0], max_length=2)


def test_the_self_test_is_the_vector_of_encode(folders: list[Path]) -> None:
    settings = ServeSettings(models=(str(folders[0]),), devices=("cpu",), max_batch_tokens=64)
    (model,) = load(settings, Names(settings)).models
    truth = Embedder(folders[0]).encode(SELF_TEST, prompt="")
    assert torch.equal(model.self_test, torch.as_tensor(truth))
