"""EmbedderEncoder: vectors of `encode` in windows, with token counts and an identity."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from nomicbert import Embedder, TextError, TruncationWarning
from nomicbert.bulk.encoding import EmbedderEncoder, Window
from nomicbert.runtime import batches
from nomicbert.runtime.progress import Progress
from nomicbert.runtime.request import Request
from tests.support.checkpoints import build_checkpoint
from tests.support.sameness import same

TEXTS = ["the river is long", "fox", "", "what is", "the " * 40, "fox river", "long " * 30]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    return Embedder(build_checkpoint(tmp_path_factory.mktemp("m"), "nomic-v1.5", n_layer=1))


def windows_of(encoder: EmbedderEncoder, texts: list[str]) -> list[Window]:
    return list(encoder.windows(iter(texts), Progress(False)))


@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"matryoshka_dim": 16, "precision": "float16"},
        {"truncate_dim": 8, "precision": "ubinary"},
        {"precision": "int8", "ranges": np.stack([np.full(16, -1.0), np.full(16, 1.0)])},
    ],
)
def test_windows_hold_the_vectors_of_encode(
    keywords: dict[str, Any], embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "WINDOW_TEXTS", 3)
    if "ranges" in keywords:
        keywords = {**keywords, "truncate_dim": 16}
    encoder = EmbedderEncoder(embedder, prompt_name="search_document", max_length=20, **keywords)
    found = windows_of(encoder, TEXTS)
    assert [len(window.lengths) for window in found] == [3, 3, 1]
    vectors = np.concatenate([window.vectors for window in found])
    with pytest.warns(TruncationWarning, match="2 of 7 texts"):
        wanted = embedder.encode(TEXTS, prompt_name="search_document", max_length=20, **keywords)
    assert vectors.dtype == wanted.dtype == encoder.empty.dtype
    assert vectors.shape[1] == encoder.empty.shape[1]
    same(vectors, wanted)
    whole = embedder.token_count(TEXTS, "search_document")
    assert [n for window in found for n in window.lengths] == [min(n, 20) for n in whole]
    assert [window.cut for window in found] == [[], [1], [0]]


def test_several_processes_say_which_texts_were_cut(embedder: Embedder) -> None:
    encoder = EmbedderEncoder(embedder, prompt="", max_length=20, device=["cpu", "cpu"])
    found = windows_of(encoder, TEXTS)
    cut: list[int] = []
    start = 0
    for window in found:
        cut += [start + i for i in window.cut]
        start += len(window.lengths)
    assert cut == [4, 6]
    assert start == len(TEXTS)


@pytest.mark.parametrize("device", [None, ["cpu", "cpu"]])
def test_texts_that_are_refused_do_not_end_the_stream(device: Any, embedder: Embedder) -> None:
    """They are named in every run; warnings are the owner of the progress bar's to give."""
    keywords: dict[str, Any] = {"prompt": "", "max_length": 20}
    encoder = EmbedderEncoder(embedder, truncate="error", device=device, **keywords)
    assert encoder.identity["truncate"] == "error"
    for _ in range(2):
        found = windows_of(encoder, TEXTS)
        flags = [i in window.cut for window in found for i in range(len(window.lengths))]
        assert [i for i, flag in enumerate(flags) if flag] == [4, 6]
    with pytest.raises(TextError) as raised:
        embedder.encode(TEXTS, truncate="error", **keywords)
    assert raised.value.problem == encoder.refusal
    assert EmbedderEncoder(embedder, **keywords).refusal is None


def test_a_stream_that_runs_again_counts_anew(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "WINDOW_TEXTS", 3)
    stream, _ = embedder.stream(Request(prompt="", max_length=20, truncate="error"))
    for _ in range(2):
        with pytest.raises(TextError, match="input 4 is longer"):
            list(stream.run(iter(TEXTS), Progress(False)))


def test_a_progress_of_the_caller_stays_open(embedder: Embedder) -> None:
    closed = []

    class Kept(Progress):
        def __exit__(self, *_: Any) -> None:
            closed.append(1)

    for device in (None, ["cpu", "cpu"]):
        encoder = EmbedderEncoder(embedder, prompt="", device=device)
        assert sum(len(w.lengths) for w in encoder.windows(iter(TEXTS), Kept(False))) == 7
    assert closed == []


IDENTITIES: list[dict[str, Any]] = [
    {},
    {"prompt_name": "search_query"},
    {"prompt": "a prompt: "},
    {"matryoshka_dim": 16},
    {"truncate_dim": 16},
    {"normalize_embeddings": True},
    {"precision": "float16"},
    {"precision": "int8", "ranges": np.float32([[-1] * 64, [1] * 64])},
    {"precision": "int8", "ranges": np.float32([[-1] * 64, [2] * 64])},
    {"max_length": 20},
    {"truncate": "chunk"},
    {"truncate": "mean"},
]


def test_identity_differs_with_what_decides_the_values(embedder: Embedder) -> None:
    found = [EmbedderEncoder(embedder, **keywords).identity for keywords in IDENTITIES]
    assert all(one != other for i, one in enumerate(found) for other in found[:i])


def test_identity_stays_with_what_does_not(embedder: Embedder) -> None:
    plain = EmbedderEncoder(embedder).identity
    for keywords in ({"batch_tokens": 64}, {"batch_size": 2}, {"device": ["cpu", "cpu"]}):
        assert EmbedderEncoder(embedder, **keywords).identity == plain
    default = EmbedderEncoder(embedder, max_length=embedder.max_seq_length)
    assert default.identity == plain


def test_identity_differs_with_the_weights(embedder: Embedder) -> None:
    before = EmbedderEncoder(embedder)
    assert before.description["prompt"] == ""
    assert before.description["dimension"] == 64
    assert before.description["checkpoint"] == embedder.model.loaded_from.folder != ""
    kept = before.identity
    table = embedder.model.embeddings.word.weight
    with torch.no_grad():
        table[5] += 1
    try:
        assert EmbedderEncoder(embedder).identity != kept
    finally:
        with torch.no_grad():
            table[5] -= 1


@pytest.mark.parametrize(
    "name", ["convert_to_tensor", "convert_to_numpy", "output_value", "show_progress_bar"]
)
def test_keywords_that_are_not_for_files(name: Any, embedder: Embedder) -> None:
    with pytest.raises(TypeError, match=f"omit the keyword {name}"):
        EmbedderEncoder(embedder, **{name: True})


def test_mistakes_are_told_at_once(embedder: Embedder) -> None:
    with pytest.raises(TypeError, match="truncate_dims"):
        EmbedderEncoder(embedder, truncate_dims=8)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="precision 'int8' needs ranges in a stream"):
        EmbedderEncoder(embedder, precision="int8")
    with pytest.raises(ValueError, match="max_length"):
        EmbedderEncoder(embedder, max_length=1)
