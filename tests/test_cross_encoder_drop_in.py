"""CrossEncoder in place of sentence-transformers': the same calls, beside the original."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch
from torch import nn

from nomicbert import CrossEncoder
from nomicbert.runtime import reranker_calls
from nomicbert.user_warnings import TruncationWarning
from tests.support.rerankers import build_reranker
from tests.support.sameness import same
from tests.support.vocabularies import SENTENCES, WORDS

PAIRS = [(a, b) for a in SENTENCES[:3] for b in SENTENCES[2:]]
LONG = [("x", " ".join(WORDS * 9)), ("what is", "the river is long")]
BOUND = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_reranker(tmp_path_factory.mktemp("r"))


@pytest.fixture
def ours(folder: Path) -> CrossEncoder:
    return CrossEncoder(folder)


@pytest.fixture
def theirs(folder: Path) -> Any:
    return sentence_transformers.CrossEncoder(str(folder), device="cpu")


def close(found: Any, wanted: Any, bound: float = BOUND) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), rtol=0, atol=bound)


@pytest.mark.parametrize(
    "arguments",
    [
        (None,),
        ("find",),
        (None, "the fox is "),
        (None, None, 4, False, nn.Tanh()),
        (None, "deep: ", 2, None, nn.Identity(), True, False, True),
        (None, None, 32, None, None, False, True, False, "cpu"),
    ],
    ids=str,
)
def test_arguments_by_position(arguments: tuple[Any, ...], ours: CrossEncoder, theirs: Any) -> None:
    for model in (ours, theirs):
        model.prompts = {"find": "what is the river: "}
    found, wanted = (model.predict(PAIRS, *arguments) for model in (ours, theirs))
    assert type(found) is type(wanted)
    close(found, wanted)


def test_the_order_before_6(ours: CrossEncoder) -> None:
    for arguments, keywords in (
        ((4,), {"batch_size": 4}),
        ((np.int64(4), False, nn.Tanh()), {"activation_fn": nn.Tanh()}),
        ((4, False, None, False, False, True), {"convert_to_tensor": True}),
    ):
        found, wanted = ours.predict(PAIRS, *arguments), ours.predict(PAIRS, **keywords)
        assert type(found) is type(wanted)
        assert same(np.asarray(found), np.asarray(wanted))
    with pytest.raises(TypeError, match="activation_fn must be a function"):
        ours.predict(PAIRS, 4, False, 2)  # num_workers of even older releases
    with pytest.raises(TypeError, match=r"CrossEncoder.predict was given batch_size twice"):
        ours.predict(PAIRS, 4, batch_size=4)


def test_rank_by_position(ours: CrossEncoder, theirs: Any) -> None:
    found, wanted = (m.rank("deep learning", SENTENCES, 3, True) for m in (ours, theirs))
    assert [row["text"] for row in found] == [row["text"] for row in wanted]
    close([row["score"] for row in found], [row["score"] for row in wanted])
    assert [type(row["score"]) for row in found] == [float] * 3
    with pytest.raises(TypeError, match=r"takes at most 2 arguments by position .*, not 3: give"):
        ours.rank("deep learning", SENTENCES, 3, True, None)


def test_old_keywords(ours: CrossEncoder, caplog: pytest.LogCaptureFixture) -> None:
    """They count, and are logged once in a process."""
    reranker_calls._say_once.cache_clear()
    wanted = ours.predict(PAIRS, activation_fn=nn.Tanh())
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            found = ours.predict(sentences=PAIRS, activation_fct=nn.Tanh(), num_workers=2)
            assert same(found, wanted)
        rows = ours.rank("fox", SENTENCES, convert_to_tensor=True, convert_to_numpy=False)
    assert [type(row["score"]) for row in rows] == [float] * len(SENTENCES)
    said = [record.getMessage() for record in caplog.records]
    assert sorted(said) == [
        "CrossEncoder.predict: `activation_fct` is the old name of `activation_fn`",
        "CrossEncoder.predict: `num_workers` has no effect: the tokenizer has threads of its own",
        "CrossEncoder.predict: `sentences` is the old name of `inputs`",
        "CrossEncoder.rank: `convert_to_numpy` has no effect: scores are always float",
        "CrossEncoder.rank: `convert_to_tensor` has no effect: scores are always float",
    ]
    with pytest.raises(TypeError, match=r"given inputs and sentences .its old name.: give inputs"):
        ours.predict(PAIRS, sentences=PAIRS)
    with pytest.raises(TypeError, match="given activation_fn and activation_fct"):
        ours.predict(PAIRS, activation_fn=nn.Tanh(), activation_fct=nn.Tanh())
    with pytest.raises(TypeError, match=r"CrossEncoder\.rank has no keyword 'sentences'"):
        ours.rank("fox", ["a"], sentences=["a"])


@pytest.mark.parametrize(
    "inputs",
    [
        np.array(["what is", "deep learning"]),
        np.array([["what is", "deep learning"], ["fox", "the river"]]),
        np.array(["what is", "deep learning"], dtype=object),
        np.array([], dtype=str),
        [],
        ["what is", "deep learning"],
        [["what is", "deep learning"]],
        ("what is", "deep learning"),
        (("what is", "deep learning"), ("fox", "the river")),
    ],
    ids=lambda inputs: f"{type(inputs).__name__}{np.shape(inputs)}",
)
def test_forms_of_pairs(inputs: Any, ours: CrossEncoder, theirs: Any) -> None:
    assert ours.is_singular_input(inputs) is theirs.is_singular_input(inputs)
    for keywords in ({}, {"convert_to_tensor": True}, {"convert_to_numpy": False}):
        found, wanted = (model.predict(inputs, **keywords) for model in (ours, theirs))
        assert type(found) is type(wanted)
        assert np.shape(found) == np.shape(wanted)
        close(found, wanted)


@pytest.mark.filterwarnings("ignore::nomicbert.user_warnings.TruncationWarning")
def test_a_limit_of_one_call(ours: CrossEncoder, theirs: Any) -> None:
    stated = {"text": {"max_length": 9, "truncation": True}}
    wanted = theirs.predict(LONG, processing_kwargs=stated)
    close(ours.predict(LONG, processing_kwargs=stated), wanted)
    close(ours.predict(LONG, max_length=9), wanted)
    close([row["score"] for row in ours.rank("x", [LONG[0][1]], max_length=9)], wanted[:1])
    assert np.abs(ours.predict(LONG) - wanted).max() > 1e-3
    assert ours.max_seq_length == 96
    for keywords, error, message in (
        ({"max_length": 97}, ValueError, "max_length must be 1 to 96, not 97"),
        ({"max_length": 8, "processing_kwargs": stated}, ValueError, "not both"),
        ({"processing_kwargs": {"image": {}}}, TypeError, r"\['image'\] is not supported"),
        (
            {"processing_kwargs": {"text": {"truncation": "only_first"}}},
            ValueError,
            r"\['truncation'\] must be True, not 'only_first'",
        ),
    ):
        with pytest.raises(error, match=message):
            ours.predict(LONG, **keywords)


@pytest.mark.parametrize("prompt", [None, "deep: "])
def test_token_ids(prompt: str | None, ours: CrossEncoder, theirs: Any) -> None:
    found, wanted = (model.preprocess(PAIRS, prompt=prompt) for model in (ours, theirs))
    for name in ("input_ids", "token_type_ids", "attention_mask"):
        assert torch.equal(found[name], wanted[name])
    assert found["modality"] == "text"
    assert ("prompt_length" in found) is (prompt is not None)
    with pytest.warns(TruncationWarning, match="1 of 2 pairs were longer than 96 tokens"):
        found = ours.tokenize(LONG)
    assert torch.equal(found["input_ids"], theirs.preprocess(LONG)["input_ids"])
    with pytest.raises(TypeError, match="inputs must be a list of pairs, not one pair"):
        ours.preprocess(("a", "b"))


def test_processes_that_stay(ours: CrossEncoder) -> None:
    """Across calls, and for a model that has changed."""
    wanted = ours.predict(PAIRS)
    pool = ours.start_multi_process_pool(["cpu", "cpu"])
    try:
        close(ours.predict(PAIRS, pool=pool, chunk_size=2), wanted)
        found = ours.predict(PAIRS, pool=pool, convert_to_tensor=True)
        assert isinstance(found, torch.Tensor)
        close(found, wanted)
        assert np.ndim(ours.predict(PAIRS[0], pool=pool)) == 0
        rows = ours.rank("fox", SENTENCES, pool=pool)
        assert [row["corpus_id"] for row in rows] == [
            row["corpus_id"] for row in ours.rank("fox", SENTENCES)
        ]
        with torch.no_grad():
            ours.model.classifier.bias += 1
        changed = ours.predict(PAIRS)
        assert np.abs(changed - wanted).max() > 1e-2
        close(ours.predict(PAIRS, pool=pool), changed)
        with pytest.raises(ValueError, match="list of devices as device, or pool, not both"):
            ours.predict(PAIRS, pool=pool, device=["cpu"])
    finally:
        ours.stop_multi_process_pool(pool)
    with pytest.raises(ValueError, match="the pool is closed"):
        ours.predict(PAIRS, pool=pool)
    with pytest.raises(ValueError, match="chunk_size must be at least 1, not 0"):
        ours.predict(PAIRS, chunk_size=0)


def test_names_of_the_object(ours: CrossEncoder, theirs: Any, tmp_path: Path) -> None:
    assert ours.config.hidden_size == theirs.config.hidden_size
    assert ours.config.classifier_dropout is theirs.config.classifier_dropout is None
    assert ours.get_max_seq_length() == ours.max_length == theirs.max_seq_length == 96
    assert ours.dtype == theirs.dtype == torch.float32
    assert ours.num_labels == theirs.num_labels
    assert type(ours.activation_fn) is type(theirs.activation_fn) is nn.Sigmoid
    assert (ours.supports("text"), ours.modalities) == (True, theirs.modalities)
    assert ours.train().model.training
    assert not ours.eval().training
    assert ours.to("cpu") is ours
    names = {name for name, _ in ours.named_parameters()}
    assert names == dict(ours.model.named_parameters()).keys()
    with pytest.warns(DeprecationWarning, match="default_activation_function. property") as told:
        assert ours.default_activation_function is ours.activation_fn
    assert told[0].filename == __file__
    ours.save(tmp_path, model_name="mine/reranker", train_datasets=None, safe_serialization=None)
    assert ours.model_card_data.model_id == "mine/reranker"
    assert (tmp_path / "README.md").is_file()
    assert same(CrossEncoder(tmp_path).predict(PAIRS), ours.predict(PAIRS))
    ours.save_pretrained(tmp_path / "bare", create_model_card=False)
    assert not (tmp_path / "bare/README.md").exists()
    with pytest.raises(ValueError, match="safe_serialization=False is not supported"):
        ours.save_pretrained(tmp_path / "c", safe_serialization=False)
    assert not (tmp_path / "c").exists()


def test_it_is_no_list(ours: CrossEncoder) -> None:
    with pytest.raises(TypeError, match=r"model\[0\].model take reranker.model"):
        ours[0]
    with pytest.raises(TypeError, match="not iterable"):
        iter(ours)  # type: ignore[call-overload]


def test_a_copy_has_parameters_of_its_own(ours: CrossEncoder) -> None:
    wanted = ours.predict(PAIRS)
    again = copy.deepcopy(ours)
    assert same(again.predict(PAIRS), wanted)
    with torch.no_grad():
        again.model.classifier.bias += 1
    again.activation_fn = nn.Identity()
    assert np.abs(again.predict(PAIRS) - wanted).max() > 0.1
    assert same(ours.predict(PAIRS), wanted)


def test_scores_of_a_16_bit_model_are_float32(ours: CrossEncoder) -> None:
    """The activation is not computed in 16 bits: near 1, scores would have 256 steps."""
    wanted = ours.predict(PAIRS, activation_fn=nn.Identity())
    ours.bfloat16()
    assert ours.dtype == torch.bfloat16
    logits = ours.predict(PAIRS, activation_fn=nn.Identity())
    assert logits.dtype == np.float32
    close(logits, wanted, 0.1)
    found = ours.predict(PAIRS, activation_fn=lambda x: torch.sigmoid(x + 9))
    assert found.dtype == np.float32
    close(found, 1 / (1 + np.exp(-(logits.astype(np.float64) + 9))), 1e-6)
    assert len(np.unique(found)) == len(np.unique(logits)) > 3
