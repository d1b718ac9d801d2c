"""encode_iter: the vectors of encode, one at a time, with texts read window by window."""

from __future__ import annotations

import gc
import re
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nomicbert import Embedder
from nomicbert.runtime import batches
from nomicbert.user_warnings import TruncationWarning
from tests.support.checkpoints import build_checkpoint
from tests.support.sameness import same
from tests.support.vocabularies import SENTENCES, WORDS

TEXTS = [*SENTENCES, "", *WORDS[:9], "the river is long " * 12]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    return Embedder(build_checkpoint(tmp_path_factory.mktemp("m"), "conan-v1", num_hidden_layers=1))


@pytest.fixture
def nomic(tmp_path: Path) -> Embedder:
    return Embedder(build_checkpoint(tmp_path, "nomic-v1.5", num_hidden_layers=1))


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of four texts."""
    monkeypatch.setattr(batches, "WINDOW_TEXTS", 4)


class Source:
    """Texts that are counted as they are read."""

    def __init__(self, texts: Iterable[Any]) -> None:
        self.texts, self.read = iter(texts), 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        text = next(self.texts)
        self.read += 1
        return text


@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"prompt": "query: "},
        {"truncate_dim": 20, "normalize_embeddings": True},
        {"matryoshka_dim": 20},
        {"truncate": "chunk", "max_length": 8},
        {"truncate": "mean", "max_length": 12},
        {"batch_size": 1},
        {"batch_tokens": 30},
    ],
)
def test_vectors_equal_encode(keywords: dict[str, Any], bert: Embedder, windows: None) -> None:
    wanted = bert.encode(TEXTS, **keywords)
    rows = [*bert.encode_iter(TEXTS, **keywords)]
    assert all(isinstance(row, np.ndarray) and row.dtype == np.float32 for row in rows)
    assert np.array_equal(np.stack(rows), wanted)


def test_vector_does_not_depend_on_the_batch(bert: Embedder, windows: None) -> None:
    alone = [bert.encode(text) for text in TEXTS]
    assert all(map(same, bert.encode_iter(TEXTS), alone))
    assert all(map(same, bert.encode_iter(TEXTS[::-1]), alone[::-1]))


def test_any_iterable(bert: Embedder, windows: None, tmp_path: Path) -> None:
    wanted = bert.encode(TEXTS)
    path = tmp_path / "texts.txt"
    path.write_text("".join(f"{text}\n" for text in TEXTS), "utf-8")
    forms: list[Iterable[str]] = [
        TEXTS,
        tuple(TEXTS),
        iter(TEXTS),
        (text for text in TEXTS),
        map(str, TEXTS),
        np.array(TEXTS),
        np.array(TEXTS, dtype=object),
        Source(TEXTS),
    ]
    for form in forms:
        assert np.array_equal(np.stack([*bert.encode_iter(form)]), wanted)
    with path.open(encoding="utf-8") as lines:
        rows = [*bert.encode_iter(line.rstrip("\n") for line in lines)]
    assert np.array_equal(np.stack(rows), wanted)
    assert [*bert.encode_iter([])] == []
    assert [*bert.encode_iter(iter(()))] == []


def test_forms_of_output(bert: Embedder, windows: None) -> None:
    wanted = bert.encode(TEXTS)
    for keywords in ({"convert_to_tensor": True}, {"convert_to_numpy": False}):
        rows = [*bert.encode_iter(TEXTS, **keywords)]
        assert all(isinstance(row, torch.Tensor) for row in rows)
        assert np.array_equal(torch.stack(rows).numpy(), wanted)
        weight = torch.ones(112, requires_grad=True)
        (rows[0] * weight).sum().backward()  # not inference tensors, like those of encode
        assert torch.equal(weight.grad, rows[0])
    states = [*bert.encode_iter(TEXTS, output_value="token_embeddings")]
    for ours, theirs in zip(
        states, bert.encode(TEXTS, output_value="token_embeddings"), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_kept_vector_owns_its_memory(bert: Embedder) -> None:
    for keywords, size in (({}, 112 * 4), ({"convert_to_tensor": True}, 112 * 4)):
        for row in bert.encode_iter(TEXTS, **keywords):
            tensor = row if isinstance(row, torch.Tensor) else torch.from_numpy(row)
            assert tensor.untyped_storage().nbytes() == size
            assert getattr(row, "base", None) is None


def test_reads_one_window_ahead(bert: Embedder, windows: None) -> None:
    source = Source(TEXTS)
    stream = bert.encode_iter(source)
    assert source.read == 0
    for count in range(1, 13):
        next(stream)
        assert source.read == -(-count // 4) * 4


def test_windows_limit_characters(bert: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "WINDOW_CHARACTERS", 100)
    source = Source(["x" * 30] * 40)
    stream = bert.encode_iter(source)
    for count in range(1, 13):
        next(stream)
        assert source.read == -(-count // 4) * 4
    # only characters that can be tokenised count
    monkeypatch.setattr(batches, "WINDOW_CHARACTERS", 1000)
    source = Source(["fox " * 5000] * 40)
    stream = bert.encode_iter(source, max_length=16)
    next(stream)
    assert source.read == 11
    with pytest.warns(TruncationWarning, match="11 of 11"):
        stream.close()


def test_memory_does_not_grow_with_the_stream(
    bert: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "WINDOW_TEXTS", 20)

    def peak(count: int) -> int:
        texts = (f"{i} " + "fox " * 5000 for i in range(count))
        gc.collect()
        tracemalloc.start()
        with pytest.warns(TruncationWarning):
            for _ in bert.encode_iter(texts, max_length=8):
                pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(40)
    assert peak(800) < peak(80) + 2_000_000  # the texts themselves are 16 million characters


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"prompt_name": "web"}, ValueError, "unknown prompt_name 'web'"),
        ({"truncate_dim": 113}, ValueError, "truncate_dim must be 1 to 112, not 113"),
        ({"precision": "int4"}, ValueError, "precision must be one of"),
        ({"precision": "int8"}, ValueError, "needs ranges in a stream"),
        ({"truncate": "start"}, ValueError, "truncate must be one of"),
        ({"max_length": 2}, ValueError, "must be 3 to 512, not 2"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, not 0"),
        ({"device": "gpu"}, ValueError, "unknown device 'gpu'"),
        ({"promt_name": "web"}, TypeError, "no keyword 'promt_name': did you mean 'prompt_name'?"),
        ({"batchsize": 8}, TypeError, "no keyword 'batchsize': did you mean 'batch_size'?"),
    ],
)
def test_arguments_are_checked_at_the_call(
    keywords: dict[str, Any], error: type[Exception], message: str, bert: Embedder
) -> None:
    source = Source(TEXTS)
    with pytest.raises(error, match=re.escape(message)):
        bert.encode_iter(source, **keywords)
    assert source.read == 0


@pytest.mark.parametrize("wrong", [b"fox", {"fox": 1}, {"fox"}, frozenset({"fox"})])
def test_invalid_inputs(wrong: Any, bert: Embedder) -> None:
    with pytest.raises(TypeError, match=f"ordered collection of str, not {type(wrong).__name__}"):
        bert.encode_iter(wrong)
    with pytest.raises(TypeError, match="many texts: give a lone one to encode"):
        bert.encode_iter("fox")
    with pytest.raises(TypeError, match="ordered collection of str, not int"):
        bert.encode_iter(3)  # type: ignore[arg-type]


def test_failing_input_iterator(
    bert: Embedder, windows: None, capsys: pytest.CaptureFixture[str]
) -> None:
    def texts() -> Iterator[str]:
        yield from TEXTS[:6]
        raise OSError("the disk is gone")

    stream = bert.encode_iter(texts(), show_progress_bar=True)
    rows = [next(stream) for _ in range(4)]
    assert np.array_equal(np.stack(rows), bert.encode(TEXTS[:4]))
    with pytest.raises(OSError, match="the disk is gone"):
        next(stream)
    assert capsys.readouterr().err.endswith("\n")  # the bar is closed
    assert [*stream] == []
    with pytest.raises(OSError, match="the disk is gone"):
        bert.encode(texts())


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (None, TypeError, "input 9 must be a str, not NoneType: None"),
        (b"fox", TypeError, "input 9 must be a str, not bytes: b'fox'"),
        ({"text": "fox"}, TypeError, "input 9 must be a str, not dict: {'text': 'fox'}"),
        (["fox"], TypeError, "input 9 must be a str, not list: ['fox']"),
        (float("nan"), TypeError, "input 9 must be a str, not float: nan"),
        ("北fox\ud83d!", ValueError, r"input 9 is not valid Unicode: a lone surrogate, '\ud83d', "),
        ("\udce9", ValueError, r"a lone surrogate, '\udce9', at character 0"),
    ],
)
def test_invalid_text(
    text: Any, error: type[Exception], message: str, bert: Embedder, windows: None
) -> None:
    texts = [*TEXTS[:9], text, *TEXTS]
    with pytest.raises(error, match=re.escape(message)):
        bert.encode(texts)
    stream = bert.encode_iter(texts)
    assert len([next(stream) for _ in range(8)]) == 8
    with pytest.raises(error, match=re.escape(message)):
        next(stream)
    assert len([*bert.encode_iter(texts[:9])]) == 9
