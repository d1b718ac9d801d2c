"""Small tasks in mteb's own format, one of each type that the cards have, from real text.

The text is the docstrings of the standard library: an object's name is the query for its docstring,
and its module is its class.
"""

from __future__ import annotations

from typing import Any

from datasets import Dataset, DatasetDict
from mteb.abstasks import (
    AbsTask,
    AbsTaskClassification,
    AbsTaskClusteringLegacy,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
    AbsTaskSummarization,
)
from mteb.abstasks.task_metadata import TaskMetadata

from nomicbert.text.corpus import read_passages

MODULES = ("argparse", "asyncio", "decimal", "email", "logging", "random", "statistics", "zipfile")
EACH = 5
WORDS = 16
COUNT = EACH * len(MODULES)
BY_MODULE = [read_passages(EACH, [module]) for module in MODULES]
# modules are interleaved, so that any part covers all of them
PASSAGES = [passage for turn in zip(*BY_MODULE, strict=True) for passage in turn]
TEXTS = [" ".join(passage.summary.split()[:WORDS]) for passage in PASSAGES]
QUERIES = [passage.name.replace(".", " ").replace("_", " ") for passage in PASSAGES]
LABELS = [MODULES.index(passage.name.partition(".")[0]) for passage in PASSAGES]
HIGHEST = 5
# each paired with the next, and with one that is further away
PAIRS = [(i, (i + step) % COUNT) for step in (1, len(MODULES)) for i in range(COUNT)]


def _metadata(kind: str, main_score: str) -> TaskMetadata:
    return TaskMetadata(
        name=f"Local{kind}",
        type=kind,
        main_score=main_score,
        description="Docstrings of the standard library.",
        reference=None,
        dataset={"path": "local", "revision": "1"},
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        modalities=["text"],
        category="t2t",
    )


def _shared_words(a: str, b: str) -> float:
    """Share of the words that two texts have in common."""
    left, right = set(a.lower().split()), set(b.lower().split())
    return len(left & right) / len(left | right)


def _test_split(**columns: list[Any]) -> DatasetDict:
    return DatasetDict({"test": Dataset.from_dict(columns)})


def _questions(near: int | None = None) -> dict[str, Any]:
    """Queries and documents; with `near` documents to be ranked for each query."""
    ids = [str(i) for i in range(COUNT)]
    ranked = None
    if near is not None:
        ranked = {ids[i]: [ids[(i + k) % COUNT] for k in range(near)] for i in range(COUNT)}
    documents = [{"id": i, "title": "", "text": text} for i, text in zip(ids, TEXTS, strict=True)]
    queries = [{"id": i, "text": text} for i, text in zip(ids, QUERIES, strict=True)]
    return {
        "queries": Dataset.from_list(queries),
        "corpus": Dataset.from_list(documents),
        "relevant_docs": {i: {i: 1} for i in ids},
        "top_ranked": ranked,
    }


def _task(base: type[AbsTask], kind: str, main_score: str, dataset: Any) -> AbsTask:
    """A task with its data already in memory, so that nothing is downloaded."""
    known = {"metadata": _metadata(kind, main_score), "min_score": 0, "max_score": HIGHEST}
    task = type(f"Local{kind}", (base,), known)()
    task.dataset = dataset
    task.data_loaded = True
    return task


def local_tasks() -> dict[str, AbsTask]:
    """One task per type, by type."""
    first, second = ([TEXTS[pair[side]] for pair in PAIRS] for side in (0, 1))
    columns = {"sentence1": first, "sentence2": second}
    likeness = [HIGHEST * _shared_words(a, b) for a, b in zip(first, second, strict=True)]
    same_module = [int(LABELS[i] == LABELS[j]) for i, j in PAIRS]
    half = COUNT // 2
    labelled = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]
    halves = {
        "train": Dataset.from_list(labelled[:half]),
        "test": Dataset.from_list(labelled[half:]),
    }
    summaries = {
        "text": TEXTS[:8],
        "human_summaries": [[query] for query in QUERIES[:8]],
        "machine_summaries": [QUERIES[i : i + 4] for i in range(8)],
        "relevance": [[5.0, 2.0, 1.0, 0.0]] * 8,
    }
    found = (
        (AbsTaskClassification, "Classification", "accuracy", DatasetDict(halves)),
        (
            AbsTaskClusteringLegacy,
            "Clustering",
            "v_measure",
            _test_split(sentences=[TEXTS], labels=[LABELS]),
        ),
        (
            AbsTaskPairClassification,
            "PairClassification",
            "max_ap",
            _test_split(**columns, labels=same_module),
        ),
        (AbsTaskRetrieval, "Reranking", "map_at_1000", {"default": {"test": _questions(9)}}),
        (AbsTaskRetrieval, "Retrieval", "ndcg_at_10", {"default": {"test": _questions()}}),
        (AbsTaskSTS, "STS", "cosine_spearman", _test_split(**columns, score=likeness)),
        (AbsTaskSummarization, "Summarization", "cosine_spearman", _test_split(**summaries)),
    )
    return {kind: _task(base, kind, main_score, data) for base, kind, main_score, data in found}
