"""precision: the results of sentence-transformers' quantize_embeddings, in every form of output.

Quantised values are compared exactly: the same fp32 steps give the same integers.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers.util import quantize_embeddings

from nomicbert import Embedder
from nomicbert.vectors import quantization as formats
from tests.support.checkpoints import build_checkpoint
from tests.support.sameness import HAS_ONEDNN
from tests.support.vocabularies import SENTENCES, WORDS

TEXTS = [*SENTENCES, *WORDS[:30]]
QUANTISED = ("int8", "uint8", "binary", "ubinary")
DTYPES = {"int8": np.int8, "uint8": np.uint8, "binary": np.int8, "ubinary": np.uint8}


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    return Embedder(build_checkpoint(tmp_path_factory.mktemp("m"), "conan-v1", num_hidden_layers=1))


@pytest.fixture(scope="module")
def vectors(embedder: Embedder) -> np.ndarray:
    found: np.ndarray = embedder.encode(TEXTS)
    assert found.shape == (36, 112)
    return found


@pytest.fixture(scope="module")
def ranges(vectors: np.ndarray) -> np.ndarray:
    """Narrower than the vectors, so that some values lie beyond both ends."""
    low, high = np.quantile(vectors, [0.1, 0.9], axis=0).astype(np.float32)
    return np.stack([low, high])


@functools.cache
def drawn(rows: int, width: int, seed: int) -> np.ndarray:
    """Values of all magnitudes and signs, zeros of both signs, a constant column."""
    rng = np.random.default_rng(seed)
    found = (rng.normal(size=(rows, width)) * 10.0 ** rng.integers(-3, 3, width)).astype(np.float32)
    found[rng.random(found.shape) < 0.1] = 0.0
    found[rng.random(found.shape) < 0.05] = -0.0
    found[:, rng.integers(width)] = rng.normal()
    return found


@pytest.mark.parametrize("precision", QUANTISED)
@given(rows=st.integers(2, 20), width=st.integers(1, 40), number=st.integers(0, 2**20))
def test_quantised(precision: str, rows: int, width: int, number: int) -> None:
    x = drawn(rows, width, number)
    bounds = formats.ranges_of(torch.from_numpy(x), precision) if "int8" in precision else None
    found = formats.convert(torch.from_numpy(x), precision, bounds).numpy()
    wanted = quantize_embeddings(x, precision)
    assert found.dtype == wanted.dtype == DTYPES[precision]
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("precision", ["int8", "uint8"])
@given(rows=st.integers(1, 20), width=st.integers(1, 40), number=st.integers(0, 2**20))
def test_fixed_ranges(precision: str, rows: int, width: int, number: int) -> None:
    x = drawn(rows, width, number)
    given_ = np.sort(drawn(2, width, number + 1), axis=0)
    bounds = formats.check(precision, given_, width)
    found = formats.convert(torch.from_numpy(x), precision, bounds).numpy()
    assert np.array_equal(found, quantize_embeddings(x, precision, ranges=given_))
    assert found.min() >= np.iinfo(DTYPES[precision]).min


def test_by_hand() -> None:
    x = torch.tensor([[0.0, -255, 5], [0.999, 0, 5], [255, 255, 5], [127.5, 999, 4]])
    bounds = torch.tensor([[0.0, -255, 5], [255, 255, 5]])
    wanted = torch.tensor([[0, 0, 0], [0, 127, 0], [255, 255, 0], [127, 255, 0]])
    assert formats.convert(x, "uint8", bounds).tolist() == wanted.tolist()
    assert formats.convert(x, "int8", bounds).tolist() == (wanted - 128).tolist()
    bits = torch.tensor([[1.0, -1.0, 0.0, 2.0, -2.0, 0.0, 0.0, 3.0, -1.0, 1.0]])
    assert formats.convert(bits, "ubinary").tolist() == [[0b10010001, 0b01000000]]
    assert formats.convert(bits, "binary").tolist() == [[0b10010001 - 128, 0b01000000 - 128]]


@pytest.mark.parametrize("precision", QUANTISED)
@pytest.mark.parametrize("keywords", [{}, {"truncate_dim": 21}, {"matryoshka_dim": 21}])
def test_encode(precision: str, keywords: dict[str, Any], embedder: Embedder) -> None:
    found = embedder.encode(TEXTS, precision=precision, **keywords)
    wanted = quantize_embeddings(embedder.encode(TEXTS, **keywords), precision)
    assert found.dtype == wanted.dtype
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("precision", QUANTISED)
def test_forms(precision: str, embedder: Embedder, ranges: np.ndarray) -> None:
    keywords: dict[str, Any] = {"precision": precision}
    if precision in ("int8", "uint8"):
        keywords["ranges"] = ranges
    wanted = embedder.encode(TEXTS, **keywords)
    tensor = embedder.encode(TEXTS, convert_to_tensor=True, **keywords)
    assert tensor.dtype == {np.int8: torch.int8, np.uint8: torch.uint8}[DTYPES[precision]]
    assert np.array_equal(tensor.numpy(), wanted)
    rows = embedder.encode(TEXTS, convert_to_numpy=False, **keywords)
    assert isinstance(rows, list)
    assert np.array_equal(torch.stack(rows).numpy(), wanted)
    assert np.array_equal(np.stack([*embedder.encode_iter(TEXTS, **keywords)]), wanted)
    one = embedder.encode(TEXTS[3], **keywords)
    assert (one.shape, one.dtype) == (wanted[3].shape, wanted.dtype)
    empty = embedder.encode([], **keywords)
    assert (empty.shape, empty.dtype) == ((0, wanted.shape[1]), wanted.dtype)
    assert [*embedder.encode_iter([], **keywords)] == []


@pytest.mark.parametrize("precision", QUANTISED)
def test_empty_input_gives_empty_output(precision: str, embedder: Embedder) -> None:
    """Without ranges too: there are no vectors to compute them from."""
    empty = embedder.encode([], precision=precision)
    wanted = quantize_embeddings(np.zeros((0, 112), np.float32), precision)
    assert (empty.shape, empty.dtype) == (wanted.shape, wanted.dtype)


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_with_fixed_ranges_a_vector_is_independent(
    precision: str, embedder: Embedder, vectors: np.ndarray, ranges: np.ndarray
) -> None:
    together = embedder.encode(TEXTS, precision=precision, ranges=ranges)
    assert np.array_equal(together, quantize_embeddings(vectors, precision, ranges=ranges))
    assert len(np.unique(together)) > 200
    alone = [embedder.encode(text, precision=precision, ranges=ranges) for text in TEXTS]
    steps = np.abs(np.stack(alone).astype(int) - together)
    assert steps.max() <= (0 if HAS_ONEDNN else 1)
    other = embedder.encode(TEXTS[:9], precision=precision)
    assert not np.array_equal(other, together[:9])
    for form in (ranges.tolist(), torch.from_numpy(ranges), ranges.astype(np.float64)):
        again = embedder.encode(TEXTS, precision=precision, ranges=form)
        assert np.array_equal(again, together)


def test_float16(embedder: Embedder, vectors: np.ndarray) -> None:
    wanted = vectors.astype(np.float16)
    found = embedder.encode(TEXTS, precision="float16")
    assert found.dtype == np.float16
    assert np.array_equal(found, wanted)
    tensor = embedder.encode(TEXTS, precision="float16", convert_to_tensor=True)
    assert tensor.dtype == torch.float16
    assert np.array_equal(tensor.numpy(), wanted)
    rows = [*embedder.encode_iter(TEXTS, precision="float16")]
    assert np.array_equal(np.stack(rows), wanted)
    assert embedder.encode(TEXTS[0], precision="float16").dtype == np.float16
    assert embedder.encode([], precision="float16").dtype == np.float16


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_one_vector_has_no_range(precision: str, embedder: Embedder) -> None:
    for inputs in ("fox", ["fox"]):
        with pytest.raises(ValueError, match=rf"'{precision}' needs ranges: \(2, 112\), smallest"):
            embedder.encode(inputs, precision=precision)
    with pytest.raises(
        ValueError, match=rf"'{precision}' needs ranges in a stream: an array \(2, 112\)"
    ):
        embedder.encode_iter(TEXTS, precision=precision)  # before a text is read
    with pytest.raises(ValueError, match=r"in a stream: an array \(2, 20\)"):
        embedder.encode_iter(TEXTS, precision=precision, truncate_dim=20)


def _flaw(change: Callable[[np.ndarray], Any]) -> Any:
    return change(np.stack([np.full(112, -1.0), np.full(112, 1.0)]))


def _set(place: tuple[int, int], number: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(x: np.ndarray) -> np.ndarray:
        x[place] = number
        return x

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:, :64], "(2, 112), smallest and largest value of each column, not (2, 64)"),
        (lambda x: x.T, "not (112, 2)"),
        (lambda x: x[0], "not (112,)"),
        (lambda x: x[None], "not (1, 2, 112)"),
        (lambda _: 3, "not ()"),
        (lambda _: "wide", "ranges must be an array of shape (2, 112)"),
        (lambda _: [[1, 2], [3]], "ranges must be an array of shape (2, 112)"),
        (lambda x: x[::-1], "column 0 runs from 1.0 to -1.0"),
        (_set((0, 7), 1.5), "column 7 runs from 1.5 to 1.0"),
        (_set((0, 3), np.nan), "column 3 runs from nan to 1.0"),
        (_set((1, 111), np.inf), "column 111 runs from -1.0 to inf"),
    ],
)
def test_invalid_ranges_are_refused(change: Any, message: str, embedder: Embedder) -> None:
    for encode in (embedder.encode, embedder.encode_iter):
        with pytest.raises(ValueError, match=re.escape(message)):
            encode(TEXTS, precision="int8", ranges=_flaw(change))


@pytest.mark.parametrize("precision", ["float32", "float16", "binary", "ubinary"])
def test_ranges_without_use_are_refused(
    precision: str, embedder: Embedder, ranges: np.ndarray
) -> None:
    for encode in (embedder.encode, embedder.encode_iter):
        with pytest.raises(ValueError, match=f"'int8' and 'uint8' only, not to '{precision}'"):
            encode(TEXTS, precision=precision, ranges=ranges)


def test_ranges_must_match_the_width(embedder: Embedder, ranges: np.ndarray) -> None:
    short = embedder.encode(TEXTS, precision="int8", ranges=ranges[:, :20], truncate_dim=20)
    whole = embedder.encode(TEXTS, precision="int8", ranges=ranges)
    assert np.array_equal(short, whole[:, :20])
    with pytest.raises(ValueError, match=r"must be \(2, 20\).*not \(2, 112\)"):
        embedder.encode(TEXTS, precision="int8", ranges=ranges, truncate_dim=20)


def test_few_vectors_are_logged(
    embedder: Embedder, ranges: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "nomicbert.vectors.quantization")
    embedder.encode(TEXTS, precision="uint8")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "the ranges of uint8 were computed from only 36 vectors" in record.getMessage()
    caplog.clear()
    embedder.encode([*TEXTS, *TEXTS, *TEXTS], precision="uint8")  # 108: enough
    embedder.encode(TEXTS, precision="uint8", ranges=ranges)
    embedder.encode(TEXTS, precision="binary")
    embedder.encode([], precision="uint8")
    assert not caplog.records


@pytest.mark.parametrize("precision", ["int4", "float64", "bfloat16", 8, "INT8"])
def test_unknown_precision(precision: Any, embedder: Embedder) -> None:
    named = "precision must be one of float32, float16, int8, uint8, binary, ubinary, not "
    for encode in (embedder.encode, embedder.encode_iter):
        with pytest.raises(ValueError, match=re.escape(named + repr(precision))):
            encode(TEXTS, precision=precision)


def test_with_chunks(embedder: Embedder, ranges: np.ndarray) -> None:
    keywords: dict[str, Any] = {"truncate": "chunk", "max_length": 8}
    plain = embedder.encode(TEXTS, **keywords)
    found = embedder.encode(TEXTS, precision="int8", ranges=ranges, **keywords)
    assert np.array_equal(found, quantize_embeddings(plain, "int8", ranges=ranges))


def test_a_saved_range_is_read_back(tmp_path: Path, embedder: Embedder, ranges: np.ndarray) -> None:
    np.save(tmp_path / "ranges.npy", ranges)
    again = np.load(tmp_path / "ranges.npy", mmap_mode="r")
    found = embedder.encode(TEXTS, precision="int8", ranges=again)
    assert np.array_equal(found, embedder.encode(TEXTS, precision="int8", ranges=ranges))
