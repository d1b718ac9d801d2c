"""A text's vector is bit-identical in any batch, with any other texts, in any order.

This is not guaranteed without oneDNN; then the tests use a bound (tests/support/sameness.py).
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from nomicbert import Embedder
from nomicbert.modeling.packing import pack
from nomicbert.runtime import batches
from nomicbert.user_warnings import TruncationWarning
from nomicbert.vectors.pooling import Finish
from nomicbert_kernels import PoolMode
from tests.parity.report import within
from tests.support.checkpoints import build_checkpoint
from tests.support.cpus import CPU_DTYPES
from tests.support.sameness import same
from tests.support.vocabularies import WORDS

# with the default number of threads
pytestmark = pytest.mark.all_threads


@pytest.fixture(autouse=True)
def poisoned_memory() -> None:
    """Disabled here: torch's deterministic mode may choose other algorithms than the default."""


# two layers, because the second one is the first with a mixture of experts
CHECKPOINTS: dict[str, dict[str, int]] = {
    "nomic-v1.5": {},
    "nomic-v2-moe": {},
    "code-rank-embed": {},  # CLS
    "bge-en": {},  # CLS, learned positions
    "gte": {},  # mean, learned positions
    "conan-v1": {},  # Dense
    "real-heads": {"hidden_size": 256, "intermediate_size": 384},
}
# in tokens, special ones included: on both sides of the block sizes of GEMMs and attention
LENGTHS = (2, 3, 5, 17, 32, 33, 65, 129, 192, 193, 257, 512, 600)
SHORT = (2, 3, 5, 17, 33, 65)  # again, as a second text of that length


@pytest.fixture(scope="module", params=CHECKPOINTS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    variant = "nomic-v1.5" if request.param == "real-heads" else request.param
    where = tmp_path_factory.mktemp("same")
    return build_checkpoint(where, variant, num_hidden_layers=2, **CHECKPOINTS[request.param])


def _text(rng: random.Random, tokens: int) -> str:
    """Words that are one token each in all three vocabularies."""
    return " ".join(rng.choices(WORDS, k=tokens - 2))


def _alone(model: Embedder, texts: list[str], **keywords: Any) -> np.ndarray:
    return np.stack([model.encode(text, prompt="", **keywords) for text in texts])


def _unchanged(
    ids: list[int], got: np.ndarray, alone: np.ndarray, dtype: torch.dtype = torch.float32
) -> None:
    """Assert that these texts have the same vectors as alone."""
    assert np.isfinite(got).all()
    pairs = zip(ids, got, strict=True)
    changed = [i for i, vector in pairs if not same(vector, alone[i], dtype)]
    within("vectors that change with their batch", len(changed), 0, changed)


@pytest.mark.parametrize("dtype", CPU_DTYPES, indirect=True)
def test_alone_and_in_twenty_batches(dtype: torch.dtype, folder: Path, seed: int) -> None:
    model = Embedder.from_pretrained(folder, dtype=dtype, backend="torch")
    rng = random.Random(seed)
    longest = 600 if model.model.config.rotary_dim else 512
    texts = [_text(rng, n) for n in LENGTHS + SHORT if n <= longest]
    alone = _alone(model, texts, max_length=longest)
    assert len({vector.tobytes() for vector in alone}) == len(set(texts))
    for _ in range(20):
        ids = rng.sample(range(len(texts)), rng.randint(2, 8))
        tokens = rng.choice([300, 1000, 4096])
        got = model.encode(
            [texts[i] for i in ids], prompt="", max_length=longest, batch_tokens=tokens
        )
        _unchanged(ids, got, alone, dtype)


@pytest.mark.parametrize("dtype", CPU_DTYPES, indirect=True)
def test_among_copies_of_itself(dtype: torch.dtype, folder: Path, seed: int) -> None:
    model = Embedder.from_pretrained(folder, dtype=dtype, backend="torch")
    texts = [_text(random.Random(seed), n) for n in (3, 40, 200)]
    alone = _alone(model, texts, max_length=512)
    for i, text in enumerate(texts):
        for copies in (2, 16):
            got = model.encode([text] * copies, prompt="", max_length=512, batch_tokens=100_000)
            _unchanged([i] * copies, got, alone, dtype)


@pytest.mark.parametrize("dtype", CPU_DTYPES, indirect=True)
def test_one_row_alone_at_the_real_widths(dtype: torch.dtype, tmp_path: Path, seed: int) -> None:
    """With CLS a single text is one row in the last layer's GEMMs, a special code path."""
    widths = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
    build_checkpoint(tmp_path, "code-rank-embed", num_hidden_layers=1, **widths)
    model = Embedder.from_pretrained(tmp_path, dtype=dtype, backend="torch")
    texts = [_text(random.Random(seed), n) for n in (3, 17, 40, 40)]
    alone = _alone(model, texts)
    for ids in ([0, 1, 2, 3], [2, 0], [3, 1, 1]):
        got = model.encode([texts[i] for i in ids], prompt="")
        _unchanged(ids, got, alone, dtype)


@pytest.mark.parametrize("mode", get_args(PoolMode))
@pytest.mark.parametrize("dtype", CPU_DTYPES, indirect=True)
def test_texts_of_few_tokens(dtype: torch.dtype, mode: PoolMode, tmp_path: Path, seed: int) -> None:
    """1, 2 and 3 tokens, and some more, in every pooling mode: alone, among copies, in batches."""
    build_checkpoint(tmp_path, "nomic-v1.5", num_hidden_layers=1, hidden_size=128)
    model = Embedder.from_pretrained(tmp_path, dtype=dtype, backend="torch")
    model.pooling.modes = (mode,)
    rng = random.Random(seed)
    texts = [[rng.randint(5, 60) for _ in range(n)] for n in (1, 2, 3, 1, 2, 3, 8, 33, 70)]

    def encode(ids: list[int]) -> np.ndarray:
        with torch.inference_mode():
            batch = pack([texts[i] for i in ids])
            return model.embedding_model(batch, Finish(normalize=True)).numpy()

    before = torch.get_num_threads()
    try:
        for threads in (1, 2, before):
            torch.set_num_threads(threads)
            alone = np.concatenate([encode([i]) for i in range(len(texts))])
            assert len({vector.tobytes() for vector in alone}) == len(texts)
            batches = [[i] * copies for i in range(3) for copies in (2, 3, 16)]
            for _ in range(20):
                batches.append(rng.choices(range(len(texts)), k=rng.randint(2, 12)))
            for ids in batches:
                _unchanged(ids, encode(ids), alone, dtype)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", CPU_DTYPES, indirect=True)
def test_neighbour_beyond_the_trained_length(dtype: torch.dtype, tmp_path: Path, seed: int) -> None:
    """3000 tokens exceed the trained length, so that text has its own rotary angles."""
    build_checkpoint(tmp_path, "nomic-v1.5", num_hidden_layers=2)
    model = Embedder(tmp_path, rotary_scaling_factor=2, backend="torch", dtype=dtype)
    rng = random.Random(seed)
    texts = [_text(rng, n) for n in (3000, 2049, 2048, 40, 40, 7)]
    alone = _alone(model, texts)
    plain = Embedder(tmp_path, backend="torch", dtype=dtype)
    scaled = [not np.array_equal(a, b) for a, b in zip(alone, _alone(plain, texts), strict=True)]
    assert scaled == [True, True, False, False, False, False]
    for ids in ([0, 1, 2, 3, 4, 5], [5, 3, 0], [4, 1], [2, 0]):
        got = model.encode([texts[i] for i in ids], prompt="", batch_tokens=20_000)
        _unchanged(ids, got, alone, dtype)


def test_windows_do_not_change_vectors(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_checkpoint(tmp_path, "nomic-v1.5", num_hidden_layers=1)
    model = Embedder.from_pretrained(tmp_path, backend="torch")
    rng = random.Random(seed)
    texts = [_text(rng, rng.randint(2, 60)) for _ in range(20)]
    alone = _alone(model, texts)
    for window in (1, 7, 19, 20):
        monkeypatch.setattr(batches, "WINDOW_TEXTS", window)
        got = model.encode(texts, prompt="", batch_tokens=200)
        _unchanged([*range(20)], got, alone)


def test_batch_options_do_not_change_vectors(tmp_path: Path) -> None:
    model = Embedder.from_pretrained(build_checkpoint(tmp_path, "nomic-v1.5"), backend="torch")
    rng = random.Random(3)
    texts = [_text(rng, n) for n in (5, 5, 60, 130)]
    for keywords in (
        {"matryoshka_dim": 32},
        {"truncate_dim": 31},
        {"normalize_embeddings": True},
        {"batch_size": 1},
    ):
        alone, got = _alone(model, texts, **keywords), model.encode(texts, prompt="", **keywords)
        _unchanged([*range(4)], got, alone)
    alone = [model.encode("fox " * 18, prompt="")]
    with pytest.warns(TruncationWarning, match="2 of 3"):
        got = model.encode(["fox " * 40, "fox " * 18, "fox " * 19], prompt="", max_length=20)
    _unchanged([0, 0, 0], got, np.stack(alone))
