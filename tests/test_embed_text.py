"""`embed.text`: the hosted call in this process equals the server, and keeps its models."""

from __future__ import annotations

import importlib
import json
import logging
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants

import nomicbert
from nomicbert import Embedder, HubError, TextError, TruncationWarning, embed
from nomicbert.cli import COMMANDS
from tests.support.checkpoints import build_checkpoint
from tests.support.fake_hub import FakeHub, Repository
from tests.support.served import bits
from tests.support.serving import InThread, in_thread

ROOT = Path(__file__).parents[1]
TASKS = ("search_query", "search_document", "classification", "clustering")
LIMIT = 64
# in every tiny vocabulary a letter of its own is a token
LONG = "a " * 150
TEXTS = ["What is TSNE?", "", LONG, "t-distributed stochastic neighbour embedding"]
# folder -> variant, and the tasks that it has prompts for
FOLDERS = {
    "v1.5": ("nomic-v1.5", TASKS),
    "trained-32": ("nomic-v1.5", TASKS),  # windows are shorter than the limit
    "cut-48": ("nomic-v1.5", TASKS),  # a width of its own
    "v2-moe": ("nomic-v2-moe", TASKS[:2]),  # query and passage
    "e5": ("e5", TASKS[:2]),
    "left-out": ("e5", TASKS[:2]),  # pooling leaves out the prompt
    "bge": ("bge-en", TASKS[:2]),  # query only; CLS pooling
    "minilm": ("minilm", TASKS),  # no prompts
    "conan": ("conan-v1", TASKS),  # a Dense layer
}


def edit(path: Path, **values: Any) -> None:
    known = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(known | values), "utf-8")


def build(folder: Path, variant: str, **settings: Any) -> Path:
    settings.setdefault("num_hidden_layers", 1)
    build_checkpoint(folder, variant, **settings)
    edit(folder / "sentence_bert_config.json", max_seq_length=LIMIT, do_lower_case=False)
    return folder


@pytest.fixture(autouse=True)
def nothing_loaded() -> Iterator[None]:
    embed.free_embedding_model()
    yield
    embed.free_embedding_model()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("models")
    more: dict[str, Any] = {"trained-32": {"max_trained_positions": 32}}
    found = {
        name: build(top / name, variant, **more.get(name, {}))
        for name, (variant, _) in FOLDERS.items()
    }
    edit(found["left-out"] / "1_Pooling/config.json", include_prompt=False)
    edit(found["cut-48"] / "config_sentence_transformers.json", truncate_dim=48)
    return found


@pytest.fixture(scope="module")
def server(folders: dict[str, Path]) -> Iterator[InThread]:
    with in_thread(*folders.values()) as found:
        yield found


@pytest.fixture(scope="module")
def folder(folders: dict[str, Path]) -> str:
    return str(folders["v1.5"])


def text(texts: Any, **more: Any) -> Any:
    """`embed.text` where texts are meant to be cut."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        return embed.text(texts, **more)


def rows(answer: Any) -> np.ndarray:
    return np.array(answer["embeddings"], np.float64)


@pytest.mark.parametrize("mode", ["truncate", "mean"])
@pytest.mark.parametrize("name", FOLDERS)
def test_the_answer_is_the_servers(
    name: str, mode: str, server: InThread, folders: dict[str, Path]
) -> None:
    """The same request: the same bits, counts and errors, for every task and several widths."""
    for task in TASKS:
        for width in (None, 16):
            keywords = {"task_type": task, "dimensionality": width, "long_text_mode": mode}
            body = {"texts": TEXTS, "model": name, **keywords}
            reply = server.call("/v1/embedding/text", body)
            if task not in FOLDERS[name][1]:
                assert reply.status == 422
                with pytest.raises(ValueError, match="unknown task_type") as caught:
                    text(TEXTS, model=str(folders[name]), **keywords)
                assert str(caught.value) == reply.json["detail"][0]["msg"]
                continue
            assert reply.status == 200
            answer = text(TEXTS, model=str(folders[name]), **keywords)
            found = rows(answer)
            assert np.array_equal(found, found.astype(np.float32))
            assert bits(found.astype(np.float32)) == bits(reply.vectors), (task, width)
            assert answer["usage"] == reply.json["usage"]
            assert (answer["usage"]["truncated_texts"] > 0) == (mode == "truncate")
            assert found.shape[1] == (width or (48 if name == "cut-48" else reply.vectors.shape[1]))


@pytest.mark.parametrize("name", FOLDERS)
def test_the_answer_is_the_embedders(name: str, folders: dict[str, Path]) -> None:
    """Prompt, recipe and limit as documented, whatever the rules that the server shares."""
    embedder, model = Embedder(folders[name]), str(folders[name])
    width = embedder.get_embedding_dimension()
    limit = 32 if name == "trained-32" else LIMIT
    keywords = {
        "truncate": {"matryoshka_dim": width},
        "mean": {"matryoshka_dim": width, "truncate": "mean", "max_length": limit},
    }
    others = {task: task if name in ("v1.5", "trained-32", "cut-48") else None for task in TASKS}
    for mode, given in keywords.items():
        for task in FOLDERS[name][1]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", TruncationWarning)
                if task == "search_query":
                    wanted = embedder.encode_query(TEXTS, **given)
                elif task == "search_document":
                    wanted = embedder.encode_document(TEXTS, **given)
                else:
                    wanted = embedder.encode(TEXTS, prompt_name=others[task], **given)
            found = text(TEXTS, model=model, task_type=task, long_text_mode=mode)
            assert bits(rows(found).astype(np.float32)) == bits(wanted), (task, mode)
    whole = text(TEXTS, model=model, long_text_mode="mean")["usage"]["total_tokens"]
    assert whole > sum(embedder.token_count(TEXTS))  # windows overlap


def test_the_defaults_are_the_clients(folder: str) -> None:
    answer = text(TEXTS, model=folder)
    wanted = text(
        TEXTS,
        model=folder,
        task_type="search_document",
        dimensionality=None,
        long_text_mode="truncate",
        inference_mode="remote",
        device=None,
    )
    assert answer == wanted
    assert answer["model"] == folder
    assert answer["inference_mode"] == "local"
    assert json.loads(json.dumps(answer)) == answer
    assert {type(value) for row in answer["embeddings"] for value in row} == {float}
    assert {type(value) for value in answer["usage"].values()} == {int}


def test_inference_mode_has_no_effect(folder: str) -> None:
    answers = [
        text(TEXTS, model=folder, inference_mode=mode) for mode in ("remote", "local", "dynamic")
    ]
    assert answers[0] == answers[1] == answers[2]


def test_n_ctx_lowers_the_limit(folder: str) -> None:
    embedder = Embedder(folder)
    width = embedder.get_embedding_dimension()
    for mode, truncate in (("truncate", "end"), ("mean", "mean")):
        found = text(TEXTS, model=folder, long_text_mode=mode, n_ctx=40)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncationWarning)
            wanted = embedder.encode_document(
                TEXTS, matryoshka_dim=width, truncate=truncate, max_length=40
            )
        assert bits(rows(found).astype(np.float32)) == bits(wanted)
        plain = text(TEXTS, model=folder, long_text_mode=mode)
        assert found["embeddings"][2] != plain["embeddings"][2]
        # more than the model's own limit changes nothing
        assert text(TEXTS, model=folder, long_text_mode=mode, n_ctx=10**6) == plain


def test_any_ordered_collection(folder: str) -> None:
    wanted = text(TEXTS, model=folder)
    for given in (tuple(TEXTS), iter(TEXTS), np.array(TEXTS)):
        assert text(given, model=folder) == wanted


def test_an_empty_list_loads_nothing() -> None:
    """As in the client, whose `usage` is empty then. Arguments are checked all the same."""
    answer = embed.text([], model="no/where")
    assert answer == {
        "embeddings": [], "usage": {}, "model": "no/where", "inference_mode": "local"
    }  # fmt: skip
    with pytest.raises(ValueError, match="task_type"):
        embed.text([], task_type="separation")


@pytest.mark.parametrize(
    ("texts", "more", "error", "message"),
    [
        ("lone", {}, TypeError, r"texts must be a list of str, not a lone str: give \['lone'\]"),
        (None, {}, TypeError, "texts must be an ordered collection of str, not NoneType"),
        ([1], {}, TypeError, "input 0 must be a str, not int"),
        ({"a": "b"}, {}, TypeError, "texts must be an ordered .*not dict"),
        (["a", "\ud800"], {}, TextError, "input 1 is not valid Unicode"),
        (["a"], {"model": None}, TypeError, "model must be a str or a path, not None"),
        (
            ["a"], {"task_type": "separation"}, ValueError,
            "task_type must be one of search_query, search_document, classification, clustering, "
            "not 'separation'",
        ),
        (["a"], {"task_type": None}, ValueError, "task_type must be .* not None"),
        (["a"], {"dimensionality": 0}, ValueError, "dimensionality must be 1 to .* width, not 0"),
        (["a"], {"dimensionality": 2000}, ValueError, "dimensionality must be 1 to 64, not 2000"),
        (["a"], {"dimensionality": 64.0}, TypeError, "dimensionality must be an integer, not 64.0"),
        (["a"], {"long_text_mode": "chunk"}, ValueError, "one of truncate, mean, not 'chunk'"),
        (["a"], {"inference_mode": "cloud"}, ValueError, "remote, local, dynamic, not 'cloud'"),
        (["a"], {"device": "kompute"}, ValueError, "unknown device 'kompute'"),
        (["a"], {"n_ctx": 0}, ValueError, "n_ctx must be 1 to the model's limit, not 0"),
        (["a"], {"n_ctx": 2}, ValueError, "n_ctx must be at least 3, not 2"),
        (
            ["a", "a " * 8193], {"long_text_mode": "mean"}, TextError,
            "input 1 has 8193 tokens, and long_text_mode 'mean' takes 8192 at most",
        ),
        (["a"], {"dimension": 64}, TypeError, "keyword 'dimension': did you mean 'dimensionality'"),
        (["a"], {"n_threads": 4}, TypeError, "keyword 'n_threads': call torch.set_num_threads"),
        (["a"], {"truncate_dim": 4}, TypeError, "keyword 'truncate_dim': give dimensionality"),
        (["a"], {"model": "nomic-embed-code"}, ValueError, "has another architecture"),
        (["a"], {"model": "./nowhere"}, HubError, "The folder './nowhere' does not exist"),
    ],
)  # fmt: skip
def test_bad_input(
    texts: Any, more: dict[str, Any], error: type[Exception], message: str, folder: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        embed.text(texts, **{"model": folder, **more})
    if error is ValueError or error is TypeError:
        assert type(caught.value) is error


def test_as_many_tokens_as_the_hosted_call_takes(folder: str) -> None:
    """Without prompt and special tokens, as the server counts."""
    answer = embed.text(["a " * 8192], model=folder, long_text_mode="mean", dimensionality=64)
    assert answer["usage"]["truncated_texts"] == 0
    assert answer["usage"]["total_tokens"] > 8192


def test_few_dimensions_are_logged(folder: str, caplog: pytest.LogCaptureFixture) -> None:
    embed.text(["a"], model=folder, dimensionality=64)
    assert not caplog.records
    embed.text(["a"], model=folder, dimensionality=63)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("nomicbert.embed", logging.WARNING)
    assert "dimensionality 63 is below 64" in record.getMessage()


def test_cut_texts_are_warned_of(folder: str) -> None:
    """Once per call, at the caller's line."""
    with pytest.warns(TruncationWarning, match="2 of 3 texts were longer than 64") as caught:
        embed.text([LONG, "a", LONG], model=folder)
    assert [warning.filename for warning in caught] == [__file__]
    embed.text([LONG], model=folder, long_text_mode="mean")


def test_images_are_refused() -> None:
    with pytest.raises(AttributeError, match="no 'image': only texts are embedded here"):
        embed.image  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(AttributeError, match="has no attribute 'txet'"):
        embed.txet  # type: ignore[attr-defined]  # noqa: B018
    assert not hasattr(embed, "image")


def test_the_module_is_light_and_shadows_nothing() -> None:
    code = (
        "import sys, nomicbert; first = nomicbert.embed; from nomicbert import embed; "
        "assert first is embed and callable(embed.text); "
        "print(sorted({'torch', 'numpy', 'tokenizers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"
    assert "embed" in dir(nomicbert)
    assert nomicbert.embed is importlib.import_module("nomicbert.embed")
    command, _ = COMMANDS["embed"]
    assert command.__module__ == "nomicbert.cli.embed"


class Loads:
    """Counts the models that are loaded."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        self.devices: list[torch.device] = []
        init = Embedder.__init__

        def counted(embedder: Embedder, place: Any, **keywords: Any) -> None:
            self.names.append(Path(place).name)
            self.devices.append(keywords["device"])
            init(embedder, place, **keywords)

        patch.setattr(Embedder, "__init__", counted)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Loads:
    return Loads(monkeypatch)


def test_two_models_stay_loaded(loads: Loads, folders: dict[str, Path]) -> None:
    assert embed.MOST_MODELS == 2
    for name in ("v1.5", "e5", "v1.5", "e5", "v1.5", "minilm", "v1.5", "minilm", "e5", "v1.5"):
        embed.text(["a"], model=str(folders[name]))
    # minilm replaces e5, which was used before v1.5; then e5 replaces v1.5
    assert loads.names == ["v1.5", "e5", "minilm", "e5", "v1.5"]
    embed.free_embedding_model()
    embed.text(["a"], model=str(folders["v1.5"]))
    assert loads.names[5:] == ["v1.5"]


def test_a_model_has_one_place_by_any_name(
    loads: Loads, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(folder).parent)
    for name in (folder, "v1.5", "./v1.5", Path("v1.5"), Path(folder) / "." / ".." / "v1.5"):
        assert embed.text(["a"], model=name)["model"] == str(name)
    assert loads.names == ["v1.5"]


def test_a_failed_load_drops_nothing(loads: Loads, folders: dict[str, Path]) -> None:
    for name in ("v1.5", "e5"):
        embed.text(["a"], model=str(folders[name]))
    for _ in range(2):
        with pytest.raises(HubError):
            embed.text(["a"], model="./nowhere")
    for name in ("v1.5", "e5"):
        embed.text(["a"], model=str(folders[name]))
    assert loads.names == ["v1.5", "e5"]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [(None, "auto"), ("gpu", "cuda"), ("nvidia", "cuda"), ("cuda:1", "cuda:1"), ("cpu", "cpu")],
)
def test_devices(
    given: str | None, wanted: str, loads: Loads, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default a GPU if there is one, as "auto" is."""
    asked: list[object] = []

    def as_device(name: object) -> torch.device:
        asked.append(name)
        return torch.device("cpu")

    monkeypatch.setattr("nomicbert.arguments.as_device", as_device)
    embed.text(["a"], model=folder, device=given)
    assert asked == [wanted]
    assert loads.devices == [torch.device("cpu")]


def run_at_once(calls: list[Callable[[], Any]]) -> list[Any]:
    """Start each call in a thread of its own, all at one moment."""
    barrier = threading.Barrier(len(calls))

    def start(call: Callable[[], Any]) -> Any:
        barrier.wait(60)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(start, calls))


def test_threads_load_a_model_once_and_get_their_vectors(
    loads: Loads, folders: dict[str, Path]
) -> None:
    """Twelve threads, two models, and texts of their own; the first calls prepare the weights."""
    jobs = [(str(folders[("v1.5", "e5")[i % 2]]), [f"text {i}", "b " * (3 + i)]) for i in range(12)]
    found = run_at_once(
        [lambda model=model, texts=texts: embed.text(texts, model=model) for model, texts in jobs]
    )
    assert sorted(loads.names) == ["e5", "v1.5"]
    for (model, texts), answer in zip(jobs, found, strict=True):
        assert answer["model"] == model
        alone = embed.text(texts, model=model)
        assert bits(rows(answer).astype(np.float32)) == bits(rows(alone).astype(np.float32))
        assert answer["usage"] == alone["usage"]
    assert len({json.dumps(answer["embeddings"]) for answer in found}) == len(jobs)


def test_more_models_than_stay_from_many_threads(folders: dict[str, Path]) -> None:
    """Models are dropped while other threads embed with them."""
    names = ["v1.5", "e5", "minilm", "conan"] * 2
    wanted = {name: embed.text(["a text"], model=str(folders[name])) for name in set(names)}
    embed.free_embedding_model()

    def often(name: str) -> list[Any]:
        return [embed.text(["a text"], model=str(folders[name])) for _ in range(5)]

    found = run_at_once([lambda name=name: often(name) for name in names])
    for name, answers in zip(names, found, strict=True):
        for answer in answers:
            assert bits(rows(answer).astype(np.float32)) == bits(
                rows(wanted[name]).astype(np.float32)
            )


@pytest.fixture
def hub(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[FakeHub]:
    server = FakeHub()
    for name, repository in {
        "v1.5": "nomic-ai/nomic-embed-text-v1.5",
        "v2-moe": "nomic-ai/nomic-embed-text-v2-moe",
        "minilm": "sentence-transformers/all-MiniLM-L6-v2",
    }.items():
        top = folders[name]
        files = {str(p.relative_to(top)): p.read_bytes() for p in top.rglob("*") if p.is_file()}
        server.repositories[repository] = Repository()
        server.repositories[repository].commit("main", files)
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    server.start()
    yield server
    server.stop()


def test_names_of_the_hosted_api(hub: FakeHub, loads: Loads, folders: dict[str, Path]) -> None:
    """A short name is the repository's; a loaded model makes no request."""
    answer = embed.text(["a"])
    assert answer["model"] == "nomic-embed-text-v1.5"
    assert answer["embeddings"] == embed.text(["a"], model=str(folders["v1.5"]))["embeddings"]
    requests = len(hub.requests)
    assert requests > 0
    again = embed.text(["a"], model="nomic-ai/nomic-embed-text-v1.5")
    assert again["embeddings"] == answer["embeddings"]
    assert len(hub.requests) == requests
    assert len(loads.names) == 2
    for short, name in (("nomic-embed-text-v2", "v2-moe"), ("all-MiniLM-L6-v2", "minilm")):
        found = embed.text(["a"], model=short)
        assert found["model"] == short
        assert found["embeddings"] == embed.text(["a"], model=str(folders[name]))["embeddings"]


def test_a_folder_goes_before_a_name(folder: str, tmp_path: Path, monkeypatch: Any) -> None:
    shutil.copytree(folder, tmp_path / "nomic-embed-text-v1.5")
    monkeypatch.chdir(tmp_path)
    assert embed.text(["a"])["embeddings"] == embed.text(["a"], model=folder)["embeddings"]
