"""Embedder.encode_iter: as encode, from any iterable, in memory that does not grow with it."""

from __future__ import annotations

import functools
import random
import re
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tqdm import tqdm

from nomicbert import Embedder
from nomicbert.notices import PromptWarning, TruncationWarning
from nomicbert.runtime import batches, progress
from tests.checkpoints import build_checkpoint
from tests.vocabularies import WORDS


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    folder = tmp_path_factory.mktemp("conan")
    return Embedder(build_checkpoint(folder, "conan-v1", num_hidden_layers=1))


def make_texts(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(0, 30))) for _ in range(count)]


@pytest.mark.parametrize("window", [1, 7, 8192])
def test_as_encode_from_any_iterable(
    window: int, embedder: Embedder, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = make_texts(25, seed)
    wanted = embedder.encode(texts)
    monkeypatch.setattr(batches, "WINDOW_TEXTS", window)
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(texts), "utf-8")
    with file.open(encoding="utf-8") as lines:
        for inputs in (texts, iter(texts), (text for text in texts), np.array(texts)):
            assert np.array_equal(np.stack(list(embedder.encode_iter(inputs))), wanted)
        stripped = (line.rstrip("\n") for line in lines)
        assert np.array_equal(np.stack(list(embedder.encode_iter(stripped))), wanted)
    assert list(embedder.encode_iter([])) == []


def test_forms_of_output(embedder: Embedder, seed: int) -> None:
    texts = make_texts(5, seed)
    wanted = embedder.encode(texts)
    assert all(isinstance(row, np.ndarray) for row in embedder.encode_iter(texts))
    for keywords in ({"convert_to_tensor": True}, {"convert_to_numpy": False}):
        rows = list(embedder.encode_iter(texts, **keywords))
        assert all(isinstance(row, torch.Tensor) for row in rows)
        assert np.array_equal(torch.stack(rows).numpy(), wanted)
    tokens = list(embedder.encode_iter(texts, output_value="token_embeddings"))
    whole = embedder.encode(texts, output_value="token_embeddings")
    assert all(torch.equal(a, b) for a, b in zip(tokens, whole, strict=True))
    short = list(embedder.encode_iter(texts, matryoshka_dim=9, precision="float16"))
    assert np.array_equal(short, embedder.encode(texts, matryoshka_dim=9, precision="float16"))


def test_reads_one_window_ahead_and_no_further(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "WINDOW_TEXTS", 4)
    read = 0

    def texts() -> Iterator[str]:
        nonlocal read
        for number in range(20):
            read += 1
            yield f"fox {number}"

    vectors = embedder.encode_iter(texts())
    assert read == 0
    for count in range(1, 10):
        next(vectors)
        assert read == (count + 3) // 4 * 4
    vectors.close()
    assert read == 12


def test_letters_end_a_window_too(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "WINDOW_LETTERS", 100)
    # no more than 60 of a text's letters count where they can make no more than 10 tokens
    lengths = [30, 30, 50, 5, 99, 1, 1_000, 30, 30, 30]
    windows = list(batches.text_windows(("x" * n for n in lengths), 60))
    assert [[len(text) for text in window] for window in windows] == [
        [30, 30, 50],
        [5, 99, 1, 1_000],
        [30, 30, 30],
    ]
    assert list(batches.text_windows(iter(()), 60)) == []


def test_arguments_are_checked_at_the_call(embedder: Embedder) -> None:
    def never() -> Iterator[str]:
        raise AssertionError("nothing may be read")
        yield ""

    for keywords, message in (
        ({"prompt_name": "query"}, "unknown prompt_name 'query'"),
        ({"truncate": "start"}, "truncate must be one of"),
        ({"matryoshka_dim": 0}, "matryoshka_dim must be 1 to 112, not 0"),
        ({"max_length": 513}, "max_length"),
        ({"batch_tokens": 0}, "batch_tokens must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            embedder.encode_iter(never(), **keywords)
    with pytest.raises(TypeError, match="no keyword 'promt_name': did you mean 'prompt_name'"):
        embedder.encode_iter(never(), promt_name="query")
    with pytest.raises(TypeError, match="a lone one to encode"):
        embedder.encode_iter("fox")
    with pytest.raises(TypeError, match="ordered collection of str, not dict"):
        embedder.encode_iter({"a": "b"})


def test_a_mistaken_input_is_named_where_it_stands(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "WINDOW_TEXTS", 2)
    texts: list[Any] = ["fox", "dog", "cat", None, "fox"]
    vectors = embedder.encode_iter(texts)
    assert np.array_equal([next(vectors), next(vectors)], embedder.encode(["fox", "dog"]))
    with pytest.raises(TypeError, match="input 3 must be a str, not NoneType"):
        next(vectors)
    texts[3] = "dog \ud800"
    for call in (embedder.encode, lambda inputs: list(embedder.encode_iter(inputs))):
        with pytest.raises(ValueError, match=r"input 3 is not valid Unicode: .*'\\ud800', .* 4$"):
            call(texts)

    def broken() -> Iterator[str]:
        yield "fox"
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(embedder.encode_iter(broken()))


def test_nul_and_control_characters(embedder: Embedder) -> None:
    """BERT's normalizer drops them; what is left is the text without."""
    got = embedder.encode(["fox\x00 the\x07 dog", "\x00"])
    assert np.array_equal(got, embedder.encode(["fox the dog", ""]))


def test_memory_does_not_grow(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "WINDOW_TEXTS", 100)

    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            for _ in embedder.encode_iter(f"the fox {number % 10}" for number in range(count)):
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(200)
    few, many = peak(400), peak(8_000)
    assert many - few < 200_000  # the vectors alone are 3.4 MB more


class Hinted:
    """Texts that can say how many are left; half of the truth."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = iter(texts)
        self.left = len(texts)

    def __iter__(self) -> Hinted:
        return self

    def __next__(self) -> str:
        self.left -= 1
        return next(self.texts)

    def __length_hint__(self) -> int:
        return self.left // 2


def totals(shown: str) -> list[str]:
    """What each state of the bar gave as the number of tokens in the end."""
    return [match[1] for match in re.finditer(r"/(\S+) \[", shown)]


def test_progress_estimates_the_tokens_to_come(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(batches, "WINDOW_TEXTS", 4)
    monkeypatch.setattr(progress, "tqdm", functools.partial(tqdm, mininterval=0))  # every state
    texts = ["fox dog"] * 4 + ["the fox and the dog run"] * 4  # 4 tokens each, then 8
    list(embedder.encode_iter(texts, show_progress_bar=True))
    shown = capsys.readouterr()
    assert shown.out == ""
    # the first window suggests 8 texts of 4 tokens; the second knows better
    assert list(dict.fromkeys(totals(shown.err))) == ["32.0", "48.0"]
    assert re.search(r"100%.* 48\.0/48\.0 \[\d\d:\d\d<00:00, .*tokens/s\]", shown.err)
    list(embedder.encode_iter(Hinted(texts), show_progress_bar=True))
    # 4 texts read and 2 left, says the hint: 6 of 4 tokens
    assert next(iter(totals(capsys.readouterr().err))) == "24.0"
    list(embedder.encode_iter((text for text in texts), show_progress_bar=True))
    unknown = capsys.readouterr().err
    assert totals(unknown) == []
    assert re.search(r"48\.0 tokens \[\d\d:\d\d, .*tokens/s\]", unknown)


def test_an_abandoned_stream_closes_its_bar(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(batches, "WINDOW_TEXTS", 1)
    vectors = embedder.encode_iter(["fox", "dog"], show_progress_bar=True)
    next(vectors)
    assert not capsys.readouterr().err.endswith("\n")
    vectors.close()
    assert capsys.readouterr().err.endswith("\n")  # tqdm ends its line when it is closed


@pytest.mark.parametrize("call", ["encode", "encode_query", "encode_document", "encode_iter"])
def test_warnings_point_at_the_call(call: str, tmp_path: Path) -> None:
    nomic = Embedder(build_checkpoint(tmp_path, "nomic-v1.5", num_hidden_layers=1))
    function: Callable[..., Any] = getattr(nomic, call)
    with pytest.warns() as caught:
        list(function(["fox " * 50, "search_query: fox"], max_length=20))
    kinds = {TruncationWarning}
    if call in ("encode", "encode_iter"):  # the others choose a prompt
        kinds.add(PromptWarning)
    assert {warning.category for warning in caught} == kinds
    assert {warning.filename for warning in caught} == {__file__}
