"""MTEBEncoder: scores equal those of mteb's own wrappers; prompts and recipe follow the card."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sentence_transformers import util

if find_spec("mteb") is None:
    pytest.skip("mteb is not installed; it needs Python 3.11", allow_module_level=True)

import mteb
from mteb.models import ModelMeta, SentenceTransformerEncoderWrapper
from mteb.models.abs_encoder import get_prompt_name
from mteb.models.model_implementations.nomic_models import NomicWrapper, model_prompts
from mteb.models.models_protocols import EncoderProtocol
from mteb.types import PromptType

from bench.mteb_card import CARDS, read_card
from nomicbert import Embedder
from nomicbert.cli.demo import packaged_weights
from nomicbert.integrations.mteb import MTEBEncoder
from nomicbert.vectors.similarity import PAIRWISE
from tests.support.checkpoints import build_checkpoint
from tests.support.mteb_tasks import TEXTS, local_tasks

TASKS = local_tasks()
QUIET = {"batch_size": 64, "show_progress_bar": False}
ENTRIES = [entry for path in sorted(CARDS.glob("*.json")) for entry in read_card(path).entries]
METRICS = {
    kind: {
        metric.removeprefix("max_over_subqueries_")
        for entry in ENTRIES
        if entry.type == kind
        for metric in entry.scores
    }
    for kind in TASKS
}


def scores(model: Any, kind: str) -> dict[str, float]:
    """All scores of mteb for a task."""
    task = TASKS[kind]
    result = mteb.evaluate(model, task, cache=None, show_progress_bar=False, encode_kwargs=QUIET)
    (found,) = result.task_results[0].scores["test"]
    return {name: float(value) for name, value in found.items() if isinstance(value, float)}


def assert_same(ours: dict[str, float], theirs: dict[str, float]) -> None:
    """Equal to four decimals (two in points of 100); undefined scores are NaN on both sides."""
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, abs=5e-5, nan_ok=True), name


def embed(encoder: MTEBEncoder, kind: str, side: str | None = None, **more: Any) -> np.ndarray:
    """The vectors that mteb gets for TEXTS, in batches of two."""
    batches = [{"text": TEXTS[:7]}, {"text": TEXTS[7:]}]
    return encoder.encode(
        batches,
        task_metadata=TASKS[kind].metadata,
        hf_split="test",
        hf_subset="default",
        prompt_type=None if side is None else PromptType(side),
        **QUIET,
        **more,
    )


@pytest.fixture(scope="module")
def minilm() -> tuple[MTEBEncoder, SentenceTransformerEncoderWrapper]:
    folder = packaged_weights()
    judge = SentenceTransformerEncoderWrapper(str(folder), device="cpu")
    return MTEBEncoder(Embedder(folder)), judge


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return lambda variant: build_checkpoint(tmp_path_factory.mktemp(variant), variant)


@pytest.fixture(scope="module")
def nomic(build: Callable[[str], Path]) -> Embedder:
    return Embedder(build("nomic-v1.5"))


# a classifier trained on few texts may never predict one of the classes
@pytest.mark.filterwarnings("ignore:Precision is ill-defined")
@pytest.mark.parametrize("kind", TASKS)
def test_scores_are_those_of_mteb_with_sentence_transformers(
    kind: str, minilm: tuple[MTEBEncoder, SentenceTransformerEncoderWrapper]
) -> None:
    encoder, judge = minilm
    ours = scores(encoder, kind)
    assert 0.1 < ours[TASKS[kind].metadata.main_score] < 0.99  # a task that separates models
    assert_same(ours, scores(judge, kind))
    # and its metrics have the names used for the cards here
    assert METRICS[kind] <= ours.keys()


@pytest.fixture(scope="module")
def nomic_of_mteb(nomic: Embedder, build: Callable[[str], Path]) -> NomicWrapper:
    """mteb's own wrapper of v1.5, on the same tiny weights."""
    with pytest.warns(UserWarning, match="will overwrite the default model prompts"):
        wrapper = NomicWrapper(str(build("nomic-v1.5")), None, "cpu", model_prompts)
    wrapper.model_name = "nomic-ai/nomic-embed-text-v1.5"
    return wrapper


@pytest.mark.parametrize("kind", [kind for kind in TASKS if kind != "Classification"])
def test_scores_are_those_of_the_nomic_wrapper_of_mteb(
    kind: str, nomic: Embedder, nomic_of_mteb: NomicWrapper
) -> None:
    assert_same(scores(MTEBEncoder(nomic), kind), scores(nomic_of_mteb, kind))


def test_classification_has_no_l2_where_mteb_has_it(
    nomic: Embedder, nomic_of_mteb: NomicWrapper
) -> None:
    ours = embed(MTEBEncoder(nomic), "Classification")
    theirs = embed(nomic_of_mteb, "Classification")  # type: ignore[arg-type]
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), math.sqrt(64), rtol=1e-3)
    unit = ours / np.linalg.norm(ours, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, theirs, atol=1e-5)


@pytest.mark.parametrize("dim", [None, 24])
@pytest.mark.parametrize(
    ("kind", "side", "prompt"),
    [
        ("Classification", None, "classification: "),
        ("STS", None, "classification: "),
        ("Reranking", "query", "classification: "),
        ("Clustering", None, "clustering: "),
        ("Retrieval", "query", "search_query: "),
        ("Retrieval", "document", "search_document: "),
    ],
)
def test_prompt_and_recipe_of_nomic(
    kind: str, side: str | None, prompt: str, dim: int | None, nomic: Embedder
) -> None:
    pooled = nomic.encode([prompt + text for text in TEXTS], convert_to_tensor=True)
    wanted = F.layer_norm(pooled, (64,))[:, :dim]
    if kind != "Classification":
        wanted = F.normalize(wanted)
    got = embed(MTEBEncoder(nomic, matryoshka_dim=dim), kind, side)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-6)
    # the wrong prompt would be far beyond the bound
    other = nomic.encode(TEXTS, prompt="search", convert_to_tensor=True)
    assert np.abs(F.layer_norm(other, (64,))[:, :dim].numpy() - got).max() > 1e-2


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry.task}-{entry.subset}")
def test_prompts_are_those_of_mteb_on_the_tasks_of_the_cards(entry: Any, nomic: Embedder) -> None:
    encoder, metadata = MTEBEncoder(nomic), mteb.get_task(entry.task).metadata
    for side in (None, *PromptType):
        name = get_prompt_name(model_prompts, metadata, side) or "document"
        wanted = model_prompts[name]
        if (entry.task, side) == ("QuoraRetrieval", PromptType.document):
            wanted = "search_query: "  # as in the evaluation of the card's authors
        found = encoder.prompt_of(metadata.name, metadata.type, side and side.value)
        assert found == wanted, side


def test_most_specific_prompt_wins(nomic: Embedder) -> None:
    order = ["Local-query", "Local", "STS-query", "STS", "query"]
    metadata = SimpleNamespace(name="Local", type="STS")
    for first in range(len(order) + 1):
        prompts = {key: f"{key}: " for key in reversed(order[first:])}
        found = MTEBEncoder(nomic, prompts=prompts).prompt_of("Local", "STS", "query")
        name = get_prompt_name(prompts, metadata, PromptType.query)  # type: ignore[arg-type]
        assert found == (prompts[name] if name else "")
    prompts = {key: f"{key}: " for key in order}
    assert MTEBEncoder(nomic, prompts=prompts).prompt_of("Local", "STS", None) == "Local: "
    assert MTEBEncoder(nomic, prompts=prompts).prompt_of("Other", "STS", None) == "STS: "
    # no fallback to the checkpoint's own prompts
    for side in ("query", "document", None):
        assert MTEBEncoder(nomic, prompts={}).prompt_of("Other", "Retrieval", side) == ""


@pytest.mark.parametrize(
    ("variant", "kind", "side", "prompt"),
    [
        ("nomic-v1", "Classification", None, "classification: "),
        ("nomic-v1", "Retrieval", "document", "search_document: "),
        ("nomic-v2-moe", "Clustering", None, "clustering: "),
        ("nomic-v2-moe", "Retrieval", "query", "search_query: "),
        ("conan-v1", "STS", None, ""),
        ("conan-v1", "Retrieval", "query", ""),
        ("e5", "Retrieval", "query", "query: "),
        ("e5", "Retrieval", "document", "passage: "),
        ("e5", "STS", None, ""),
    ],
)
def test_other_checkpoints_use_their_own_modules(
    variant: str, kind: str, side: str | None, prompt: str, build: Callable[[str], Path]
) -> None:
    embedder = Embedder(build(variant))
    wanted = embedder.encode(TEXTS, prompt=prompt)
    np.testing.assert_allclose(embed(MTEBEncoder(embedder), kind, side), wanted, atol=1e-6)
    short = F.normalize(torch.from_numpy(wanted)[:, :16])
    got = embed(MTEBEncoder(embedder, matryoshka_dim=16), kind, side)
    np.testing.assert_allclose(got, short, atol=1e-6)


@pytest.mark.parametrize("kind", ["Classification", "STS"])
def test_the_default_width_of_the_embedder(kind: str, nomic: Embedder) -> None:
    """layer_norm is over all columns, whatever is kept."""
    wanted = embed(MTEBEncoder(nomic, matryoshka_dim=24), kind)
    nomic.truncate_dim = 24
    try:
        found = embed(MTEBEncoder(nomic), kind)
        meta = MTEBEncoder(nomic).mteb_model_meta
        assert (meta.embed_dim, meta.experiment_kwargs) == (24, {"truncate_dim": 24})
    finally:
        nomic.truncate_dim = None
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("kind", ["Classification", "STS"])
def test_precision(kind: str, nomic: Embedder) -> None:
    binary = embed(MTEBEncoder(nomic, matryoshka_dim=24), kind, precision="ubinary")
    signs = embed(MTEBEncoder(nomic, matryoshka_dim=24), kind) > 0
    np.testing.assert_array_equal(np.unpackbits(binary, axis=1), signs)


def test_max_length(nomic: Embedder) -> None:
    with pytest.warns(match=r"were longer than 12 tokens"):
        short = embed(MTEBEncoder(nomic, max_length=12), "STS")
    with pytest.warns(match=r"were longer than 12 tokens"):
        wanted = nomic.encode(TEXTS, prompt="classification: ", matryoshka_dim=64, max_length=12)
    np.testing.assert_array_equal(short, wanted)


@pytest.mark.parametrize(
    "wrong", [{"matryoshka_dim": 65}, {"matryoshka_dim": 0}, {"max_length": 2}]
)
def test_invalid_options_are_refused_early(wrong: dict[str, int], nomic: Embedder) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MTEBEncoder(nomic, **wrong)


@pytest.mark.parametrize("name", PAIRWISE)
def test_similarities(name: str, nomic: Embedder, seed: int) -> None:
    a, b = torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(seed))
    judge = "cos_sim" if name == "cosine" else "dot_score" if name == "dot" else f"{name}_sim"
    encoder, before = MTEBEncoder(nomic), nomic.similarity_fn_name
    nomic.similarity_fn_name = name
    try:
        pairs, matrix = encoder.similarity_pairwise(a.numpy(), b), encoder.similarity(a, b.numpy())
    finally:
        nomic.similarity_fn_name = before
    torch.testing.assert_close(pairs, getattr(util, f"pairwise_{judge}")(a, b))
    torch.testing.assert_close(matrix.diagonal(), pairs, rtol=1e-4, atol=1e-4)


def test_model_meta(nomic: Embedder) -> None:
    name = "nomic-ai/nomic-embed-text-v1.5"
    encoder = MTEBEncoder(nomic, name=name, revision="abc", matryoshka_dim=24, max_length=100)
    assert isinstance(encoder, EncoderProtocol)
    meta = encoder.mteb_model_meta
    assert isinstance(meta, ModelMeta)
    # `create_empty` does not validate, so the constructor checks the fields here
    ModelMeta(**{field: getattr(meta, field) for field in ModelMeta.model_fields})
    assert (meta.name, meta.revision, meta.embed_dim, meta.max_tokens) == (name, "abc", 24, 100)
    assert meta.similarity_fn_name == "cosine"
    assert meta.n_parameters == sum(p.numel() for p in nomic.model.parameters())
    assert meta.experiment_kwargs == {"matryoshka_dim": 24, "max_length": 100}
    plain = MTEBEncoder(nomic).mteb_model_meta
    assert (plain.embed_dim, plain.max_tokens, plain.experiment_kwargs) == (64, 8192, None)
