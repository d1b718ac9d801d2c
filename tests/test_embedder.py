"""Embedder.encode: its inputs, outputs, dimensions, limits and refusals."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nomicbert import Embedder
from nomicbert.runtime import batches
from nomicbert.user_warnings import TruncationWarning
from tests.support.checkpoints import build_checkpoint
from tests.support.oracle_pooling import oracle_matryoshka
from tests.support.sameness import same
from tests.support.vocabularies import SENTENCES, WORDS

TEXTS = [*SENTENCES, "", "the river is long " * 12]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Embedder]:
    @functools.cache
    def build(variant: str) -> Embedder:
        folder = tmp_path_factory.mktemp(variant)
        return Embedder.from_pretrained(build_checkpoint(folder, variant, num_hidden_layers=1))

    return build


@pytest.fixture
def bert(load: Callable[[str], Embedder]) -> Embedder:
    return load("conan-v1")  # needs no prompt, and has no final L2


@pytest.fixture
def nomic(load: Callable[[str], Embedder]) -> Embedder:
    return load("nomic-v1.5")


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x.astype(np.float64) ** 2).sum(-1, keepdims=True))


def test_the_order_of_the_inputs_comes_back(bert: Embedder, seed: int) -> None:
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 60))) for _ in range(25)]
    vectors = bert.encode(texts, batch_tokens=150)
    for text, vector in zip(texts, vectors, strict=True):
        assert same(bert.encode(text), vector)
    assert len({vector.tobytes() for vector in vectors}) == len(set(texts))


def test_forms_of_input(bert: Embedder) -> None:
    wanted = bert.encode(TEXTS)
    assert wanted.shape == (len(TEXTS), 112)
    assert wanted.dtype == np.float32
    for inputs in (tuple(TEXTS), iter(TEXTS), (text for text in TEXTS), np.array(TEXTS)):
        assert np.array_equal(bert.encode(inputs), wanted)
    for call in (bert.encode, bert.encode_query, bert.encode_document):
        assert np.array_equal(call(sentences=TEXTS), wanted)
    one = bert.encode(TEXTS[0])
    assert one.shape == (112,)
    assert same(one, wanted[0])


def test_forms_of_output(bert: Embedder) -> None:
    wanted = bert.encode(TEXTS)
    tensor = bert.encode(TEXTS, convert_to_tensor=True)
    assert isinstance(tensor, torch.Tensor)
    assert np.array_equal(tensor.numpy(), wanted)
    rows = bert.encode(TEXTS, convert_to_numpy=False)
    assert isinstance(rows, list)
    assert all(isinstance(row, torch.Tensor) for row in rows)
    assert np.array_equal(torch.stack(rows).numpy(), wanted)
    one = bert.encode(TEXTS[0], convert_to_numpy=False)
    assert isinstance(one, torch.Tensor)
    assert same(one.numpy(), wanted[0])


def test_empty_input_gives_empty_output(nomic: Embedder) -> None:
    assert nomic.encode([]).shape == (0, 64)
    assert nomic.encode((), matryoshka_dim=7).shape == (0, 7)
    assert nomic.encode([], convert_to_tensor=True).shape == (0, 64)
    assert nomic.encode([], convert_to_numpy=False) == []


def test_mistaken_inputs(bert: Embedder) -> None:
    for call in (bert.encode, bert.encode_query, bert.encode_document):
        with pytest.raises(TypeError, match="inputs are missing: give one text or any number"):
            call()
    with pytest.raises(TypeError, match="not both"):
        bert.encode(TEXTS, sentences=TEXTS)
    for wrong, index, kind in ((["a", 3], 1, "int"), ([None], 0, "NoneType"), ([["a"]], 0, "list")):
        with pytest.raises(TypeError, match=f"input {index} must be a str, not {kind}"):
            bert.encode(wrong)
    for wrong in (b"a", {"a": 1}, {"a", "b"}):
        with pytest.raises(
            TypeError, match=f"ordered collection of str, not {type(wrong).__name__}"
        ):
            bert.encode(wrong)


def test_a_model_in_training_mode(tmp_path: Path) -> None:
    """Neither dropout nor torch's default dtype affects a vector."""
    embedder = Embedder(build_checkpoint(tmp_path, "e5", num_hidden_layers=1))
    assert embedder.model.config.hidden_dropout_prob > 0
    wanted = embedder.encode(TEXTS)
    embedder.model.train()
    torch.set_default_dtype(torch.bfloat16)
    try:
        got = embedder.encode(TEXTS)
    finally:
        torch.set_default_dtype(torch.float32)
    assert got.dtype == np.float32
    assert np.array_equal(got, wanted)


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"precision": "int4"}, "precision must be one of float32, .*, not 'int4'"),
        ({"output_value": "vectors"}, "output_value must be one of .*, None, not 'vectors'"),
        ({"task": "web"}, "task must be one of query, document, None, not 'web'"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, not 0"),
        ({"truncate": "start"}, "truncate must be one of end, error, chunk, mean, not 'start'"),
        ({"batch_tokens": 0}, "batch_tokens must be at least 1, not 0"),
        ({"batch_size": -1}, "batch_size must be at least 1, not -1"),
    ],
)
def test_unsupported_options_are_refused_by_name(
    keywords: dict[str, Any], named: str, bert: Embedder
) -> None:
    with pytest.raises(ValueError, match=named):
        bert.encode(TEXTS, **keywords)


def test_matryoshka_of_v15_begins_with_layer_norm(nomic: Embedder) -> None:
    full = torch.from_numpy(nomic.encode(TEXTS, prompt="")).double()
    for dim in (1, 13, 64):
        short = nomic.encode(TEXTS, prompt="", matryoshka_dim=dim)
        np.testing.assert_allclose(short, oracle_matryoshka(full, dim), rtol=0, atol=1e-6)
    # layer_norm has an effect, even at full width
    assert np.abs(short - _unit(full.numpy())).max() > 1e-3


@pytest.mark.parametrize("variant", ["conan-v1", "gte", "nomic-v2-moe", "nomic-v1", "bge-en"])
def test_matryoshka_of_others_slices_and_normalises(
    variant: str, load: Callable[[str], Embedder]
) -> None:
    model = load(variant)
    full = model.encode(TEXTS, prompt="")
    for dim in (1, 13, full.shape[1]):
        short = model.encode(TEXTS, prompt="", matryoshka_dim=dim)
        np.testing.assert_allclose(short, _unit(full[:, :dim]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("variant", ["conan-v1", "nomic-v1.5", "bge-en"])
def test_truncate_dim_only_slices(variant: str, load: Callable[[str], Embedder]) -> None:
    model = load(variant)
    full = model.encode(TEXTS, prompt="")
    for dim in (1, 13, full.shape[1]):
        assert np.array_equal(model.encode(TEXTS, prompt="", truncate_dim=dim), full[:, :dim])
        unit = model.encode(TEXTS, prompt="", truncate_dim=dim, normalize_embeddings=True)
        np.testing.assert_allclose(unit, _unit(full[:, :dim]), rtol=0, atol=1e-6)


def test_normalize_embeddings(bert: Embedder) -> None:
    full = bert.encode(TEXTS)
    assert np.abs(np.linalg.norm(full, axis=1) - 1).min() > 0.01
    unit = bert.encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(unit, _unit(full), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["matryoshka_dim", "truncate_dim"])
def test_mistaken_dims(name: str, bert: Embedder) -> None:
    for dim in (0, -1, 113):
        with pytest.raises(ValueError, match=f"{name} must be 1 to 112, not {dim}"):
            bert.encode(TEXTS, **{name: dim})
    for wrong in (8.0, True, "8"):
        with pytest.raises(TypeError, match=f"{name} must be an integer, not {wrong!r}"):
            bert.encode(TEXTS, **{name: wrong})
    assert bert.encode(TEXTS, **{name: np.int64(8)}).shape == (len(TEXTS), 8)
    with pytest.raises(ValueError, match="matryoshka_dim or truncate_dim, not both"):
        bert.encode(TEXTS, matryoshka_dim=8, truncate_dim=8)


def test_max_length(bert: Embedder, nomic: Embedder) -> None:
    long = "fox " * 30
    with pytest.warns(TruncationWarning, match="^1 of 1 texts were longer than 12 tokens"):
        short = bert.encode(long, max_length=12)
    assert np.array_equal(short, bert.encode("fox " * 10))
    assert not np.array_equal(short, bert.encode(long))
    for wrong in (2, 0, -5, 513):
        with pytest.raises(ValueError, match=rf"max_length .* must be 3 to 512, not {wrong}"):
            bert.encode(long, max_length=wrong)
    with pytest.raises(ValueError, match=r"max_length .* must be at least 3, not 2"):
        nomic.encode(long, prompt="", max_length=2)
    nomic.encode(long, prompt="", max_length=100_000)  # rotary positions are unlimited


def test_the_truncation_warning(bert: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "WINDOW_TEXTS", 4)
    texts = ["fox " * n for n in (600, 510, 511, 1, 512, 700, 2, 509, 40)]
    with pytest.warns(TruncationWarning) as caught:
        bert.encode(texts)
    assert len(caught) == 1  # one for all windows
    wanted = "4 of 9 texts were longer than 512 tokens and were cut there"
    assert str(caught[0].message) == wanted
    assert caught[0].filename == __file__  # it points at the call
    with pytest.warns(TruncationWarning) as again:
        bert.encode(texts)
    assert len(again) == 1  # once a call, not once a process
    bert.encode(["fox " * 510])  # fits exactly: warnings are errors here


def test_a_prompt_counts_towards_the_limit(bert: Embedder) -> None:
    bert.encode("fox " * 10, max_length=12)
    with pytest.warns(TruncationWarning, match="1 of 1"):
        bert.encode("fox " * 10, max_length=12, prompt="query ")


def test_batches(bert: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    forward = bert.embedding_model.forward

    def spy(batch: Any, finish: Any) -> torch.Tensor:
        seen.append(batch.lengths)
        return forward(batch, finish)

    monkeypatch.setattr(bert.embedding_model, "forward", spy)
    texts = ["fox " * n for n in (3, 30, 5, 8, 1, 60, 8, 8)]
    for keywords, largest, most, count in (
        ({}, 4096, 8, 1),
        ({"batch_size": 3}, 4096, 3, 3),
        ({"batch_size": 1}, 4096, 1, 8),
        ({"batch_tokens": 40}, 40, 8, 4),
        ({"batch_tokens": 40, "batch_size": 2}, 40, 2, 5),
    ):
        seen.clear()
        bert.encode(texts, **keywords)
        assert sorted(n for batch in seen for n in batch) == [3, 5, 7, 10, 10, 10, 32, 62]
        assert max(map(len, seen)) <= most
        assert all(sum(batch) <= largest or len(batch) == 1 for batch in seen)
        assert all(max(later) <= min(batch) for batch, later in pairwise(seen))
        assert len(seen) == count


def test_progress_bar(bert: Embedder, capsys: pytest.CaptureFixture[str]) -> None:
    bert.encode(TEXTS, show_progress_bar=True)
    shown = capsys.readouterr()
    tokens = sum(map(len, bert.tokenizer.encode(TEXTS, 512)[0]))
    assert re.search(rf"Embedding: 100%.*{tokens}/{tokens} .*tokens/s", shown.err)
    assert shown.out == ""
    for quiet in (False, None):  # None: on a terminal only
        bert.encode(TEXTS, show_progress_bar=quiet)
        assert capsys.readouterr() == ("", "")


def test_attributes(bert: Embedder, nomic: Embedder) -> None:
    assert bert.get_sentence_embedding_dimension() == 112
    assert nomic.get_sentence_embedding_dimension() == 64
    assert bert.to("cpu") is bert
    assert np.array_equal(bert.encode(TEXTS, device="cpu"), bert.encode(TEXTS))


def test_mistakes_of_from_pretrained(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"no keyword 'dtpye': did you mean 'dtype'\?"):
        Embedder.from_pretrained(tmp_path, dtpye=torch.float32)
    with pytest.raises(TypeError, match="did you mean 'revision'"):
        Embedder.from_pretrained(tmp_path, revison="main")


def test_whole_numbers_only(bert: Embedder) -> None:
    for name in ("batch_size", "batch_tokens", "max_length"):
        for wrong in (8.0, True, "8"):
            with pytest.raises(TypeError, match=f"{name}.* must be an integer, not {wrong!r}"):
                bert.encode(TEXTS, **{name: wrong})
    with pytest.raises(TypeError, match="max_seq_length must be an integer, not None"):
        bert.max_seq_length = None  # type: ignore[assignment]
    assert bert.max_seq_length == 512


def test_a_keyword_that_only_encode_has(bert: Embedder) -> None:
    with pytest.raises(TypeError, match="encode_iter has no keyword 'sentences': known are"):
        bert.encode_iter(TEXTS, sentences=TEXTS)


@pytest.mark.parametrize(
    ("method", "keywords", "message"),
    [
        ("encode", {"input": 1}, "has no keyword 'input': did you mean 'inputs'"),
        ("encode", {"modules": 1}, "has no keyword 'modules': write them into modules.json"),
        ("encode_iter", {"foo": 1}, "has no keyword 'foo': known are batch_size, "),
        ("token_count", {"foo": 1}, "has no keyword 'foo': known are inputs, prompt_name$"),
    ],
)
def test_a_refused_keyword_names_its_method(
    method: str, keywords: dict[str, Any], message: str, bert: Embedder
) -> None:
    with pytest.raises(TypeError, match=f"^Embedder.{method} {message}"):
        getattr(bert, method)(["fox"], **keywords)


def test_keywords_that_encode_refuses_for_others(bert: Embedder) -> None:
    for call in (bert.encode_query, bert.encode_document):
        with pytest.raises(TypeError, match=r"^Embedder.encode has no keyword 'promt': did you"):
            call(["fox"], promt="x")  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("keyword", "remedy"),
    [
        ("modules", "write them into modules.json"),
        ("trancate_dim", "did you mean 'truncate_dim'"),
        ("max_length", "set max_seq_length of an Embedder"),
        ("foo", "known are add_pooling_layer, attention_probs_dropout_prob"),
    ],
)
def test_keywords_of_sentence_transformers_constructor(
    keyword: str, remedy: str, tmp_path: Path
) -> None:
    for load in (Embedder, Embedder.from_pretrained):
        with pytest.raises(TypeError, match=f"^Embedder has no keyword '{keyword}': {remedy}"):
            load(tmp_path, **{keyword: None})


def test_a_number_is_no_text(bert: Embedder) -> None:
    with pytest.raises(TypeError, match=r"inputs must be a str or an ordered .* not int"):
        bert.encode(3)  # type: ignore[call-overload]


def test_tokens_are_counted_before_truncation(bert: Embedder, nomic: Embedder) -> None:
    """Special tokens and prompt included, which decides on what `max_length` cuts."""
    long = "fox " * 600
    assert bert.token_count(["fox", "", long]) == [3, 2, 602]
    assert bert.token_count("fox") == 3
    with pytest.warns(TruncationWarning):
        assert len(bert.encode(long, output_value="token_embeddings")) == 512
    bare, prompted = nomic.token_count("fox"), nomic.token_count("fox", "search_query")
    assert prompted > bare
    states = nomic.encode("fox", prompt_name="search_query", output_value="token_embeddings")
    assert prompted == len(states)
    with pytest.raises(TypeError, match="input 0 must be a str, not int"):
        bert.token_count([3])  # type: ignore[list-item]


def test_pairwise_similarity_is_the_checkpoints(bert: Embedder) -> None:
    a = bert.encode(["fox", "the river is long"])
    whole = bert.similarity(a, a[::-1].copy())
    assert torch.allclose(bert.similarity_pairwise(a, a[::-1].copy()), whole.diagonal())


def test_what_was_loaded_is_shown(bert: Embedder) -> None:
    assert re.match(r"Embedder\(bert, \d+ layers, dimension 112, pooling mean", repr(bert))
    assert re.match(r"Tokenizer\(WordPiece, \d+ tokens, prefix \[\d+\], ", repr(bert.tokenizer))
