"""The cards' scores, and the command that compares ours with them."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

if find_spec("mteb") is None:
    pytest.skip("mteb is not installed; it needs Python 3.11", allow_module_level=True)

import mteb

from bench import mteb_card, mteb_scores
from bench.mteb_card import CARDS, Card, Entry, convert, path_of, read_card, written
from tests.support.checkpoints import build_checkpoint
from tests.support.mteb_tasks import local_tasks

NOMIC = read_card(path_of("nomic-ai/nomic-embed-text-v1.5"))
CONAN = read_card(path_of("TencentBAC/Conan-embedding-v1"))
ENTRIES = [entry for card in (NOMIC, CONAN) for entry in card.entries]
TASKS = local_tasks()


def test_every_figure_of_the_cards_is_there() -> None:
    """The counts of "- task:" and of "- type:" below "metrics:" in the cards."""
    assert [len(card.entries) for card in (NOMIC, CONAN)] == [68, 35]
    assert [sum(len(e.scores) for e in card.entries) for card in (NOMIC, CONAN)] == [990, 367]
    assert Counter(e.type for e in NOMIC.entries if e.counts) == {
        "Classification": 12,
        "Clustering": 11,
        "PairClassification": 3,
        "Reranking": 4,
        "Retrieval": 15,
        "STS": 10,
        "Summarization": 1,
    }
    assert {path.name for path in CARDS.glob("*.json")} == {
        "Conan-embedding-v1.json",
        "nomic-embed-text-v1.5.json",
    }


@pytest.mark.parametrize(
    ("card", "task", "metric", "figure"),
    [
        (NOMIC, "AmazonCounterfactualClassification", "accuracy", 75.20895522388058),
        (NOMIC, "AmazonCounterfactualClassification", "ap", 38.57605549557802),
        (NOMIC, "ArguAna", "ndcg_at_10", 48.010999999999996),
        (NOMIC, "AskUbuntuDupQuestions", "map_at_1000", 61.71274951450321),
        (NOMIC, "AskUbuntuDupQuestions", "mrr_at_1000", 76.06032625423207),
        (NOMIC, "BIOSSES", "cosine_spearman", 84.24649792685918),
        (NOMIC, "ArxivClusteringP2P", "v_measure", 45.69069567851087),
        (NOMIC, "TwitterURLCorpus", "max_ap", 86.65166462876266),
        (CONAN, "AFQMC", "cosine_pearson", 56.613572467148856),
        (CONAN, "CMedQAv1-reranking", "map_at_1000", 91.38528814655234),
        (CONAN, "CmedqaRetrieval", "ndcg_at_10", 47.606),
        (CONAN, "Cmnli", "cosine_ap", 92.53650618807644),
        (CONAN, "Waimai", "accuracy", 89.69999999999999),
    ],
)
def test_figures_of_the_cards(card: Card, task: str, metric: str, figure: float) -> None:
    entry = card.find(task)
    assert entry is not None
    assert entry.scores[metric] == pytest.approx(figure, abs=5e-5)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry.task}-{entry.subset}")
def test_mteb_knows_the_task(entry: Entry) -> None:
    task = mteb.get_task(entry.task, eval_splits=[entry.split], hf_subsets=[entry.subset])
    assert (task.metadata.name, task.metadata.type) == (entry.task, entry.type)
    assert task.metadata.main_score == entry.main_score
    assert list(task.eval_splits) == [entry.split]
    assert list(task.hf_subsets) == [entry.subset]
    assert 0 < entry.figure < 100


def test_the_figures_have_the_means_that_the_cards_state() -> None:
    assert NOMIC.averages == {"768": 62.28, "512": 61.96, "256": 61.04, "128": 59.34, "64": 56.1}
    ours = mean(entry.figure for entry in NOMIC.entries if entry.counts)
    assert round(ours, 2) == NOMIC.averages["768"]
    # the card's own table, which ranks pairs by average precision
    by_type: dict[str, list[float]] = {}
    for entry in CONAN.entries:
        by_type.setdefault(entry.type, []).append(entry.scores.get("max_ap", entry.figure))
    assert {kind: round(mean(figures), 2) for kind, figures in by_type.items()} == {
        "Classification": 75.03,
        "Clustering": 66.33,
        "Reranking": 72.76,
        "Retrieval": 76.67,
        "STS": pytest.approx(64.18, abs=0.0101),
        "PairClassification": pytest.approx(91.66, abs=0.0101),
    }
    assert (
        round(mean(figure for each in by_type.values() for figure in each), 2)
        == CONAN.averages["full"]
        == 72.62
    )


README = """---
model-index:
- name: epoch_0
  results:
  - task:
      type: Reranking
    dataset:
      type: mteb/mind_small
      name: MTEB MindSmallReranking
      config: default
      split: test
      revision: None
    metrics:
    - type: map
      value: 31.5
    - type: mrr
      value: 32.123456
  - task:
      type: STS
    dataset:
      type: mteb/sts17-crosslingual-sts
      name: MTEB STS17 (en-en)
      config: en-en
      split: test
      revision: af5e6fb
    metrics:
    - type: cos_sim_spearman
      value: 87
license: apache-2.0
---
| Name  | SeqLen | Dimension | MTEB      |
| :---: | :----- | :-------- | :------:  |
| other | 8192   |  768      | 62.39     |
| tiny  | 8192   |  64       | **56.10** |

| Model    | **Average** |
| :------: | :---------: |
| **tiny** | **72.62**   |
"""


def test_a_card_is_converted(tmp_path: Path) -> None:
    card = convert(README, "me/tiny", "here", 512)
    metric = "max_over_subqueries_m{}_at_1000"
    reranking = {metric.format("ap"): 31.5, metric.format("rr"): 32.1235}
    assert card.entries == [
        Entry(
            "MindSmallReranking",
            "Reranking",
            "default",
            "test",
            None,
            metric.format("ap"),
            reranking,
        ),
        Entry(
            "STS17", "STS", "en-en", "test", "af5e6fb", "cosine_spearman", {"cosine_spearman": 87.0}
        ),
    ]
    assert card.averages == {"64": 56.1, "full": 72.62}
    (tmp_path / "tiny.json").write_text(written(card), "utf-8")
    assert read_card(tmp_path / "tiny.json") == card


@pytest.mark.parametrize("text", ["# no front matter", "---\nlicense: mit\n---\n"])
def test_a_card_without_figures_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no model-index"):
        convert(text, "me/tiny", "here")


def test_the_converter_records_its_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "README.md").write_text(README, "utf-8")
    options = [str(tmp_path / "README.md"), "--model", "me/tiny", "--max-length", "512"]
    assert mteb_card.main(options) == 0
    (tmp_path / "out.json").write_text(capsys.readouterr().out, "utf-8")
    card = read_card(tmp_path / "out.json")
    assert (card.model, card.max_length, len(card.entries)) == ("me/tiny", 512, 2)
    assert "me/tiny's README.md, sha256 " in card.source


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace mteb's tasks by local ones."""

    def get_task(name: str, **chosen: Any) -> Any:
        if name not in names:
            raise KeyError(f"KeyError: '{name}' not found")
        assert chosen in ({}, {"eval_splits": ["test"], "hf_subsets": ["default"]})
        return names[name]

    names = {task.metadata.name: task for task in TASKS.values()}
    monkeypatch.setattr(mteb, "get_task", get_task)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_checkpoint(tmp_path_factory.mktemp("tiny"), "nomic-v1.5"))


def figures_of(model: str, *tasks: str, **options: Any) -> list[dict[str, Any]]:
    """The rows that a run writes for these tasks."""
    file = Path(model) / "out.json"
    more = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    mteb_scores.main([model, "--tasks", *tasks, "--json", str(file), *more])
    rows: list[dict[str, Any]] = json.loads(file.read_text("utf-8"))["rows"]
    return rows


def card_file(folder: Path, averages: dict[str, float], **figures: float) -> str:
    """A card with a figure for each task, of the type in its name."""
    entries = [
        Entry(
            f"Local{kind}",
            kind,
            "default",
            "test",
            None,
            TASKS[kind].metadata.main_score,
            {TASKS[kind].metadata.main_score: figure},
        )
        for kind, figure in figures.items()
    ]
    path = folder / "card.json"
    path.write_text(written(Card("me/tiny", "here", None, averages, entries)), "utf-8")
    return str(path)


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize(
    ("off", "verdict", "code"), [(0.099, "agrees", 0), (-0.099, "agrees", 0), (0.101, "differs", 1)]
)
def test_verdicts(
    off: float,
    verdict: str,
    code: int,
    tiny: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (sts,) = figures_of(tiny, "LocalSTS")
    assert (sts["card"], sts["verdict"]) == (None, "")
    card = card_file(tmp_path, {}, STS=sts["ours"] + off)
    capsys.readouterr()
    arguments = [tiny, "--card", card, "--tasks", "LocalSTS", "LocalClustering"]
    assert mteb_scores.main(arguments) == code
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == ["task", "subset", "metric", "ours", "card", "difference"]
    assert first.split() == [
        "LocalSTS",
        "default",
        "cosine_spearman",
        f"{sts['ours']:.2f}",
        f"{sts['ours'] + off:.2f}",
        f"{-off:+.2f}",
        verdict,
    ]
    assert second.split()[:3] == ["LocalClustering", "default", "v_measure"]
    assert len(second.split()) == 4


@pytest.mark.usefixtures("local")
def test_figures_of_another_width_are_not_compared(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """But the mean over all tasks is, if the card states one."""
    kinds = ("STS", "Clustering")
    short = figures_of(tiny, *(f"Local{kind}" for kind in kinds), **{"matryoshka-dim": 16})
    full = figures_of(tiny, *(f"Local{kind}" for kind in kinds))
    assert all(abs(a["ours"] - b["ours"]) > 0.1 for a, b in zip(short, full, strict=True))
    stated = mean(row["ours"] for row in short)
    figures = {kind: row["ours"] for kind, row in zip(kinds, full, strict=True)}
    card = card_file(tmp_path, {"16": stated, "64": stated}, **figures)
    capsys.readouterr()
    file = tmp_path / "out.json"
    more = ["--matryoshka-dim", "16", "--json", str(file)]
    assert mteb_scores.main([tiny, "--card", card, *more]) == 0
    assert json.loads(file.read_text("utf-8"))["rows"][-1]["task"] == "mean of 2 tasks"
    _, *rows, last = capsys.readouterr().out.splitlines()
    assert [len(row.split()) for row in rows] == [4, 4]
    assert last.split()[-4:] == [f"{stated:.2f}", f"{stated:.2f}", "+0.00", "agrees"]
    assert mteb_scores.main([tiny, "--card", card]) == 1
    _, *rows, last = capsys.readouterr().out.splitlines()
    assert [row.split()[-1] for row in rows] == ["agrees", "agrees"]
    assert last.split()[-1] == "differs"
    # no mean for a part of the tasks
    assert mteb_scores.main([tiny, "--card", card, "--tasks", "LocalSTS"]) == 0
    assert "mean" not in capsys.readouterr().out


@pytest.mark.usefixtures("local")
def test_a_failing_task_does_not_stop_the_others(
    tiny: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise ConnectionError("the dataset cannot be had")

    monkeypatch.setattr(TASKS["STS"], "evaluate", refuse)
    assert mteb_scores.main([tiny, "--tasks", "LocalSTS", "LocalClustering"]) == 1
    _, failed, done = capsys.readouterr().out.splitlines()
    assert failed.split(maxsplit=2)[2] == "failed: the dataset cannot be had"
    assert float(done.split()[-1]) > 0


@pytest.mark.usefixtures("local")
def test_written_file(tiny: str, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    card = card_file(tmp_path, {}, STS=50.0)
    options = ["--card", card, "--max-length", "1000", "--json", str(file)]
    mteb_scores.main([tiny, "--tasks", "LocalSTS", *options])
    found = json.loads(file.read_text("utf-8"))
    assert {key: found[key] for key in ("model", "source", "width", "max_length", "dtype")} == {
        "model": tiny,
        "source": "here",
        "width": 64,
        "max_length": 1000,
        "dtype": "float32",
    }
    assert found["versions"].keys() == {"mteb", "nomicbert", "torch"}
    (row,) = found["rows"]
    assert row["scores"]["cosine_spearman"] == [row["ours"], 50.0]
    assert len(row["scores"]["cosine_pearson"]) == 1
    assert "manhattan_spearman" in row["scores"]


@pytest.mark.usefixtures("local")
def test_texts_are_cut_where_the_authors_cut_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(card_file(tmp_path, {}, STS=50.0))
    path.write_text(written(dataclasses.replace(read_card(path), max_length=77)), "utf-8")
    arguments = ["somewhere", "--card", str(path)]
    assert mteb_scores.read_options(arguments).max_length == 77
    assert mteb_scores.read_options([*arguments, "--max-length", "9"]).max_length == 9
    monkeypatch.setattr(mteb_card, "CARDS", tmp_path)
    options = mteb_scores.read_options(["me/card"])
    assert (options.max_length, options.tasks) == (77, ["LocalSTS"])


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["me/unknown"], "there is no card .*unknown.json: name --tasks"),
        (["me/unknown", "--card", "no.json", "--tasks", "LocalSTS"], "there is no card no.json"),
        (["me/unknown", "--tasks", "LocalSTS", "STS99"], "'STS99' not found"),
        (["no/such/folder", "--tasks", "LocalSTS"], "bench.mteb_scores: .*no/such/folder"),
        (["TINY", "--tasks", "LocalSTS", "--matryoshka-dim", "65"], "must be 1 to 64, not 65"),
    ],
)
def test_mistakes(
    arguments: list[str], said: str, tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [tiny if argument == "TINY" else argument for argument in arguments]
    try:
        code = mteb_scores.main(arguments)
    except SystemExit as end:
        code = int(end.code or 0)
    assert code == 2
    assert re.search(said, capsys.readouterr().err)
