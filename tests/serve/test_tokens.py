"""What a request wants -> its job: limits, windows, reports, prompts and token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nomicbert.serve.engine.engine import Engine
from nomicbert.serve.engine.jobs import TokenMeans, WindowMeans
from nomicbert.serve.http.problems import Problem, Reason
from nomicbert.serve.models import Loaded
from nomicbert.serve.served import ServedEmbedder
from nomicbert.serve.tokens import tokenise
from nomicbert.vectors.pooling import Finish
from tests.support.checkpoints import build_checkpoint
from tests.support.engines import load_models, rows_of, run, same_rows, want
from tests.support.module_folders import build_modules
from tests.support.sameness import HAS_ONEDNN
from tests.support.vocabularies import SENTENCES

LONG = "the red fox " * 20  # 60 tokens


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return load_models(build_checkpoint(tmp_path_factory.mktemp("nomic"), "nomic-v1.5"))


@pytest.fixture(scope="module")
def model(loaded: Loaded) -> ServedEmbedder:
    return loaded.models[0]


def problem(model: ServedEmbedder, inputs: Any, **changes: Any) -> Problem:
    with pytest.raises(Problem) as caught:
        tokenise(want(model, inputs, **changes))
    return caught.value


def test_plain_texts(model: ServedEmbedder) -> None:
    made = tokenise(want(model, ["fox", LONG, "a dog"], max_length=10, prompt="the "))
    pieces = made.job.pieces
    assert made.lengths == [4, 10, 5] == list(map(len, pieces))
    assert made.cut == [1]
    assert made.whole is None
    assert made.job.finish == Finish()
    ids, _ = model.tokenizer.encode(["the fox", "the " + LONG, "the a dog"], 10)
    assert pieces == ids
    hidden = tokenise(want(model, ["fox"], hidden=True)).job
    assert (hidden.finish, hidden.group.hidden, made.job.group.hidden) == (None, True, False)


def test_a_report_has_the_lengths_of_whole_texts(model: ServedEmbedder) -> None:
    texts = [LONG, "fox", LONG + "fox", ""]
    for policy, lengths, cut in (
        ("end", [20, 3, 20, 2], [0, 2]),
        ("chunk", [60 + 4 * 2, 3, 61 + 4 * 2, 2], []),
        ("mean", [60 + 6 * 2 + 5 * 8, 3, 61 + 6 * 2 + 5 * 8, 2], []),
    ):
        made = tokenise(want(model, texts, on_long=policy, max_length=20, report=True))
        assert made.whole == [62, 3, 63, 2]
        assert made.lengths == lengths
        assert made.cut == cut
    fits = tokenise(want(model, texts, on_long="error", max_length=63, report=True))
    assert fits.whole == fits.lengths == [62, 3, 63, 2]


def test_a_text_that_is_too_long(model: ServedEmbedder) -> None:
    found = problem(model, ["a", LONG, LONG], on_long="error", max_length=61)
    assert found.reason is Reason.TOO_LONG
    assert found.param == "input"
    assert found.message == "`input` must have at most 61 tokens. Given: 62 in text 1"
    # with a prompt that alone makes it too long
    assert problem(model, [LONG], on_long="error", max_length=62, prompt="a ").message.endswith(
        "at most 62 tokens. Given: 63 in text 0"
    )
    # a limit for whole texts, without prompt and special tokens
    most: dict[str, Any] = {"on_long": "mean", "max_length": 20, "prompt": "a "}
    found = problem(model, ["fox", LONG], most_tokens=59, **most)
    assert found.message == "`input` must have at most 59 tokens. Given: 60 in text 1"
    assert tokenise(want(model, ["fox", LONG], most_tokens=60, **most)).job.pieces


@pytest.mark.parametrize("policy", ["error", "end", "chunk", "mean"])
def test_what_is_no_text(model: ServedEmbedder, policy: str) -> None:
    found = problem(model, ["fox", "\ud800 fox"], on_long=policy)
    assert found.reason is Reason.INVALID
    assert found.message.startswith("input[1] ")
    assert found.param == "input"


def test_windows(model: ServedEmbedder) -> None:
    finish = Finish(16)
    for policy, join, own in (
        ("mean", WindowMeans((1, 6)), Finish(16, normalize=True)),
        ("chunk", TokenMeans((1, 4), (3, 20, 20, 20, 8), 0, finish), None),
    ):
        made = tokenise(
            want(model, ["fox", LONG], on_long=policy, max_length=20, finish=finish)
        ).job
        assert (made.join, made.finish) == (join, own)
        one = tokenise(want(model, ["fox", "a"], on_long=policy, finish=finish)).job
        assert (one.join, one.finish) == (None, own or finish)


def test_windows_that_cannot_be(model: ServedEmbedder, tmp_path: Path) -> None:
    found = problem(model, [LONG], on_long="chunk", max_length=20, prompt="the " * 18)
    assert found.reason is Reason.INVALID
    assert "alone fills windows of 20 tokens" in found.message
    (cls,) = load_models(build_checkpoint(tmp_path / "cls", "bge-en")).models
    found = problem(cls, ["fox"], on_long="chunk")
    assert found.reason is Reason.INVALID
    assert "this model pools by cls" in found.message
    assert tokenise(want(cls, [LONG], on_long="mean", max_length=20)).job.join is not None


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([5, 6], "without this model's special tokens [101] ... [102]"),
        ([101, 5, 6], "without this model's special"),
        ([5, 6, 102], "without this model's special"),
        ([], "without this model's special"),
        ([101], "without this model's special"),
        ([101, 384, 102], "has token ids outside of 0 to 383"),
        ([101, -1, 102], "has token ids outside of 0 to 383"),
    ],
)
def test_ids_of_another_tokenizer(model: ServedEmbedder, ids: list[int], message: str) -> None:
    found = problem(model, [[101, 102], ids])
    assert found.reason is Reason.INVALID
    assert message in found.message
    assert found.message.startswith("input[1] ")
    assert found.param == "input"


def test_limits_of_ids(model: ServedEmbedder) -> None:
    ids = [101, *[7] * 18, 102]
    hidden = tokenise(want(model, [ids], hidden=True)).job
    assert (hidden.finish, hidden.group.hidden) == (None, True)
    for policy in ("error", "end", "chunk", "mean"):
        made = tokenise(want(model, [ids], on_long=policy, max_length=20, report=True))
        assert (made.job.pieces, made.lengths, made.whole, made.cut) == ([ids], [20], [20], [])
        found = problem(model, [[101, 102], ids], on_long=policy, max_length=19)
        assert found.reason is Reason.TOO_LONG
        assert "at most 19 tokens. Given: 20 in text 1" in found.message
    assert "a prompt cannot be put before token ids" in problem(model, [ids], prompt="a").message


@pytest.mark.skipif(not HAS_ONEDNN, reason="without oneDNN bits depend on the batch")
def test_ids_have_the_vectors_of_their_texts(loaded: Loaded, model: ServedEmbedder) -> None:
    ids, _ = model.tokenizer.encode(SENTENCES, 100)

    async def scenario(engine: Engine) -> None:
        for hidden in (False, True):
            truth = await rows_of(engine, want(model, SENTENCES, hidden=hidden))
            assert same_rows(await rows_of(engine, want(model, ids, hidden=hidden)), truth)

    run(loaded, scenario)


def test_doubled_prompts(model: ServedEmbedder) -> None:
    texts = ["search_query: fox", "search_document: dog", " search_query: a", "fox"]
    assert tokenise(want(model, texts, prompt="search_query: ")).doubled == 2
    assert tokenise(want(model, texts, prompt="own: ", on_long="mean")).doubled == 2
    assert tokenise(want(model, texts)).doubled == 0
    inside = [f"a {prompt}" for prompt in model.embedder.prompts.values()]
    assert len(inside) >= 4
    assert tokenise(want(model, inside, prompt="own: ")).doubled == 0


def test_prompts_that_are_left_out(tmp_path: Path) -> None:
    build_modules(tmp_path / "a", [], "e5", pooling_mode="mean", include_prompt=False)
    (model,) = load_models(tmp_path / "a").models
    for policy in ("end", "mean", "chunk"):
        for prompt, skipped in (("", 0), ("the fox ", 3)):
            wanted = want(model, [LONG, "a"], prompt=prompt, on_long=policy, max_length=20)
            assert tokenise(wanted).job.group.skipped == skipped
    assert tokenise(want(model, ["a"], prompt="the fox ", hidden=True)).job.group.skipped == 0
    assert tokenise(want(model, ["a"], prompt="the fox ", max_length=3)).job.group.skipped == 2
