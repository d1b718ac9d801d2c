"""`encode_chunks`: where chunks are in their text, and the definition of their vectors.

A late chunk is the mean over its tokens' hidden states, which the tests compute pass by pass with
`NomicBert` on a padded batch; a chunk alone has the vector of `encode` of its characters.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nomicbert import Embedder
from nomicbert.text.chunking import _stripped, chunked
from nomicbert.text.tokenizer import Tokenizer
from tests.support.checkpoints import build_checkpoint
from tests.support.sameness import same
from tests.support.vocabularies import SENTENCES, WORDS

LONG = [
    " ".join(WORDS),
    "",
    "  The quick\r\n\r\nbrown fox (jumps) over; Ünïcode ACCENTS are stripped!" * 3,
    "fox",
    "unbelievablyablyablyablyablyablyablyablyablyablyablyablyably long",
    *SENTENCES,
]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Embedder]:
    @functools.cache
    def build(variant: str, limit: int) -> Embedder:
        folder = build_checkpoint(tmp_path_factory.mktemp("m"), variant, num_hidden_layers=1)
        embedder = Embedder(folder)
        embedder.max_seq_length = limit
        return embedder

    return build


PIECES = st.one_of(
    st.sampled_from(
        [*WORDS, " ", "\r\n", "\n\n", "\t", "   " * 9, "\u00a0", "\u3000", ".", "(", "北京"]
    ),
    st.sampled_from(["é", "e\u0301", "\u0000", "\u200b", "ß", "İ", "ﬁ", "👍🏽", "abracadabra" * 4]),
    st.text(max_size=6),
)
TEXTS = st.lists(PIECES, max_size=25).map("".join)


@pytest.mark.parametrize("variant", ["nomic-v1.5", "conan-v1", "nomic-v2-moe"])
def test_offsets_point_at_the_text(variant: str, load: Callable[..., Embedder]) -> None:
    tokenizer: Tokenizer = load(variant, 16).tokenizer

    @settings(max_examples=60, deadline=None)
    @given(TEXTS, st.sampled_from(["", "search_document: "]), st.integers(1, 9), st.integers(0, 8))
    def check(text: str, prompt: str, tokens: int, overlap: int) -> None:
        overlap = min(overlap, tokens - 1)
        (found,) = chunked(tokenizer, [text], prompt, tokens, overlap)
        whole = tokenizer.rust.encode(prompt + text)
        assert [*found.head, *found.ids, *found.tail] == whole.ids
        assert found.chunks[0].start == 0
        assert found.chunks[-1].stop == len(found.ids)
        first = len(found.head)
        for before, after in zip(found.chunks, found.chunks[1:], strict=False):
            assert before.start < after.start <= before.stop < after.stop  # no gap, and progress
            assert before.stop - after.start <= overlap
        for chunk, (start, end) in zip(found.chunks, found.characters, strict=True):
            assert len(chunk) <= tokens
            piece = text[start:end]
            assert piece == piece.strip()
            inside = whole.offsets[first + chunk.start : first + chunk.stop]
            own = {i - len(prompt) for a, b in inside for i in range(a, b)}
            # the characters from the first token to the last one, but white space around them
            assert {i for i in own if i >= 0 and not text[i].isspace()} <= set(range(start, end))
            assert not own or ((min(own) <= start or start == 0) and end <= max(own) + 1)

    check()


def test_chunks_end_between_words(load: Callable[..., Embedder]) -> None:
    """A chunk's characters alone have the token ids that it has in the text."""
    tokenizer = load("nomic-v1.5", 16).tokenizer
    text = (
        "classification and modelness: codes, learning (foxable) was riverly redtion\r\ncats " * 2
    )
    for tokens in (2, 3, 8):
        (found,) = chunked(tokenizer, [text], "", tokens, 0)
        for chunk, (start, end) in zip(found.chunks, found.characters, strict=True):
            alone = tokenizer.rust.encode(text[start:end], add_special_tokens=False).ids
            assert alone == found.ids[chunk.start : chunk.stop]
    (found,) = chunked(tokenizer, [" ".join(WORDS[:9])], "", 4, 2)
    assert found.chunks == [range(4), range(2, 6), range(4, 8), range(6, 9)]
    (found,) = chunked(tokenizer, ["fox fox " + "able" * 9], "", 4, 1)
    assert found.characters[0] == (0, 7)  # the long word does not begin where it cannot end
    assert max(map(len, found.chunks)) == 4


def test_a_chunk_makes_room_for_its_prompt(load: Callable[..., Embedder]) -> None:
    tokenizer = load("nomic-v1.5", 16).tokenizer
    (found,) = chunked(tokenizer, [" ".join(WORDS)], "fox fox ", 9, 8, limit=10)
    assert len(found.head) == 3
    assert found.chunks[:2] == [range(6), range(1, 7)]  # of 10 tokens, 3 before it and 1 after it


def test_tokens_with_white_space_of_their_own() -> None:
    assert _stripped(" \n a b ", [(0, 4), (4, 7)]) == (3, 6)
    assert _stripped("   ", [(0, 3)]) == (3, 3)


def _hidden(embedder: Embedder, ids: list[int]) -> torch.Tensor:
    """(tokens, H) of one text by the padded interface."""
    with torch.inference_mode():
        return embedder.model(torch.tensor([ids])).last_hidden_state[0]


def _late(embedder: Embedder, text: str, prompt: str, tokens: int, overlap: int) -> np.ndarray:
    """Late chunks written out: pass by pass, chunk by chunk."""
    (found,) = chunked(embedder.tokenizer, [text], prompt, tokens, overlap)
    room = embedder.max_seq_length - len(found.head) - len(found.tail)
    skipped = 0
    if not embedder.pooling.include_prompt and prompt:
        skipped = len(embedder.tokenizer.rust.encode(prompt).ids) - 1
    rows, left = [], list(found.chunks)
    while left:
        here = [chunk for chunk in left if chunk.stop - left[0].start <= room]
        first, last = here[0].start, here[-1].stop
        hidden = _hidden(embedder, [*found.head, *found.ids[first:last], *found.tail])
        for chunk in here:
            a = len(found.head) + chunk.start - first if chunk is not here[0] else skipped
            b = len(found.head) + chunk.stop - first if chunk is not here[-1] else len(hidden)
            rows.append(hidden[a:b].double().mean(0))
        left = left[len(here) :]
    return torch.stack(rows).float().numpy()


@pytest.mark.parametrize(
    ("tokens", "overlap", "limit"), [(5, 0, 64), (5, 2, 24), (14, 13, 24), (1, 0, 24)]
)
@pytest.mark.parametrize("prompt", ["", "search_document: "])
def test_late_chunks(
    tokens: int, overlap: int, limit: int, prompt: str, load: Callable[..., Embedder]
) -> None:
    embedder = load("nomic-v1.5", limit)
    found = embedder.encode_chunks(LONG, chunk_tokens=tokens, chunk_overlap=overlap, prompt=prompt)
    for index, text in enumerate(LONG):
        wanted = _late(embedder, text, prompt, tokens, overlap)
        rows = found.vectors[found.texts == index]
        np.testing.assert_allclose(rows, wanted, rtol=0, atol=2e-5)
    assert found.vectors.dtype == np.float32
    assert (found.starts <= found.ends).all()


def test_a_prompt_that_is_not_pooled(load: Callable[..., Embedder]) -> None:
    embedder = load("nomic-v1.5", 32)
    embedder.pooling.include_prompt = False
    try:
        found = embedder.encode_chunks(LONG[0], chunk_tokens=6, prompt="search_query: ")
        wanted = _late(embedder, LONG[0], "search_query: ", 6, 0)
    finally:
        embedder.pooling.include_prompt = True
    np.testing.assert_allclose(found.vectors, wanted, rtol=0, atol=2e-5)
    with_it = embedder.encode_chunks(LONG[0], chunk_tokens=6, prompt="search_query: ")
    assert np.abs(with_it.vectors[0] - wanted[0]).max() > 1e-3


@pytest.mark.parametrize("variant", ["nomic-v1.5", "conan-v1", "bge-en"])
@pytest.mark.parametrize("late", [None, False])
def test_a_text_of_one_chunk_has_its_vector(
    variant: str, late: bool | None, load: Callable[..., Embedder]
) -> None:
    embedder = load(variant, 64)
    found = embedder.encode_chunks(SENTENCES, late=late, prompt="")
    wanted = embedder.encode(SENTENCES, prompt="")
    assert found.texts.tolist() == [*range(len(SENTENCES))]
    assert all(map(same, found.vectors, wanted))
    for text, start, end in zip(SENTENCES, found.starts, found.ends, strict=True):
        assert text[start:end] == text


@pytest.mark.parametrize("variant", ["nomic-v1.5", "bge-en"])
def test_chunks_alone(variant: str, load: Callable[..., Embedder]) -> None:
    """The default where pooling is not by mean."""
    embedder = load(variant, 64)
    late = None if variant == "bge-en" else False
    keywords: dict[str, Any] = {"prompt": "search_document: ", "normalize_embeddings": True}
    if variant == "nomic-v1.5":
        keywords["matryoshka_dim"] = 16
    texts = [" ".join(WORDS), "", "x", ", ".join(reversed(WORDS))]
    found = embedder.encode_chunks(texts, chunk_tokens=7, chunk_overlap=2, late=late, **keywords)
    pieces = [texts[t][a:b] for t, a, b in zip(*found[1:], strict=True)]
    assert all(map(same, found.vectors, embedder.encode(pieces, **keywords)))


def test_steps_after_pooling_follow(load: Callable[..., Embedder]) -> None:
    embedder = load("nomic-v1.5", 64)
    plain = embedder.encode_chunks(LONG, chunk_tokens=9, prompt="")
    short = embedder.encode_chunks(LONG, chunk_tokens=9, prompt="", matryoshka_dim=16)
    x = torch.nn.functional.layer_norm(torch.from_numpy(plain.vectors), plain.vectors.shape[1:])
    wanted = torch.nn.functional.normalize(x[:, :16])
    np.testing.assert_allclose(short.vectors, wanted, rtol=0, atol=1e-6)


def test_a_batch_does_not_matter(load: Callable[..., Embedder]) -> None:
    embedder = load("nomic-v1.5", 32)
    whole = embedder.encode_chunks(LONG, chunk_tokens=6, prompt="")
    small = embedder.encode_chunks(LONG, chunk_tokens=6, prompt="", batch_tokens=1)
    assert all(map(same, whole.vectors, small.vectors))
    (one,) = np.flatnonzero(whole.texts == 3)
    assert same(whole.vectors[one], embedder.encode_chunks(LONG[3], prompt="").vectors[0])


def test_chunks_that_overlap_much(
    load: Callable[..., Embedder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are pooled part by part: here one by one."""
    embedder = load("nomic-v1.5", 32)
    whole = embedder.encode_chunks(LONG, chunk_tokens=6, chunk_overlap=5, prompt="")
    monkeypatch.setattr("nomicbert.vectors.embedding_model.AT_ONCE", 0)
    parts = embedder.encode_chunks(LONG, chunk_tokens=6, chunk_overlap=5, prompt="")
    assert all(map(same, whole.vectors, parts.vectors))


def test_no_texts(load: Callable[..., Embedder]) -> None:
    found = load("nomic-v1.5", 32).encode_chunks([], prompt="", truncate_dim=8)
    assert found.vectors.shape == (0, 8)
    assert [len(column) for column in found] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"chunk_tokens": 31}, ValueError, "chunk_tokens must be 1 to 30, not 31: special tokens"),
        ({"chunk_tokens": 0}, ValueError, "chunk_tokens must be 1 to 30, not 0"),
        ({"chunk_tokens": 2.5}, TypeError, "chunk_tokens must be an integer"),
        (
            {"chunk_tokens": 4, "chunk_overlap": 4},
            ValueError,
            "chunk_overlap must be 0 to 3, not 4",
        ),
        ({"chunk_overlap": -1}, ValueError, "chunk_overlap must be 0 to 29, not -1"),
        ({"matryoshka_dim": 0}, ValueError, "matryoshka_dim must be 1 to"),
        ({"truncate": "chunk"}, TypeError, "encode_chunks has no keyword 'truncate'"),
        ({"inputs": [1]}, TypeError, "input 0 must be a str"),
    ],
)
def test_bad_arguments(
    keywords: dict[str, Any], error: type, message: str, load: Callable[..., Embedder]
) -> None:
    given_ = {"inputs": ["a text"], "prompt": "", **keywords}
    with pytest.raises(error, match=message):
        load("nomic-v1.5", 32).encode_chunks(**given_)


def test_late_needs_mean_pooling(load: Callable[..., Embedder]) -> None:
    with pytest.raises(ValueError, match="pools by cls: leave late out, or give late=False"):
        load("bge-en", 32).encode_chunks("a text", late=True)
