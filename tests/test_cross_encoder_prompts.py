"""CrossEncoder's prompts: applied and kept as sentence-transformers does, in both directions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch

from nomicbert import CrossEncoder
from nomicbert.errors import ConfigError
from nomicbert.user_warnings import PromptWarning, TruncationWarning
from tests.support.rerankers import build_reranker
from tests.support.vocabularies import SENTENCES, WORDS

PAIRS = [(a, b) for a in SENTENCES[:2] for b in SENTENCES[2:]]
PROMPTS = {"find": "what is the river: ", "same": "deep: "}
BOUND = 1e-5


@pytest.fixture
def judge(tmp_path: Path) -> sentence_transformers.CrossEncoder:
    """A reranker of sentence-transformers with prompts, of which one is the default."""
    return sentence_transformers.CrossEncoder(
        str(build_reranker(tmp_path / "bare")),
        device="cpu",
        prompts=dict(PROMPTS),
        default_prompt_name="find",
    )


@pytest.fixture
def folder(judge: sentence_transformers.CrossEncoder, tmp_path: Path) -> Path:
    judge.save_pretrained(str(tmp_path / "a"), create_model_card=False)
    return tmp_path / "a"


CALLS: list[dict[str, Any]] = [
    {},
    {"prompt_name": "same"},
    {"prompt": "the fox is "},
    {"prompt": ""},
    {"prompt": "", "activation_fn": torch.nn.Tanh()},
]


def test_scores_equal_sentence_transformers(
    folder: Path, judge: sentence_transformers.CrossEncoder
) -> None:
    model = CrossEncoder(folder)
    assert model.prompts == judge.prompts == PROMPTS
    assert model.default_prompt_name == "find"
    seen = []
    for keywords in CALLS:
        found = model.predict(PAIRS, **keywords)
        np.testing.assert_allclose(found, judge.predict(PAIRS, **keywords), rtol=0, atol=BOUND)
        seen.append(found)
    assert all(np.abs(seen[0] - other).max() > 1e-3 for other in seen[1:4])
    # in each of several processes, too
    found = model.predict(PAIRS, device=["cpu"])
    np.testing.assert_allclose(found, seen[0], rtol=0, atol=BOUND)


def test_rank_has_the_prompt(folder: Path, judge: sentence_transformers.CrossEncoder) -> None:
    model = CrossEncoder(folder)
    for keywords in CALLS:
        found = model.rank("deep learning", SENTENCES, **keywords)
        wanted = judge.rank("deep learning", SENTENCES, **keywords)
        assert [row["corpus_id"] for row in found] == [row["corpus_id"] for row in wanted]
        scores = [[row["score"] for row in rows] for rows in (found, wanted)]
        np.testing.assert_allclose(*scores, rtol=0, atol=BOUND)


def test_a_prompt_counts_towards_the_limit(
    folder: Path, judge: sentence_transformers.CrossEncoder
) -> None:
    model = CrossEncoder(folder)
    pairs = [(" ".join(WORDS * 9), "x"), ("x", " ".join(WORDS * 9)), ("x", "x")]
    with pytest.warns(TruncationWarning, match="2 of 3 pairs"):
        found = model.predict(pairs)
    np.testing.assert_allclose(found, judge.predict(pairs), rtol=0, atol=BOUND)


@pytest.mark.filterwarnings("ignore::nomicbert.user_warnings.TruncationWarning")
@pytest.mark.parametrize("default", ["find", None])
def test_prompts_are_kept_in_both_directions(
    default: str | None, folder: Path, tmp_path: Path
) -> None:
    """Ours reads theirs, they read ours, and ours reads that again."""
    model = CrossEncoder(folder)
    model.default_prompt_name = default
    model.activation_fn = torch.nn.Tanh()
    model.max_seq_length = 24
    wanted = [model.predict(PAIRS, **keywords) for keywords in CALLS]
    model.save_pretrained(tmp_path / "b")
    theirs = sentence_transformers.CrossEncoder(str(tmp_path / "b"), device="cpu")
    assert theirs.prompts == PROMPTS
    assert theirs.default_prompt_name == default
    assert isinstance(theirs.activation_fn, torch.nn.Tanh)
    assert theirs.max_seq_length == 24
    theirs.save_pretrained(str(tmp_path / "c"), create_model_card=False)
    for again in (theirs, CrossEncoder(tmp_path / "b"), CrossEncoder(tmp_path / "c")):
        for keywords, scores in zip(CALLS, wanted, strict=True):
            np.testing.assert_allclose(again.predict(PAIRS, **keywords), scores, rtol=0, atol=BOUND)


def test_a_prompt_wins_over_a_name(folder: Path, judge: sentence_transformers.CrossEncoder) -> None:
    given = {"prompt": "deep: ", "prompt_name": "find"}
    with pytest.warns(PromptWarning, match="prompt_name are given: 'find' is ignored") as caught:
        found = CrossEncoder(folder).predict(PAIRS, **given)
    assert caught[0].filename == __file__
    np.testing.assert_allclose(found, judge.predict(PAIRS, **given), rtol=0, atol=BOUND)


def test_mistaken_prompts(folder: Path) -> None:
    model = CrossEncoder(folder)
    for name in ("web", "query", "document"):  # the last two are names of embedding models only
        with pytest.raises(ValueError, match=f"unknown prompt_name '{name}'.*'find', 'same'"):
            model.predict(PAIRS, prompt_name=name)
    with pytest.raises(TypeError, match="prompt must be a str, not 3"):
        model.rank("a", ["b"], prompt=3)  # type: ignore[arg-type]
    bare = CrossEncoder(folder)
    bare.default_prompt_name = None
    bare.prompts = {}
    with pytest.raises(ValueError, match="unknown prompt_name 'query'; this checkpoint has: none"):
        bare.predict(PAIRS, prompt_name="query")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": 3}, "prompts must be an object of names and texts"),
        ({"prompts": {}, "default_prompt_name": "query"}, "'query' is not among its prompts"),
    ],
)
def test_mistaken_files(settings: dict[str, Any], message: str, folder: Path) -> None:
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | settings), "utf-8")
    with pytest.raises(ConfigError, match=message):
        CrossEncoder(folder)
