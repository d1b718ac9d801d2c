"""runtime.pipeline: overlapping stages give the same results and errors, in the same order."""

from __future__ import annotations

import itertools
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nomicbert import Embedder
from nomicbert.errors import TextError
from nomicbert.modeling.packing import PackedBatch
from nomicbert.runtime import batches, stream
from nomicbert.runtime.pipeline import in_turn, landing, one_ahead
from nomicbert.runtime.progress import Progress
from nomicbert.runtime.texts import Texts
from nomicbert.user_warnings import TruncationWarning
from nomicbert.vectors.pooling import Finish
from tests.support.checkpoints import build_checkpoint
from tests.support.sameness import same
from tests.support.vocabularies import SENTENCES, WORDS

TEXTS = [*SENTENCES, "", *WORDS[:9], "the river is long " * 12]


def logged(log: list[str]) -> Callable[[str], Callable[[], str]]:
    """Begins and ends items, and records the order."""

    def begin(item: str) -> Callable[[], str]:
        log.append(f"begin {item}")

        def end() -> str:
            log.append(f"end {item}")
            return item.upper()

        return end

    return begin


def test_order() -> None:
    log: list[str] = []
    for result in one_ahead(iter("abc"), logged(log)):
        log.append(f"take {result}")
    assert log == [
        "begin a", "begin b", "end a", "take A", "begin c", "end b", "take B", "end c", "take C",
    ]  # fmt: skip
    log.clear()
    for result in in_turn(iter("ab"), logged(log)):
        log.append(f"take {result}")
    assert log == ["begin a", "end a", "take A", "begin b", "end b", "take B"]
    assert list(one_ahead(iter(()), logged(log))) == []


class Broken(Exception):
    """An error class of the caller."""


def failing_input() -> Iterator[str]:
    yield from "ab"
    raise Broken


def test_stop_iteration_inside_the_work() -> None:
    """StopIteration raised by the work is an error, not the end of the items."""

    def begin(item: str) -> Callable[[], str]:
        if item == "b":
            raise StopIteration
        return lambda: item

    with pytest.raises(RuntimeError, match="StopIteration"):
        list(one_ahead(iter("abc"), begin))


@pytest.mark.parametrize("where", ["input", "begin", "end"])
def test_errors_follow_earlier_results(where: str) -> None:
    def begin(item: str) -> Callable[[], str]:
        if where == "begin" and item == "c":
            raise Broken

        def end() -> str:
            if where == "end" and item == "c":
                raise Broken
            return item

        return end

    found: list[str] = []
    with pytest.raises(Broken):
        found.extend(one_ahead(failing_input() if where == "input" else iter("abcd"), begin))
    assert found == ["a", "b"]


def test_host_rows_are_not_copied() -> None:
    rows = torch.rand(2, 3)
    assert landing(rows)() is rows


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    return Embedder(build_checkpoint(tmp_path_factory.mktemp("m"), "conan-v1", num_hidden_layers=1))


@pytest.fixture
def overlapping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Overlap as on a GPU, with windows of four texts."""
    monkeypatch.setattr(stream, "overlaps", lambda device: True)
    monkeypatch.setattr(batches, "WINDOW_TEXTS", 4)


@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"convert_to_tensor": True, "truncate_dim": 5},
        {"output_value": "token_embeddings"},
        {"truncate": "chunk", "max_length": 8},
        {"truncate": "mean", "max_length": 12},
        {"precision": "int8"},
    ],
)
def test_same_rows(
    keywords: dict[str, Any], embedder: Embedder, overlapping: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = embedder.encode(TEXTS, **keywords)
    monkeypatch.setattr(stream, "overlaps", lambda device: False)
    wanted = embedder.encode(TEXTS, **keywords)
    for a, b in zip(found, wanted, strict=True):
        assert same(np.asarray(a), np.asarray(b))


def test_tokenizer_runs_in_its_own_thread(
    embedder: Embedder, overlapping: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads the second window while the first is computed; each waits for the other here."""
    meeting = threading.Barrier(2, timeout=20)
    names: list[str] = []
    tokenise, encode = Texts.tokenise, Texts.encode
    computed = itertools.count()

    def slow_tokenise(self: Texts, window: list[str]) -> Any:
        name = threading.current_thread().name
        names.append(name)
        if name.startswith("tokenizer"):
            meeting.wait()
        return tokenise(self, window)

    def slow_encode(self: Texts, *given: Any) -> Any:
        if next(computed) == 0:
            meeting.wait()
        return encode(self, *given)

    monkeypatch.setattr(Texts, "tokenise", slow_tokenise)
    monkeypatch.setattr(Texts, "encode", slow_encode)
    embedder.encode(TEXTS[:8])
    # nothing overlaps with the first window
    assert sorted(name.startswith("tokenizer") for name in names) == [False, True]
    assert not [t for t in threading.enumerate() if t.name.startswith("tokenizer")]


def test_progress_counts_inputs_read_ahead(
    embedder: Embedder, overlapping: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    totals: list[int] = []
    read = Progress.read

    def noted(self: Progress, lengths: list[int]) -> None:
        read(self, lengths)
        totals.append(self._bar.total)

    monkeypatch.setattr(Progress, "read", noted)
    embedder.encode(["one two"] * 12, show_progress_bar=True)
    (ids,), _ = embedder.tokenizer.encode(["one two"], 16)
    assert totals == [12 * len(ids)] * 3


def test_errors_of_texts(embedder: Embedder, overlapping: None) -> None:
    """Vectors before an invalid text come out first, and the index is that of the stream."""
    texts = [*TEXTS[:4], "fine", "a lone \ud800", "never read"]
    found: list[Any] = []
    with pytest.raises(TextError, match="input 5 is not valid Unicode"):
        found.extend(embedder.encode_iter(iter(texts)))
    assert same(found, list(embedder.encode(texts[:4])))

    found.clear()
    texts = [*["a b"] * 6, "the river is long " * 12, "a b"]
    with pytest.raises(TextError, match="input 6 is longer than 8 tokens"):
        found.extend(embedder.encode_iter(iter(texts), max_length=8, truncate="error"))
    assert same(found, list(embedder.encode(["a b"] * 4)))


def test_one_warning(embedder: Embedder, overlapping: None) -> None:
    texts = ["the river is long " * 12, *["a b"] * 5, "the river is long " * 12]
    with pytest.warns(TruncationWarning, match="2 of 7 texts were longer than 8 tokens") as record:
        embedder.encode(texts, max_length=8)
    assert len(record) == 1


def test_closed_early(embedder: Embedder, overlapping: None) -> None:
    """No thread is left, and an endless stream is read at most two windows ahead.

    One window is tokenised while the kernels of the other run.
    """
    read = itertools.count()
    rows = embedder.encode_iter(f"text {next(read)}" for _ in itertools.count())
    first = [next(rows) for _ in range(4)]
    assert next(read) == 12
    rows.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("tokenizer")]
    assert same(first, list(embedder.encode([f"text {i}" for i in range(4)])))


def test_flat_memory(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    """After 200,000 texts no more memory is held than after 20,000.

    Memory at one moment depends on the state of the tokenizer's thread; the minimum of many samples
    does not.
    """
    monkeypatch.setattr(stream, "overlaps", lambda device: True)
    monkeypatch.setattr(batches, "WINDOW_TEXTS", 1000)

    def vectors(self: Texts, texts: list[list[int]], *_: Any) -> torch.Tensor:
        return torch.tensor([[float(sum(ids)), float(len(ids))] for ids in texts])

    monkeypatch.setattr(Texts, "vectors", vectors)
    held, tokens = [], 0.0
    tracemalloc.start()
    texts = (WORDS[i % len(WORDS)] for i in range(200_000))
    for number, row in enumerate(embedder.encode_iter(texts)):
        tokens += float(row[1])
        if number % 500 == 0:
            held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    lengths = [len(ids) for ids in embedder.tokenizer.encode(WORDS, 512)[0]]
    assert tokens == sum(lengths[i % len(WORDS)] for i in range(200_000))
    # half a byte per additional text
    assert min(held[-40:]) - min(held[:40]) < 90_000


class Full:
    """A model on a GPU with room for `room` tokens."""

    def __init__(self, embedder: Embedder, room: int) -> None:
        self.forward, self.room = embedder.embedding_model.forward, room
        # tokens of each batch; negative if refused
        self.tokens: list[int] = []

    def __call__(self, batch: PackedBatch, finish: Finish) -> Any:
        tokens = sum(batch.lengths)
        if tokens > self.room:
            self.tokens.append(-tokens)
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.tokens.append(tokens)
        return self.forward(batch, finish)


def test_out_of_memory(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Batches are halved until they fit; nothing is lost, moved or computed twice."""
    wanted = embedder.encode(TEXTS)
    whole = sum(map(len, embedder.tokenizer.encode(TEXTS, embedder.max_seq_length)[0]))
    full = Full(embedder, 70)
    monkeypatch.setattr(embedder.embedding_model, "forward", full)
    monkeypatch.setattr(batches, "WINDOW_TEXTS", len(TEXTS))
    found = embedder.encode([*TEXTS, *TEXTS])
    assert np.array_equal(found, np.concatenate((wanted, wanted)))
    accepted = [tokens for tokens in full.tokens if tokens > 0]
    assert sum(accepted) == 2 * whole
    # the second window uses small batches from the start
    refused = [-tokens for tokens in full.tokens if tokens < 0]
    assert refused[0] == whole
    assert all(tokens > 0 for tokens in full.tokens[len(full.tokens) // 2 :])
    said = [record.args[0] for record in caplog.records if "does not fit" in record.message]  # type: ignore[index]
    assert said == refused


def test_single_text_that_does_not_fit(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedder.embedding_model, "forward", Full(embedder, 10))
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        embedder.encode(TEXTS)


def test_lost_device(
    embedder: Embedder, overlapping: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Computed rows come out, then torch's own error; nothing hangs."""
    forward, calls = embedder.embedding_model.forward, itertools.count()

    def lost(*given: Any) -> Any:
        if next(calls) == 2:
            raise torch.AcceleratorError("CUDA error: unspecified launch failure", 719)
        return forward(*given)

    monkeypatch.setattr(embedder.embedding_model, "forward", lost)
    found: list[Any] = []
    with pytest.raises(torch.AcceleratorError, match="unspecified launch failure"):
        found.extend(embedder.encode_iter(iter(TEXTS)))
    monkeypatch.setattr(embedder.embedding_model, "forward", forward)
    assert same(np.stack(found), embedder.encode(TEXTS[:8]))
    assert not [t for t in threading.enumerate() if t.name.startswith("tokenizer")]


@pytest.mark.parametrize("context", [torch.inference_mode, torch.enable_grad, torch.no_grad])
def test_in_the_callers_own_context(
    context: Callable[[], Any], embedder: Embedder, overlapping: None
) -> None:
    """Vectors are the same, also if a stream is resumed in another context."""
    wanted = embedder.encode(TEXTS)
    rows = embedder.encode_iter(iter(TEXTS))
    with context():
        found = [next(rows) for _ in range(6)]
    found += list(rows)
    assert same(np.stack(found), wanted)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_two_threads_on_one_embedder(tmp_path: Path) -> None:
    """Each call gets its own rows, also in the first calls, which prepare the weights."""
    folder = build_checkpoint(tmp_path, "nomic-v1.5", num_hidden_layers=2)
    lists = [TEXTS, list(reversed(TEXTS)), TEXTS[3:12], WORDS[:30]]
    wanted = [Embedder(folder).encode(texts, prompt="") for texts in lists]
    for _ in range(3):
        fresh = Embedder(folder)
        found: dict[int, np.ndarray] = {}
        start = threading.Barrier(len(lists))

        def work(number: int, embedder: Embedder, found: dict[int, np.ndarray]) -> None:
            start.wait()  # noqa: B023
            found[number] = embedder.encode(lists[number], prompt="")

        threads = [
            threading.Thread(target=work, args=(number, fresh, found))
            for number in range(len(lists))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number, rows in enumerate(wanted):
            assert np.array_equal(found[number], rows)
