"""Warnings point at the line of the caller's code, however deep the call stack."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nomicbert import Embedder
from nomicbert.runtime import batches
from nomicbert.user_warnings import PromptWarning, TruncationWarning
from tests.support.checkpoints import build_checkpoint

LONG = "fox " * 40


@pytest.fixture
def embedder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Embedder:
    """Needs a prompt, and truncates at twelve tokens; windows have two texts."""
    monkeypatch.setattr(batches, "WINDOW_TEXTS", 2)
    found = Embedder(build_checkpoint(tmp_path, "nomic-v1.5", num_hidden_layers=1))
    found.max_seq_length = 12
    return found


def _given(call: Callable[[], Any]) -> list[tuple[type[Warning], str, int]]:
    """(class, text, line relative to the start of `call`) of each warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    first = inspect.getsourcelines(call)[1]
    assert all(entry.filename == __file__ for entry in caught)
    return [(entry.category, str(entry.message), entry.lineno - first) for entry in caught]


CUT = "1 of 3 texts were longer than 12 tokens and were cut there"


def test_encode(embedder: Embedder) -> None:
    def call() -> None:
        embedder.encode(["fox", "dog", LONG])

    (prompt, _, line), cut = _given(call)
    assert (prompt, line) == (PromptWarning, 1)
    assert cut == (TruncationWarning, CUT, 1)


@pytest.mark.parametrize("name", ["encode_query", "encode_document"])
def test_queries_and_documents(name: str, embedder: Embedder) -> None:
    def call() -> None:
        encode = getattr(embedder, name)

        encode(["fox", "dog", LONG])

    assert _given(call) == [(TruncationWarning, CUT, 3)]


def test_encode_iter(embedder: Embedder) -> None:
    def call() -> None:
        stream = embedder.encode_iter(iter(["fox", "dog", LONG]))
        next(stream)
        next(stream)
        for _ in stream:
            pass

    (prompt, _, line), cut = _given(call)
    assert (prompt, line) == (PromptWarning, 2)
    assert cut == (TruncationWarning, CUT, 4)


def test_through_the_callers_own_functions(embedder: Embedder) -> None:
    def call() -> None:
        def documents() -> Iterator[str]:
            yield from ["fox", "dog", LONG]

        def vectors() -> Iterator[Any]:
            yield from embedder.encode_iter(documents(), prompt="")

        assert len([*vectors()]) == 3

    assert _given(call) == [(TruncationWarning, CUT, 5)]


def test_a_stream_that_is_not_exhausted_warns(embedder: Embedder) -> None:
    """zip stops when the shorter side ends, and does not exhaust the stream."""

    def by_zip() -> None:
        texts = ["fox", "dog", LONG]
        for _ in zip(texts, embedder.encode_iter(texts, prompt=""), strict=False):
            pass

    def by_hand() -> None:
        stream = embedder.encode_iter(["fox", LONG, LONG], prompt="")
        next(stream)
        stream.close()

    def at_once() -> None:
        embedder.encode_iter([LONG], prompt="").close()

    assert _given(by_zip) == [(TruncationWarning, CUT, 2)]
    assert _given(by_hand) == [(TruncationWarning, CUT.replace("of 3", "of 2"), 3)]
    assert _given(at_once) == []


def test_once_a_call(embedder: Embedder) -> None:
    def call() -> None:
        for _ in range(2):
            embedder.encode([LONG] * 7, prompt="")

    cut = "7 of 7 texts were longer than 12 tokens and were cut there"
    assert _given(call) == [(TruncationWarning, cut, 2)] * 2


@pytest.mark.parametrize("truncate", ["error", "chunk", "mean"])
def test_no_warning_if_nothing_is_lost(truncate: Any, embedder: Embedder) -> None:
    """Warnings are errors in these tests."""
    texts = ["fox", "dog " * 10] if truncate == "error" else ["fox", LONG]
    embedder.encode(texts, prompt="", truncate=truncate)
    assert len([*embedder.encode_iter(texts, prompt="", truncate=truncate)]) == 2


def test_an_error_is_not_hidden_by_a_warning(embedder: Embedder) -> None:
    with pytest.raises(TypeError, match="input 2 must be a str, not int"):
        [*embedder.encode_iter([LONG, LONG, 3], prompt="")]
