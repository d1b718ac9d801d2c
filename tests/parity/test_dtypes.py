"""16-bit dtypes: the error against the float32 truth, in units of transformers' own error.

On a CPU transformers computes in 16 bits. This package only stores float16 weights and computes in
float32; the same holds for bfloat16 if the CPU has no instructions for it. Such rows compare two
ways to compute with the same rounded weights, of which ours is the more exact. Our own error is
also measured separately below. bfloat16 is tested as both kinds of CPU compute it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from torch import Tensor

from nomicbert import Embedder
from tests.parity.bounds import BACKENDS, HALF, HALF_VALUES, HIDDEN, HalfBound
from tests.parity.report import within
from tests.parity.support import Case, hidden_states, masked, ours, theirs
from tests.support.cpus import pretend
from tests.support.vocabularies import SENTENCES, WORDS

LENGTHS = (96, 64, 64, 33, 128, 7, 80, 96)
# wide enough for the real head size, and for weights that are not overly sensitive to rounding
SIZES = {"hidden_size": 256, "intermediate_size": 384}

# bf16 twice: for a CPU with instructions for it, and for one without
BOUNDS = [
    pytest.param((bound, found), id=f"{bound.dtype}{'' if found else '-in-float32'}")
    for bound in HALF
    for found in ((True, False) if bound.dtype == torch.bfloat16 else (False,))
]


@pytest.fixture
def bound(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> HalfBound:
    half, found = request.param
    pretend(monkeypatch, found)
    return half


def errors(states: Tensor, truth: Tensor, kept: Tensor) -> tuple[float, float]:
    """Root mean square and largest error of the last hidden state over the kept tokens."""
    wrong = (states[-1][kept].double() - truth[-1][kept].double()).abs()
    assert wrong.numel() >= HALF_VALUES
    return wrong.square().mean().sqrt().item(), wrong.max().item()


def with_rounded_weights(folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    """A float32 model with parameters rounded to `dtype`; rotary angles stay exact."""
    model = theirs(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))
    return model


@pytest.mark.parametrize("bound", BOUNDS, indirect=True)
@pytest.mark.parametrize(
    ("variant", "changes"),
    [
        ("nomic-v1.5", {}),
        ("bge-en", {}),
        ("bge-en", {"hidden_act": "gelu_new"}),
        ("bge-en", {"hidden_act": "relu"}),
    ],
    ids=["nomic-v1.5", "bge-en", "gelu_new", "relu"],
)
def test_rounding_is_no_worse_than_transformers(
    variant: str, changes: dict[str, str], bound: HalfBound, case: Case
) -> None:
    """Against the float32 weights, and against rounded ones to isolate the error of arithmetic."""
    folder = case.build_native(variant, **SIZES, **changes)
    batch = case.batch(folder, lengths=LENGTHS)
    kept = batch["attention_mask"].bool()
    models = {backend: ours(folder, backend, dtype=bound.dtype) for backend in BACKENDS}
    mine = {backend: hidden_states(model, batch) for backend, model in models.items()}
    half = hidden_states(theirs(folder, dtype=bound.dtype), batch)
    exact, rounded = theirs(folder), with_rounded_weights(folder, bound.dtype)
    for truth in (hidden_states(exact, batch), hidden_states(rounded, batch)):
        rms, most = errors(half, truth, kept)
        assert rms > 1e-4  # below it, the dtype was not used
        for backend, states in mine.items():
            assert states.dtype == bound.dtype
            my_rms, my_most = errors(states, truth, kept)
            assert my_rms > 1e-4
            where = (variant, str(bound.dtype), backend)
            within("rms error, of transformers' own", my_rms / rms, bound.rms, where)
            within("largest error, of transformers' own", my_most / most, bound.most, where)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", ["nomic-v1.5", "gte", "bge-en"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bits_are_float32_with_rounded_weights(
    dtype: torch.dtype, variant: str, backend: str, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound is that of float32, plus one rounding of the result."""
    pretend(monkeypatch, False)
    folder = case.build_native(variant)
    batch = case.batch(folder)
    truth = masked(hidden_states(with_rounded_weights(folder, dtype), batch), batch)
    mine = hidden_states(ours(folder, backend, dtype=dtype), batch)
    assert mine.dtype == dtype
    rounding = torch.finfo(dtype).eps / 2 * truth.abs()
    beyond = ((mine.double() - truth.double()).abs() - rounding).max().item()
    within("hidden states", beyond, HIDDEN)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bound", BOUNDS, indirect=True)
def test_cast_model_equals_loaded_model(bound: HalfBound, backend: str, case: Case) -> None:
    """Cast after a forward pass in float32: no cached weights or angles of float32 remain."""
    folder = case.build("nomic-v1.5")
    batch = case.batch(folder)
    wanted = hidden_states(ours(folder, backend, dtype=bound.dtype), batch)
    model = ours(folder, backend)
    assert hidden_states(model, batch).dtype == torch.float32
    assert torch.equal(hidden_states(model.to(bound.dtype), batch), wanted)


@pytest.mark.parametrize("bound", BOUNDS, indirect=True)
@pytest.mark.parametrize("variant", ["nomic-v1.5", "conan-v1"])
def test_cosine_of_embeddings(variant: str, bound: HalfBound, case: Case) -> None:
    """Against sentence-transformers in float32, for texts of 1 to about 200 words."""
    folder = case.build_native(variant, **SIZES)
    texts = [*SENTENCES, *(" ".join(WORDS[i % 40 :] * 4) for i in range(0, 40, 8))]
    truth = SentenceTransformer(str(folder), device="cpu").encode(texts)
    for backend in BACKENDS:
        embedder = Embedder.from_pretrained(folder, backend=backend, dtype=bound.dtype)
        vectors = embedder.encode(texts, prompt="")
        assert vectors.dtype == np.float32
        pair = (torch.from_numpy(v).double() for v in (vectors, truth))
        least = F.cosine_similarity(*pair).min().item()
        assert least < 1 - 1e-8, backend  # above it, the dtype was not used
        within("1 - cosine of embeddings", 1 - least, 1 - bound.cosine, (bound.dtype, backend))
