"""Whole models with backend "int8": accuracy, batch independence, saving, training."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from nomicbert import Embedder, NomicBert, NomicBertForSequenceClassification
from nomicbert_kernels import linear_int8
from tests.support.checkpoints import build_checkpoint
from tests.support.vocabularies import WORDS
from tests.test_minilm import _SPEC, COSINES, DOCUMENTS, QUERY, _docstrings

WHY_NOT = linear_int8.why_not()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
NEEDS_WEIGHTS = pytest.mark.skipif(_SPEC is None, reason="the real weights are not installed")

LENGTHS = (2, 3, 5, 17, 33, 65, 129, 200, 17, 65)
VARIANTS = ("nomic-v1.5", "nomic-v2-moe", "conan-v1", "gte")


@pytest.fixture(scope="module", params=VARIANTS)
def folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    where = tmp_path_factory.mktemp("int8")
    return request.param, build_checkpoint(where, request.param, num_hidden_layers=2)


def _texts(seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=n - 2)) for n in LENGTHS]


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = (x / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True) for x in (a, b))
    return (a * b).sum(1)


# Lowest cosine over five seeds: 0.99914, 0.9867, 0.99969, 0.99949. The weights are drawn such that
# every tensor matters, so rounding errors are larger than in trained models. Rounding may also
# change the chosen expert, which moves a two-layer model's vector more than the rounding itself.
LEAST = {"nomic-v1.5": 0.9975, "nomic-v2-moe": 0.95, "conan-v1": 0.999, "gte": 0.9985}


def test_vectors_are_near_float32(folder: tuple[str, Path], seed: int) -> None:
    variant, where = folder
    got, wanted = (
        Embedder(where, backend=backend).encode(_texts(seed), prompt="")
        for backend in ("int8", "torch")
    )
    assert got.dtype == np.float32
    cosines = _cosines(got, wanted)
    assert cosines.min() >= LEAST[variant]
    assert cosines.max() < 1 - 1e-7, "nothing was rounded"


@pytest.mark.all_threads
def test_a_text_keeps_its_bits(folder: tuple[str, Path], seed: int) -> None:
    embedder, texts = Embedder(folder[1], backend="int8"), _texts(seed)
    alone = np.stack([embedder.encode(text, prompt="") for text in texts])
    rng = random.Random(seed)
    for _ in range(10):
        ids = rng.sample(range(len(texts)), rng.randint(2, len(texts)))
        tokens = rng.choice([100, 300, 4096])
        got = embedder.encode([texts[i] for i in ids], prompt="", batch_tokens=tokens)
        np.testing.assert_array_equal(got, alone[ids])
    got = embedder.encode([texts[3]] * 40, prompt="", batch_tokens=100_000)
    np.testing.assert_array_equal(got, alone[[3] * 40])


def test_it_is_not_saved(folder: tuple[str, Path], tmp_path: Path) -> None:
    plain, narrow = (NomicBert.from_pretrained(folder[1], backend=b) for b in ("torch", "int8"))
    ids = torch.tensor([[2, 9, 8, 3]])
    with torch.no_grad():
        assert not torch.equal(plain(ids)[0], narrow(ids)[0])
    state, wanted = narrow.state_dict(), plain.state_dict()
    assert state.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor), name
    for name, model in (("plain", plain), ("narrow", narrow)):
        model.save_pretrained(tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "plain").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "narrow").iterdir())
    for name in files:
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "narrow" / name).read_bytes()


def test_training_is_that_of_torch(folder: tuple[str, Path]) -> None:
    """Two training steps with an int8 forward pass in between, which must leave no trace."""
    ids = torch.tensor([[2, 9, 8, 7, 6, 3]])
    found = []
    for backend in ("torch", "int8"):
        model = NomicBert.from_pretrained(folder[1], backend=backend)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        losses, outputs = [], []
        for _ in range(2):
            loss = model(ids)[0].square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            with torch.no_grad():
                outputs.append(model(ids)[0])
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append((losses, outputs, gradients, model.state_dict()))
    (losses, outputs, gradients, state), (mine, rounded, ours, now) = found
    assert all(torch.equal(a, b) for a, b in zip(mine, losses, strict=True))
    assert ours.keys() == gradients.keys()
    assert all(torch.equal(ours[name], gradients[name]) for name in gradients)
    assert all(torch.equal(now[name], state[name]) for name in state)
    assert not torch.equal(rounded[0], outputs[0])
    fresh = NomicBert.from_pretrained(folder[1], backend="int8")
    fresh.load_state_dict(now)
    with torch.no_grad():
        assert torch.equal(fresh(ids)[0], rounded[1]), "the bytes of the first step were kept"


def test_float16_parameters(tmp_path: Path, seed: int) -> None:
    """They are widened, then quantised, with the same result as for float32 parameters."""
    build_checkpoint(tmp_path, "gte", num_hidden_layers=1)
    half = Embedder(tmp_path, dtype=torch.float16, backend="int8")
    full = Embedder(tmp_path, dtype=torch.float16, backend="int8")
    full.model.float()
    texts = _texts(seed)
    assert half.model.dtype == torch.float16
    np.testing.assert_array_equal(half.encode(texts), full.encode(texts))


def test_heads_take_it(tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "gte", num_hidden_layers=1)
    ids, found = torch.tensor([[2, 9, 8, 7, 6, 3]]), []
    for backend in ("torch", "int8"):
        torch.manual_seed(0)
        model = NomicBertForSequenceClassification.from_pretrained(
            tmp_path, num_labels=3, backend=backend
        )
        with torch.no_grad():
            found.append(model(ids).logits)
    wanted, got = found
    assert 0 < (got - wanted).abs().max() < 0.1 * wanted.abs().max()


@NEEDS_WEIGHTS
def test_minilm_with_its_real_weights() -> None:
    """Published cosines; and on English text, vectors and similarities against float32.

    Measured: published cosines within 0.0066; vectors 0.9942 at worst and 0.9978 on average; two
    texts' cosine moves by 0.0225 at most.
    """
    assert _SPEC is not None
    assert _SPEC.submodule_search_locations
    minilm = Path(_SPEC.submodule_search_locations[0]) / "model"
    texts = [text[:600] for text in _docstrings(60)]
    narrow, plain = (Embedder(minilm, backend=backend) for backend in ("int8", "torch"))
    narrow.max_seq_length = plain.max_seq_length = 512
    cosines = narrow.similarity(narrow.encode_query(QUERY), narrow.encode_document(DOCUMENTS))[0]
    np.testing.assert_allclose(cosines, COSINES, rtol=0, atol=0.01)
    assert cosines.argsort().tolist() == np.argsort(COSINES).tolist()
    got, wanted = narrow.encode(texts), plain.encode(texts)
    near = _cosines(got, wanted)
    assert near.min() >= 0.992
    assert near.mean() >= 0.997
    np.testing.assert_allclose(got @ got.T, wanted @ wanted.T, rtol=0, atol=0.03)
    np.testing.assert_array_equal(narrow.encode(texts[7]), got[7])
