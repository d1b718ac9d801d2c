"""CrossEncoder: scores of pairs against sentence-transformers on the same folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch
import transformers

from nomicbert import ConfigWarning, CrossEncoder
from nomicbert.errors import CheckpointError, ConfigError, TextError
from nomicbert.modeling.packing import PackedBatch
from nomicbert.runtime import pairs, workers
from nomicbert.runtime.dispatch import Dispatcher
from nomicbert.user_warnings import TruncationWarning
from tests.support.checkpoints import build_checkpoint
from tests.support.rerankers import build_reranker
from tests.support.sameness import same
from tests.support.vocabularies import SENTENCES, WORDS

LONG = " ".join(WORDS * 9)
PAIRS = [(a, b) for a in SENTENCES[:4] for b in SENTENCES[2:]]
BOUND = 1e-5  # logits of a tiny model with redrawn weights, fp32


def judge(folder: Path) -> sentence_transformers.CrossEncoder:
    return sentence_transformers.CrossEncoder(str(folder), device="cpu")


@pytest.mark.parametrize("labels", [1, 3])
def test_scores_equal_sentence_transformers(labels: int, tmp_path: Path) -> None:
    folder = build_reranker(tmp_path, labels)
    model, truth = CrossEncoder(folder), judge(folder)
    found, wanted = model.predict(PAIRS), truth.predict(PAIRS)
    assert found.shape == ((len(PAIRS),) if labels == 1 else (len(PAIRS), 3))
    assert found.dtype == np.float32
    assert np.ptp(found) > 0.05  # scores differ between pairs
    np.testing.assert_allclose(found, wanted, atol=BOUND, rtol=0)
    if labels == 3:
        found = model.predict(PAIRS, apply_softmax=True)
        np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
        wanted = truth.predict(PAIRS, apply_softmax=True)
        np.testing.assert_allclose(found, wanted, atol=BOUND, rtol=0)


def test_pairs_that_are_too_long_lose_the_same_tokens(tmp_path: Path) -> None:
    """Truncation removes tokens from the end of the longer text, one at a time."""
    folder = build_reranker(tmp_path)
    model, truth = CrossEncoder(folder), judge(folder)
    assert model.max_seq_length == 96
    pairs = [("x", LONG), (LONG, "what is"), (LONG, LONG[:500]), (LONG[:400], LONG), ("x", "x")]
    with pytest.warns(TruncationWarning, match="4 of 5 pairs were longer than 96 tokens"):
        found = model.predict(pairs)
    np.testing.assert_allclose(found, truth.predict(pairs), atol=BOUND, rtol=0)


def test_other_pairs_do_not_matter(tmp_path: Path) -> None:
    model = CrossEncoder(build_reranker(tmp_path))
    together = model.predict(PAIRS)
    for options in ({"batch_size": 1}, {"batch_tokens": 40}, {"show_progress_bar": False}):
        assert same(model.predict(PAIRS, **options), together)
    alone = [model.predict(pair) for pair in PAIRS]
    assert all(np.ndim(score) == 0 for score in alone)
    assert same(np.array(alone), together)


def test_forms_of_the_result(tmp_path: Path) -> None:
    model = CrossEncoder(build_reranker(tmp_path))
    wanted = model.predict(PAIRS)
    tensor = model.predict(iter(PAIRS), convert_to_tensor=True)
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_array_equal(tensor.numpy(), wanted)
    rows = model.predict([list(pair) for pair in PAIRS], convert_to_numpy=False)
    assert [float(row) for row in rows] == wanted.tolist()
    assert model.predict([]).shape == (0,)
    raw = model.predict(PAIRS, activation_fn=lambda x: x)
    np.testing.assert_allclose(1 / (1 + np.exp(-raw)), wanted, atol=1e-6)


TANH = "torch.nn.modules.activation.Tanh"


@pytest.mark.parametrize(
    "keys",
    [
        {"sentence_transformers": {"activation_fn": TANH}},
        {"sbert_ce_default_activation_function": TANH},
        None,
    ],
)
def test_the_activation_is_the_checkpoints(keys: dict[str, Any] | None, tmp_path: Path) -> None:
    """As sentence-transformers 4, 3 and (in a separate file) 6 write it."""
    folder = build_reranker(tmp_path / "a", **(keys or {}))
    if keys is None:
        truth = judge(folder)
        truth.activation_fn = torch.nn.Tanh()
        folder = tmp_path / "b"
        truth.save_pretrained(str(folder), create_model_card=False)
    model = CrossEncoder(folder)
    raw = model.predict(PAIRS, activation_fn=lambda x: x)
    np.testing.assert_allclose(model.predict(PAIRS), np.tanh(raw), atol=1e-6)
    wanted = judge(folder).predict(PAIRS)
    np.testing.assert_allclose(model.predict(PAIRS), wanted, atol=BOUND)
    model.save_pretrained(tmp_path / "c")
    np.testing.assert_array_equal(CrossEncoder(tmp_path / "c").predict(PAIRS), model.predict(PAIRS))
    np.testing.assert_allclose(judge(tmp_path / "c").predict(PAIRS), wanted, atol=BOUND)


def test_an_unknown_activation_is_refused(tmp_path: Path) -> None:
    folder = build_reranker(tmp_path, sbert_ce_default_activation_function="my.module.Squash")
    with pytest.raises(ConfigError, match=r"activation_fn = 'my.module.Squash' is not supported"):
        CrossEncoder(folder)


def test_rank_equals_sentence_transformers(tmp_path: Path) -> None:
    folder = build_reranker(tmp_path)
    model, truth = CrossEncoder(folder), judge(folder)
    for options in ({}, {"top_k": 3}, {"return_documents": True}):
        found = model.rank("deep learning", SENTENCES, **options)
        wanted = truth.rank("deep learning", SENTENCES, **options)
        assert [row.keys() for row in found] == [row.keys() for row in wanted]
        for mine, other in zip(found, wanted, strict=True):
            assert mine["corpus_id"] == other["corpus_id"]
            assert mine.get("text") == other.get("text")
            assert mine["score"] == pytest.approx(other["score"], abs=BOUND)
    assert model.rank("deep learning", []) == []


def test_rank_needs_one_label(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rank needs one score a pair, .* gives 3: use predict"):
        CrossEncoder(build_reranker(tmp_path, 3)).rank("a", ["b"])


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ("just a text", TypeError, r"not one text: give \(query, text\)"),
        ([("a", "b"), ("c",)], TypeError, r"input 1 must be a pair of str, not \('c',\)"),
        ([("a", "b"), "cd"], TypeError, "input 1 must be a pair of str, not 'cd'"),
        ([("a", 3)], TypeError, "input 0 must be a pair of str"),
        ([1, 2], TypeError, "input 0 must be a pair of str, not 1"),
        ([{"q": "a", "d": "b"}], TypeError, "input 0 must be a pair of str"),
        ([("a", "b"), ("a", "\ud800")], TextError, "1 is not valid Unicode"),
    ],
)
def test_inputs_that_are_not_pairs(inputs: Any, error: type, message: str, tmp_path: Path) -> None:
    model = CrossEncoder(build_reranker(tmp_path))
    with pytest.raises(error, match=message):
        model.predict(inputs)


def test_an_invalid_length(tmp_path: Path) -> None:
    model = CrossEncoder(build_reranker(tmp_path))
    with pytest.raises(ValueError, match="max_seq_length must be 1 to 96, not 97"):
        model.max_seq_length = 97
    model.max_seq_length = 3
    with pytest.raises(ValueError, match="a pair needs more than 3 tokens, not 3"):
        model.predict(PAIRS)


def test_an_embedding_checkpoint_is_no_reranker_unless_asked(tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "nomic-v1.5")
    with pytest.raises(ConfigError, match="holds an embedding model: load it with Embedder"):
        CrossEncoder(tmp_path)
    model = CrossEncoder(tmp_path, num_labels=1)
    assert model.num_labels == 1
    assert np.isfinite(model.predict(PAIRS)).all()
    (tmp_path / "modules.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"no head for SequenceClassification \(it has none\)"
    ):
        CrossEncoder(tmp_path)


def test_saved_and_loaded_by_both(tmp_path: Path) -> None:
    model = CrossEncoder(build_reranker(tmp_path / "a"))
    wanted = model.predict(PAIRS)
    model.save_pretrained(tmp_path / "b")
    np.testing.assert_array_equal(CrossEncoder(tmp_path / "b").predict(PAIRS), wanted)
    np.testing.assert_allclose(judge(tmp_path / "b").predict(PAIRS), wanted, atol=BOUND, rtol=0)


def test_long_texts_are_cut_before_they_are_paired(tmp_path: Path) -> None:
    """The ids equal transformers', whichever text is longer."""
    model = CrossEncoder(build_reranker(tmp_path))
    judge_of_ids = transformers.AutoTokenizer.from_pretrained(tmp_path)
    lengths = (0, 1, 40, 46, 47, 92, 93, 94, 900)
    texts = [" ".join((WORDS * 80)[:length]) for length in lengths]
    pairs = [(a, b) for a in texts for b in texts]
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    whole = judge_of_ids(first, second)["input_ids"]
    for limit in (95, 96, 4):
        ids, types, cut = model.tokenizer.encode_pairs(pairs, limit)
        wanted = judge_of_ids(first, second, truncation=True, max_length=limit)
        assert ids == wanted["input_ids"]
        assert types == wanted["token_type_ids"]
        assert cut == [i for i, row in enumerate(whole) if len(row) > limit]


def test_a_limit_for_the_second_text(tmp_path: Path) -> None:
    """It is applied before the limit of the pair: as for a second text that is shorter."""
    tokenizer = CrossEncoder(build_reranker(tmp_path)).tokenizer
    lengths = (0, 1, 40, 46, 93, 900)  # words, which are one token each
    texts = [" ".join((WORDS * 80)[:length]) for length in lengths]
    pairs = [(a, b) for a in texts for b in texts]
    for limit in (96, 20):
        for most in (1, 5, 46, 92, 93, 500, 10**9):
            shorter = [(a, " ".join(b.split()[:most])) for a, b in pairs]
            ids, types, cut = tokenizer.encode_pairs(pairs, limit, most)
            own_ids, own_types, own_cut = tokenizer.encode_pairs(shorter, limit)
            assert (ids, types) == (own_ids, own_types)
            long = {i for i, (_, b) in enumerate(pairs) if len(b.split()) > most}
            assert cut == sorted(long | {*own_cut})


def test_tokens_added_later_are_used(tmp_path: Path) -> None:
    model = CrossEncoder(build_reranker(tmp_path))
    before = model.tokenizer.encode_pairs([("zzqq", "a")], 20)[0][0]
    model.tokenizer.rust.add_tokens(["zzqq"])
    after = model.tokenizer.encode_pairs([("zzqq", "a")], 20)[0][0]
    assert len(after) == 5 < len(before)


def test_types_only_where_the_checkpoint_has_them(tmp_path: Path) -> None:
    folder = build_reranker(tmp_path)
    path = folder / "tokenizer_config.json"
    stated = json.loads(path.read_text(encoding="utf-8"))
    with_types = CrossEncoder(folder).predict(PAIRS)
    inputs = {"model_input_names": ["input_ids", "attention_mask"]}
    path.write_text(json.dumps({**stated, **inputs}), encoding="utf-8")
    found = CrossEncoder(folder).predict(PAIRS)
    np.testing.assert_allclose(found, judge(folder).predict(PAIRS), atol=BOUND, rtol=0)
    assert np.abs(found - with_types).max() > 0.01


def test_changed_settings_are_saved(tmp_path: Path) -> None:
    model = CrossEncoder(build_reranker(tmp_path / "a"))
    model.max_seq_length = 24
    model.activation_fn = torch.nn.Tanh()
    pairs = [("x", LONG)]
    with pytest.warns(TruncationWarning):
        wanted = model.predict(pairs)
    model.save_pretrained(tmp_path / "b")
    again = CrossEncoder(tmp_path / "b")
    assert again.max_seq_length == 24
    with pytest.warns(TruncationWarning):
        np.testing.assert_array_equal(again.predict(pairs), wanted)
    np.testing.assert_allclose(judge(tmp_path / "b").predict(pairs), wanted, atol=BOUND)
    model.activation_fn = lambda x: x + 1
    with pytest.warns(
        ConfigWarning, match=r"activation_fn has no name in torch\.nn and is not sav"
    ):
        model.save_pretrained(tmp_path / "b")


def test_activations_of_every_kind(tmp_path: Path) -> None:
    """In-place activations and ones with parameters also work on inference tensors."""
    model = CrossEncoder(build_reranker(tmp_path))
    raw = model.predict(PAIRS, activation_fn=lambda x: x)
    found = model.predict(PAIRS, activation_fn=torch.nn.ReLU(inplace=True))
    np.testing.assert_array_equal(found, np.maximum(raw, 0))
    scale = torch.nn.Linear(1, 1)
    found = model.predict(PAIRS, activation_fn=scale, convert_to_tensor=True)
    assert not found.requires_grad
    wanted = scale.weight.item() * raw + scale.bias.item()
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-6)


@pytest.mark.parametrize("name", ["batch_size", "batch_tokens"])
def test_batches_of_size_0(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
        CrossEncoder(build_reranker(tmp_path)).predict(PAIRS, **{name: 0})


@pytest.mark.parametrize("labels", [1, 3])
def test_a_batch_that_does_not_fit_is_halved(
    labels: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = CrossEncoder(build_reranker(tmp_path, labels))
    wanted = model.predict(PAIRS)
    packed_logits, tokens, room = model.model.packed_logits, [], 120

    def full(batch: PackedBatch, *given: Any) -> torch.Tensor:
        tokens.append(sum(batch.lengths))
        if tokens[-1] > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return packed_logits(batch, *given)

    model.model.packed_logits = full  # type: ignore[method-assign]
    assert same(model.predict(PAIRS), wanted)
    assert tokens[0] > room  # all pairs at first
    assert sum(n for n in tokens if n <= room) == tokens[0]  # and then each pair once
    said = [record.args[0] for record in caplog.records if "does not fit" in record.message]  # type: ignore[index]
    assert said == [n for n in tokens if n > room]
    room = 5
    with pytest.raises(torch.OutOfMemoryError):
        model.predict(("what is", "the river is long"))


def test_several_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a few pairs, so that both devices get some."""
    model = CrossEncoder(build_reranker(tmp_path, 3))
    monkeypatch.setattr(workers, "LEAST_CHARACTERS", 60)
    started, start = [], Dispatcher._start

    def noted(self: Dispatcher, names: Any) -> None:
        started.append(len(names))
        start(self, names)

    monkeypatch.setattr(Dispatcher, "_start", noted)
    pairs = [*PAIRS, ("x", LONG)]
    with pytest.warns(TruncationWarning, match=f"1 of {len(pairs)} pairs were longer") as told:
        wanted = model.predict(pairs, apply_softmax=True)
    assert len(told) == 1
    with pytest.warns(TruncationWarning) as told:
        found = model.predict(pairs, apply_softmax=True, device=["cpu", "cpu"])
    assert len(told) == 1
    assert told[0].filename == __file__
    assert started == [2]
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert model.predict([], device=["cpu", "cpu"]).shape == (0, 3)
    with pytest.raises(ValueError, match="device must be one device's name or a list of them"):
        model.predict(pairs, device=[])


def test_batches_are_those_of_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = CrossEncoder(build_reranker(tmp_path))
    sizes = []
    packed_logits = model.model.packed_logits

    def noted(batch: PackedBatch, *given: Any) -> torch.Tensor:
        sizes.append(sum(batch.lengths))
        return packed_logits(batch, *given)

    model.model.packed_logits = noted  # type: ignore[method-assign]
    wanted = model.predict(PAIRS)
    assert len(sizes) == 1
    monkeypatch.setattr(pairs, "batch_tokens", lambda encoder: 80)
    assert same(model.predict(PAIRS), wanted)
    assert len(sizes) > 5
    assert max(sizes[1:]) <= 80


def test_an_activation_has_its_parameters_where_the_model_is(tmp_path: Path) -> None:
    """In any process that computes the logits; a meta device replaces a GPU."""
    model = CrossEncoder(build_reranker(tmp_path, 3))
    places = []

    def activation(logits: torch.Tensor) -> torch.Tensor:
        places.append(logits.device.type)
        return torch.zeros(logits.shape)

    given = {"activation_fn": activation, "convert_to_tensor": True}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CrossEncoder, "device", torch.device("meta"))
        found = model.predict(PAIRS, device=["cpu"], **given)
    assert places == ["meta"]
    assert found.device.type == "cpu"


def test_progress_bar(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = CrossEncoder(build_reranker(tmp_path))
    model.predict(PAIRS, show_progress_bar=True)
    assert capfd.readouterr().err.lstrip().startswith("Scoring")
    model.predict(PAIRS)
    assert capfd.readouterr().err == ""


def test_what_was_loaded_is_shown(tmp_path: Path) -> None:
    shown = repr(CrossEncoder(build_reranker(tmp_path, 3)))
    assert shown.startswith("CrossEncoder(bert, ")
    assert "labels 3, max_seq_length 96, torch.float32, cpu)" in shown


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"topk": 1}, "CrossEncoder.rank has no keyword 'topk': did you mean 'top_k'"),
        ({"texts": ["b"]}, "CrossEncoder.rank has no keyword 'texts': known are .*top_k"),
    ],
)
def test_keywords_that_rank_does_not_have(
    keywords: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(TypeError, match=message):
        CrossEncoder(build_reranker(tmp_path)).rank("a", ["b"], **keywords)
