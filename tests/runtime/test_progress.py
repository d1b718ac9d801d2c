"""The progress bar: tokens done, the estimated total, and when no bar is shown."""

from __future__ import annotations

import gc
import io
import re
import sys
import time
import types
from collections.abc import Iterator
from contextlib import redirect_stderr
from typing import Any

import pytest
from tqdm import tqdm

from nomicbert import Embedder
from nomicbert.runtime import batches, progress
from tests.support.checkpoints import build_checkpoint

# two tokens are special: 3, 4, 5, 6, ... of them
TEXTS = ["fox " * n for n in range(1, 11)]
TOKENS = [n + 2 for n in range(1, 11)]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    return Embedder(build_checkpoint(tmp_path_factory.mktemp("m"), "e5", num_hidden_layers=1))


@pytest.fixture(autouse=True)
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of four texts."""
    monkeypatch.setattr(batches, "WINDOW_TEXTS", 4)


class Bar(tqdm):
    """A bar that records its updates."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self.seen: list[tuple[float, float | None]] = []
        self.closed = 0
        super().__init__(*arguments, **keywords)

    def update(self, n: float | None = 1) -> bool | None:
        shown = super().update(n)
        self.seen.append((self.n, self.total))
        return shown

    def close(self) -> None:
        self.closed += 1
        super().close()


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Bar]:
    made: list[Bar] = []

    def make(**keywords: Any) -> Bar:
        made.append(Bar(**keywords))
        return made[-1]

    monkeypatch.setattr(progress, "tqdm", make)
    return made


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Reader:
    """Texts with a length hint, which may be wrong."""

    def __init__(self, more: int = 0) -> None:
        self.left = len(TEXTS)
        self.more = more

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if not self.left:
            raise StopIteration
        self.left -= 1
        return TEXTS[-1 - self.left]

    def __length_hint__(self) -> int:
        return self.left + self.more


def test_the_total_is_estimated_from_the_texts_read_and_left(
    bert: Embedder, bars: list[Bar]
) -> None:
    read = [sum(TOKENS[:4]), sum(TOKENS[:8]), sum(TOKENS)]
    wanted = [round(read[0] * 10 / 4), round(read[1] * 10 / 8), read[2]]
    for inputs in (TEXTS, tuple(TEXTS), Reader()):
        [*bert.encode_iter(inputs, show_progress_bar=True)]
        assert bars.pop().seen == [*zip(read, wanted, strict=True)]
    bert.encode(iter(TEXTS), show_progress_bar=True)
    assert bars.pop().seen == [*zip(read, wanted, strict=True)]


def test_no_total_without_a_length_hint(bert: Embedder, bars: list[Bar]) -> None:
    [*bert.encode_iter((text for text in TEXTS), show_progress_bar=True)]
    assert [total for _, total in bars.pop().seen] == [None] * 3


def test_wrong_length_hint(bert: Embedder, bars: list[Bar]) -> None:
    assert len([*bert.encode_iter(Reader(more=90), show_progress_bar=True)]) == 10
    assert bars.pop().seen[-1] == (sum(TOKENS), sum(TOKENS) * 10)


def test_every_token_counts_once(bert: Embedder, bars: list[Bar]) -> None:
    for keywords in ({"batch_size": 1}, {"batch_tokens": 9}, {"output_value": "token_embeddings"}):
        bert.encode(TEXTS, show_progress_bar=True, **keywords)
        assert bars.pop().seen[-1] == (sum(TOKENS), sum(TOKENS))
    bert.encode(TEXTS, show_progress_bar=True, truncate="chunk", max_length=5)
    tokens = sum(n + 2 * -(-n // 3) for n in range(1, 11))  # 2 special tokens per window of 3
    assert bars.pop().seen[-1] == (tokens, tokens)


def test_output_of_the_bar(bert: Embedder, capsys: pytest.CaptureFixture[str]) -> None:
    [*bert.encode_iter(TEXTS, show_progress_bar=True)]
    shown = capsys.readouterr()
    assert re.search(r"Embedding: 100%.*75\.0/75\.0 .* tokens/s\]\n$", shown.err)
    assert shown.out == ""
    [*bert.encode_iter((text for text in TEXTS), show_progress_bar=True)]
    shown = capsys.readouterr()
    assert re.search(r"Embedding: 75\.0 tokens .* tokens/s\]\n$", shown.err)
    assert shown.out == ""


@pytest.mark.parametrize("show", [False, None])
def test_quiet_in_a_file(
    show: bool | None, bert: Embedder, capsys: pytest.CaptureFixture[str]
) -> None:
    [*bert.encode_iter(TEXTS, show_progress_bar=show)]
    bert.encode(TEXTS, show_progress_bar=show)
    assert capsys.readouterr() == ("", "")


def test_quiet_on_a_terminal_while_the_work_is_short(bert: Embedder) -> None:
    with redirect_stderr(Terminal()) as screen:
        bert.encode(TEXTS)
        [*bert.encode_iter(TEXTS)]
    assert screen.getvalue() == ""


def test_shown_on_a_terminal_once_it_takes_long(
    bert: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly() -> Iterator[str]:
        for text in TEXTS:
            time.sleep(0.05)
            yield text

    monkeypatch.setattr(progress, "DELAY", 0.3)
    with redirect_stderr(Terminal()) as screen:
        stream = bert.encode_iter(slowly())
        next(stream)
        assert screen.getvalue() == ""
        assert len([*stream]) == 9
        assert re.search(r"Embedding: 75\.0 tokens .* tokens/s\]\n$", screen.getvalue())
        before = len(screen.getvalue())
        [*bert.encode_iter(slowly(), show_progress_bar=False)]
        assert len(screen.getvalue()) == before


def test_abandoned_stream_closes_its_bar(bert: Embedder, bars: list[Bar]) -> None:
    stream = bert.encode_iter(TEXTS, show_progress_bar=True)
    assert not bars  # made with the first vector
    next(stream)
    assert not bars[0].closed
    stream.close()
    assert bars[0].closed == 1
    stream = bert.encode_iter(TEXTS, show_progress_bar=True)
    for _ in zip(TEXTS[:5], stream, strict=False):
        pass
    del stream, _
    gc.collect()
    assert bars[1].closed == 1
    assert bars[1].n == sum(TOKENS[:8])


def test_an_error_closes_the_bar(bert: Embedder, bars: list[Bar]) -> None:
    with pytest.raises(ValueError, match="input 5 is longer than 7 tokens"):
        bert.encode(TEXTS, show_progress_bar=True, truncate="error", max_length=7)
    assert bars[0].closed == 1


@pytest.mark.parametrize("stream", [None, io.StringIO(), object()], ids=["none", "text", "odd"])
def test_without_a_terminal(
    stream: Any, bert: Embedder, bars: list[Bar], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service may have no stderr, or replace it by an object of its own."""
    monkeypatch.setattr(sys, "stderr", stream)
    assert len(bert.encode(TEXTS)) == len(TEXTS)
    assert bars == []


class NotebookBar(Bar):
    """Stands for tqdm.notebook.tqdm."""


@pytest.mark.parametrize("widgets", [True, False])
def test_in_a_notebook(
    widgets: bool, bert: Embedder, bars: list[Bar], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shown without being asked, and drawn by widgets if there are some."""
    drawn = types.ModuleType("tqdm.notebook")
    made: list[NotebookBar] = []
    drawn.tqdm = lambda **settings: made.append(NotebookBar(**settings)) or made[-1]  # type: ignore[attr-defined, func-returns-value]
    monkeypatch.setitem(sys.modules, "tqdm.notebook", drawn)
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    monkeypatch.setattr(progress, "find_spec", lambda name: object() if widgets else None)
    bert.encode(TEXTS)
    assert (len(made), len(bars)) == ((1, 0) if widgets else (0, 1))
    (bar,) = made or bars
    assert bar.seen[-1] == (sum(TOKENS), sum(TOKENS))
    assert bar.closed
