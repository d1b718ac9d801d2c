"""sentence-transformers' evaluators and hard-negative mining with our classes, beside its own."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
from sentence_transformers.cross_encoder import evaluation as of_pairs
from sentence_transformers.sentence_transformer import evaluation as of_texts

from nomicbert import CrossEncoder, Embedder
from tests.support.checkpoints import build_checkpoint
from tests.support.rerankers import build_reranker
from tests.support.vocabularies import SENTENCES

Both = tuple[Any, Any]
OTHERS = [f"the {text} in the river" for text in SENTENCES]
COUNT = len(SENTENCES)
LABELS = [index % 2 for index in range(COUNT)]
GRADES = list(np.linspace(0, 1, COUNT))
QUERIES = {str(i): text for i, text in enumerate(SENTENCES[:3])}
CORPUS = {f"d{i}": text for i, text in enumerate(OTHERS)}
RELEVANT = {name: {f"d{name}"} for name in QUERIES}


@pytest.fixture(scope="module")
def embedders(tmp_path_factory: pytest.TempPathFactory) -> Both:
    folder = build_checkpoint(tmp_path_factory.mktemp("e"), "conan-v1", num_hidden_layers=1)
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    both = (Embedder(folder), theirs)
    for model in both:
        model.similarity_fn_name = "manhattan"  # not the default
    return both


@pytest.fixture(scope="module")
def rerankers(tmp_path_factory: pytest.TempPathFactory) -> Both:
    folder = build_reranker(tmp_path_factory.mktemp("r"))
    return CrossEncoder(folder), sentence_transformers.CrossEncoder(str(folder), device="cpu")


EMBEDDERS: dict[str, dict[str, Any]] = {
    "EmbeddingSimilarityEvaluator": {
        "sentences1": SENTENCES, "sentences2": OTHERS, "scores": GRADES, "truncate_dim": 16,
    },
    "BinaryClassificationEvaluator": {
        "sentences1": SENTENCES, "sentences2": OTHERS, "labels": LABELS,
        "similarity_fn_names": ["cosine", "dot", "euclidean", "manhattan"],
    },
    "TripletEvaluator": {
        "anchors": SENTENCES, "positives": OTHERS, "negatives": OTHERS[1:] + OTHERS[:1],
    },
    "InformationRetrievalEvaluator": {
        "queries": QUERIES, "corpus": CORPUS, "relevant_docs": RELEVANT, "truncate_dim": 16,
        "query_prompt": "find: ", "corpus_chunk_size": 2,
    },
    "RerankingEvaluator": {
        "samples": [{"query": SENTENCES[0], "positive": OTHERS[:2], "negative": OTHERS[2:]}],
    },
    "ParaphraseMiningEvaluator": {
        "sentences_map": {str(i): text for i, text in enumerate([*SENTENCES, *OTHERS])},
        "duplicates_list": [(str(i), str(i + COUNT)) for i in range(COUNT)],
    },
    "TranslationEvaluator": {"source_sentences": SENTENCES, "target_sentences": OTHERS},
}  # fmt: skip
RERANKERS: dict[str, dict[str, Any]] = {
    "CrossEncoderRerankingEvaluator": {
        "samples": [{"query": SENTENCES[0], "positive": OTHERS[:1], "documents": OTHERS}],
    },
    "CrossEncoderCorrelationEvaluator": {
        "sentence_pairs": list(zip(SENTENCES, OTHERS, strict=True)), "scores": GRADES,
    },
    "CrossEncoderClassificationEvaluator": {
        "sentence_pairs": list(zip(SENTENCES, OTHERS, strict=True)), "labels": LABELS,
    },
}  # fmt: skip


def compare(kind: Any, given: dict[str, Any], both: Both, folder: Path) -> None:
    """The metrics, and the files, of both; ours are also kept for the model card."""
    ours, theirs = both
    found = ours.evaluate(kind(**given, name="it"), folder / "ours")
    wanted = theirs.evaluate(kind(**given, name="it"), str(folder / "theirs"))
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, abs=1e-5), name
    written = sorted(path.name for path in (folder / "theirs").rglob("*") if path.is_file())
    assert written
    assert sorted(p.name for p in (folder / "ours").rglob("*") if p.is_file()) == written


@pytest.mark.parametrize("name", EMBEDDERS)
def test_an_evaluator_of_embedders(name: str, embedders: Both, tmp_path: Path) -> None:
    compare(getattr(of_texts, name), EMBEDDERS[name], embedders, tmp_path)


@pytest.mark.parametrize("name", RERANKERS)
def test_an_evaluator_of_rerankers(name: str, rerankers: Both, tmp_path: Path) -> None:
    compare(getattr(of_pairs, name), RERANKERS[name], rerankers, tmp_path)


def test_an_evaluator_of_vectors(embedders: Both) -> None:
    """Another model's vectors are the aim."""
    ours, theirs = embedders
    kind = of_texts.MSEEvaluator
    for teacher in (ours, theirs):
        found = kind(SENTENCES, OTHERS, teacher_model=teacher, name="it")(ours)
        wanted = kind(SENTENCES, OTHERS, teacher_model=theirs, name="it")(theirs)
        assert found["it_negative_mse"] == pytest.approx(wanted["it_negative_mse"], rel=1e-4)


def test_the_card_has_the_metrics(embedders: Both, tmp_path: Path) -> None:
    ours, _ = embedders
    given = EMBEDDERS["TripletEvaluator"]
    found = of_texts.TripletEvaluator(**given, name="kept")(ours)
    ours.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text("utf-8")
    assert "kept" in card
    assert "manhattan_accuracy" in card
    assert f"{found['kept_manhattan_accuracy']:.4f}".rstrip("0") in card


@pytest.mark.parametrize(
    "options",
    [
        {"range_min": 1, "num_negatives": 2},
        {"output_format": "labeled-list", "output_scores": True, "num_negatives": 2},
        {"relative_margin": 0.01, "sampling_strategy": "top", "query_prompt": "find: "},
        {"use_multi_process": ["cpu"], "num_negatives": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("reranked", [False, True])
def test_hard_negatives(
    reranked: bool, options: dict[str, Any], embedders: Both, rerankers: Both
) -> None:
    datasets: Any = pytest.importorskip("datasets")
    mine = importlib.import_module("sentence_transformers.util").mine_hard_negatives
    pairs = datasets.Dataset.from_dict({"query": SENTENCES, "passage": OTHERS})
    given = {"sampling_strategy": "top", "verbose": False, **options}
    # their processes cannot be started for a model that some of their evaluators were called with
    alone = given | {"use_multi_process": False}
    found, wanted = (
        mine(pairs, model, cross_encoder=reranker if reranked else None, **options).to_dict()
        for model, reranker, options in zip(embedders, rerankers, (given, alone), strict=True)
    )
    assert found.keys() == wanted.keys()
    for name, column in wanted.items():
        if name == "scores":
            np.testing.assert_allclose(found[name], column, atol=1e-4)
        else:
            assert found[name] == column
    assert len(next(iter(wanted.values()))) > 0
