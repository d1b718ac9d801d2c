"""What a request wants scored -> its job: ids, boundaries, cuts, estimates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nomicbert.errors import TokenizerError
from nomicbert.serve import pairs as pairs_module
from nomicbert.serve import scorers
from nomicbert.serve.engine import calibrate
from nomicbert.serve.engine.jobs import Piece
from nomicbert.serve.http.problems import Problem, Reason
from nomicbert.serve.pairs import WantedPairs, tokenise_pairs
from nomicbert.serve.scorers import ServedClassifier, ServedReranker, ServedScorer
from nomicbert.serve.served import ServedEmbedder
from tests.support import scoring
from tests.support.engines import load_models
from tests.support.scoring import CLASSIFIER, EMBEDDER, LONG, ONE, PROMPTED, QUERY, UNTYPED


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return scoring.build(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def served(folders: dict[str, Path]) -> dict[str, ServedScorer]:
    names = (ONE, UNTYPED, PROMPTED, CLASSIFIER)
    found = load_models(*(folders[name] for name in names)).models
    return {one.name: one for one in found if isinstance(one, ServedScorer)}


def want(model: ServedScorer, inputs: Any, **changes: Any) -> WantedPairs:
    values: dict[str, Any] = {
        "field": "documents", "on_long": "end", "max_length": model.max_length
    }  # fmt: skip
    return WantedPairs(model=model, inputs=inputs, **(values | changes))


def test_kinds_of_models(folders: dict[str, Path]) -> None:
    loaded = load_models(*folders.values(), devices=("cpu", "cpu"))
    kinds = {
        model.name: (type(model), model.index, list(folders)[model.index])
        for model in loaded.models
    }
    for name, (kind, _, place) in kinds.items():
        expected = {EMBEDDER: ServedEmbedder, CLASSIFIER: ServedClassifier}
        assert (kind, place) == (expected.get(name, ServedReranker), name)
    for model, first, copy in zip(loaded.models, *loaded.replicas, strict=True):
        assert first.model is not copy.model
        if isinstance(model, ServedScorer):
            assert first.model is model.reranker.model
            assert not first.model.training
            assert model.shortest == 4
        job = model.self_test_job()
        for replica in (first, copy):
            (row,) = replica.rows([Piece(job, 0)])
            assert model.is_same(row)
            assert not model.is_same(row + 1)


def test_a_measured_budget(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[tuple[int, ...], int]] = []

    def measured(compute: Any, ids: list[int]) -> tuple[int, float]:
        seen.append((tuple(compute([ids, ids]).shape), len(ids)))
        return 512, 1234.5

    monkeypatch.setattr(calibrate, "measure_budget", measured)
    loaded = load_models(folders[CLASSIFIER], max_batch_tokens=None, max_length=50)
    assert (loaded.budgets, loaded.rates) == ([512], [1234.5])
    assert seen == [((2, 3), 50)]


def test_ids_and_boundaries(served: dict[str, ServedScorer]) -> None:
    model = served[CLASSIFIER]
    pairs = [("a fox", "dog"), ("", ""), (LONG, "x"), ("x", LONG)]
    made = tokenise_pairs(want(model, [LONG, pairs[0], "a fox", *pairs[1:]]))
    ids, types, cut = model.tokenizer.encode_pairs(pairs, 96)
    texts, _ = model.tokenizer.encode(["a fox", LONG], 96)
    assert made.job.pieces == [texts[1], ids[0], texts[0], *ids[1:]]
    counts = [kinds.count(0) for kinds in types]
    assert made.job.splits == [96, counts[0], len(texts[0]), *counts[1:]]
    assert counts[0] < len(ids[0])
    assert cut == [2, 3]
    assert made.cut == [0, 4, 5]
    assert made.lengths == list(map(len, made.job.pieces))
    assert (made.job.finish, made.job.join, made.job.group.skipped) == (None, None, 0)


def test_without_token_types(served: dict[str, ServedScorer]) -> None:
    job = tokenise_pairs(want(served[UNTYPED], [("a fox", "dog")])).job
    assert job.splits == [len(job.pieces[0])]


def test_a_prompt(served: dict[str, ServedScorer]) -> None:
    model = served[PROMPTED]
    assert model.default_prompt == "what is the river: "
    made = tokenise_pairs(want(model, [("fox", "dog")]))
    ids, _, _ = model.tokenizer.encode_pairs([("what is the river: fox", "dog")], 96)
    assert made.job.pieces == ids
    assert made.job.group.skipped > 3


def test_pairs_that_are_too_long(served: dict[str, ServedScorer]) -> None:
    model = served[ONE]
    pairs = [("x", "x"), (QUERY, LONG)]
    whole = len(model.tokenizer.encode_pairs(pairs[1:], 10_000)[0][0])
    with pytest.raises(Problem) as caught:
        tokenise_pairs(want(model, pairs, on_long="error", max_length=whole - 1))
    assert caught.value.reason is Reason.TOO_LONG
    assert caught.value.param == "documents"
    assert caught.value.message == (
        f"`documents` must have at most {whole - 1} tokens. Given: {whole} in pair 1"
    )
    assert tokenise_pairs(want(model, pairs, on_long="error", max_length=whole)).cut == []
    # what the request itself wants cut is reported, but no error
    made = tokenise_pairs(want(model, pairs, on_long="error", max_second=4))
    assert made.cut == [1]
    most = len(made.job.pieces[1])
    assert (
        tokenise_pairs(
            want(model, pairs, on_long="error", max_second=4, max_length=most)
        ).job.pieces
        == made.job.pieces
    )
    with pytest.raises(Problem, match=f"at most {most - 1} tokens. Given: {most} in pair 1"):
        tokenise_pairs(want(model, pairs, on_long="error", max_second=4, max_length=most - 1))
    huge = [("x", "word " * 30_000)]
    with pytest.raises(Problem, match="Given: more in pair 0"):
        tokenise_pairs(want(model, huge, on_long="error"))


def test_a_long_document_that_only_its_own_limit_cuts(served: dict[str, ServedScorer]) -> None:
    pairs = [(QUERY, "river " * 20_000)]
    made = tokenise_pairs(want(served[ONE], pairs, on_long="error", max_second=4))
    assert made.cut == [0]
    with pytest.raises(Problem, match="Given: more in pair 0"):
        tokenise_pairs(want(served[ONE], pairs, on_long="error"))


def test_a_text_of_several_pairs_is_looked_at_once(
    served: dict[str, ServedScorer], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []
    monkeypatch.setattr(pairs_module, "check_text", lambda _, text: found.append(text))
    tokenise_pairs(want(served[ONE], [(QUERY, "a"), (QUERY, "b"), (QUERY, "a")]))
    assert found == [QUERY, "a", "b"]


def test_what_is_no_text(served: dict[str, ServedScorer]) -> None:
    for bad in (("a", "\ud800"), ("\udc00", "b"), "\ud800"):
        with pytest.raises(Problem, match=r"documents\[1\]") as caught:
            tokenise_pairs(want(served[ONE], [("a", "b"), bad]))
        assert caught.value.reason is Reason.INVALID


def test_estimates(served: dict[str, ServedScorer]) -> None:
    model = served[ONE]
    assert want(model, [("a" * 40, "b" * 40)]).estimate() == 4 + 20
    assert want(model, [("a" * 4000, "b"), "a" * 40]).estimate() == 96 + 4 + 10
    assert want(model, [("a" * 40, "b" * 40), "a"]).characters() == 81 + 2 * 16
    (three,) = (served[name] for name in (CLASSIFIER,))
    one = want(model, [("a", "b")] * 10).answer_bytes()
    assert 2.5 * one < want(three, [("a", "b")] * 10).answer_bytes() < 3.5 * one
    assert want(model, [("a", "b")] * 10, echoed=1000).answer_bytes() == one + 1000


def test_token_types_in_another_order(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job holds one boundary per pair: a checkpoint that needs more is refused."""
    original = scorers.CrossEncoder.tokenizer.fget

    def swapped(self: Any) -> Any:
        tokenizer = original(self)
        monkeypatch.setattr(
            type(tokenizer), "_pair_form", lambda _: (([101], [102], [102]), [1, 1, 1, 0, 0])
        )
        return tokenizer

    monkeypatch.setattr(scorers.CrossEncoder, "tokenizer", property(swapped))
    with pytest.raises(TokenizerError, match=r"one gives a pair the token types \[1, 1, 1, 0, 0\]"):
        load_models(folders[ONE])
