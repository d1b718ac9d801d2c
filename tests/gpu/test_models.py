"""Whole models on backend "triton" against transformers, in every dtype.

The truth is transformers' model in fp32 on the CPU. Mixtures of experts, which transformers cannot
load, are compared with the reference backend on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nomicbert import Embedder, NomicBert
from tests.gpu.conftest import Record
from tests.gpu.support import DEVICE, INTERPRETED
from tests.parity.bounds import EMBEDDING, HALF, HALF_VALUES, HIDDEN, HalfBound
from tests.parity.report import difference
from tests.parity.support import (
    Batch,
    Case,
    clear_tokens,
    hidden_states,
    masked,
    theirs,
)
from tests.support.cpus import pretend
from tests.support.vocabularies import SENTENCES, WORDS

# all threads, because the truth is computed on the CPU
pytestmark = [pytest.mark.gpu, pytest.mark.all_threads]

NATIVE = ("nomic-v1.5", "conan-v1", "bge-en", "minilm")
LENGTHS = (17, 32, 3, 1) if INTERPRETED else (17, 17, 32, 3, 1, 17, 64, 65, 128, 129)
# Few layers of the real width, to run the kernels of real models, with a small vocabulary.
FULL: dict[str, dict[str, Any]] = {
    "nomic-v1.5": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    "conan-v1": {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096},
}
WIDE = {"hidden_size": 256, "intermediate_size": 384}
SHALLOW = {"num_hidden_layers": 2}
TEXTS = [*SENTENCES, "deep " * 40, "", *(" ".join(WORDS[i:] * 4) for i in (0, 13, 26))]
if INTERPRETED:
    FULL = {"nomic-v1.5": WIDE}
    TEXTS = TEXTS[:4]


@pytest.fixture
def case(tmp_path: Path, seed: int) -> Case:
    torch.manual_seed(seed)
    return Case(tmp_path, seed)


def to_device(batch: Batch) -> Batch:
    return {name: tensor.to(DEVICE) for name, tensor in batch.items()}


def states(folder: Path, batch: Batch, backend: str, **keywords: Any) -> Tensor:
    """All hidden states of our model on the device, copied to the CPU."""
    model = NomicBert.from_pretrained(folder, backend=backend, device=DEVICE, **keywords)
    return hidden_states(model, to_device(batch)).cpu()


def note(record: Record, figures: Sequence[float], check: str, op: str, dtype: object) -> None:
    record(*figures, check=check, op=op, dtype=dtype)


@pytest.mark.parametrize("variant", NATIVE)
@pytest.mark.parametrize("side", ["right", "left"])
def test_fp32(variant: str, side: str, case: Case, record: Record) -> None:
    """Every hidden state of every layer."""
    folder = case.build_native(variant)
    batch = case.batch(folder, lengths=LENGTHS, side=side)
    truth = masked(hidden_states(theirs(folder), batch), batch)
    for backend in ("triton", "torch"):
        error = difference(states(folder, batch, backend), truth)
        note(record, (error, HIDDEN), f"hidden states, {backend}", variant, "float32")


@pytest.mark.parametrize("variant", FULL)
def test_fp32_at_the_real_width(variant: str, case: Case, record: Record) -> None:
    folder = case.build_native(variant, **FULL[variant], **SHALLOW)
    batch = case.batch(folder, lengths=LENGTHS)
    truth = masked(hidden_states(theirs(folder), batch), batch)
    error = difference(states(folder, batch, "triton"), truth)
    note(record, (error, HIDDEN), "hidden states, real width", variant, "float32")


def test_experts(case: Case, record: Record) -> None:
    """Only tokens whose routing does not depend on rounding are compared."""
    folder = case.build("nomic-v2-moe")
    batch = case.batch(folder, lengths=LENGTHS)
    truth = hidden_states(NomicBert.from_pretrained(folder, backend="reference"), batch)
    clear = clear_tokens(folder, batch, least=0.0)
    assert clear.sum() >= 10
    mine = states(folder, batch, "triton")
    error = difference(mine[:, clear], truth[:, clear])
    note(record, (error, HIDDEN), "hidden states", "nomic-v2-moe", "float32")


def errors(got: Tensor, truth: Tensor, kept: Tensor) -> tuple[float, float]:
    """Root mean square and largest error of the last hidden state over the kept tokens."""
    wrong = (got[-1][kept].double() - truth[-1][kept].double()).abs()
    return wrong.square().mean().sqrt().item(), wrong.max().item()


@pytest.mark.parametrize("bound", HALF, ids=lambda bound: str(bound.dtype)[6:])
@pytest.mark.parametrize("variant", ["nomic-v1.5", "bge-en", *(f"full {name}" for name in FULL)])
def test_16_bits(
    variant: str, bound: HalfBound, case: Case, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No worse than transformers' own model in that dtype on the same device."""
    allow_bf16(monkeypatch)
    name = variant.removeprefix("full ")
    sizes = FULL[name] | SHALLOW if name != variant else WIDE
    folder = case.build_native(name, **sizes)
    batch = case.batch(folder, lengths=LENGTHS if INTERPRETED else (*LENGTHS, *LENGTHS[6:] * 2))
    kept = batch["attention_mask"].bool()
    truth = hidden_states(theirs(folder), batch)
    if not INTERPRETED:
        assert kept.sum() * truth.shape[-1] >= HALF_VALUES
    usual = hidden_states(theirs(folder, dtype=bound.dtype).to(DEVICE), to_device(batch)).cpu()
    rms, most = errors(usual, truth, kept)
    assert rms > 1e-5  # the model really ran in this dtype
    my_rms, my_most = errors(states(folder, batch, "triton", dtype=bound.dtype), truth, kept)
    note(record, (my_rms, bound.rms * rms), "hidden states, rms", variant, bound.dtype)
    note(record, (my_most, bound.most * most), "hidden states, largest", variant, bound.dtype)


def allow_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow bf16 in the interpreter, which these tests have patched.

    A CPU without bf16 instructions would otherwise compute in float32.
    """
    if INTERPRETED:
        pretend(monkeypatch, True)
        monkeypatch.setattr("nomicbert_kernels.backend.why_not_triton", lambda device, dtype: None)


@pytest.mark.parametrize("variant", ["nomic-v1.5", "conan-v1", "minilm", "bge-en"])
def test_vectors_fp32(variant: str, case: Case, record: Record) -> None:
    """`Embedder.encode` against sentence-transformers on the CPU."""
    folder = case.build_native(variant, **WIDE)
    truth = sentence_vectors(folder)
    embedder = Embedder.from_pretrained(folder, backend="triton", device=DEVICE)
    got = embedder.encode(TEXTS, prompt="", normalize_embeddings=True)
    assert got.dtype == np.float32
    assert difference(truth[0], truth[1]) > 0.01
    error = difference(torch.from_numpy(got), truth)
    note(record, (error, EMBEDDING), "vectors", variant, "float32")
    if variant == "nomic-v1.5":  # LayerNorm, slice and L2 as in the model card
        short = embedder.encode(TEXTS, prompt="", matryoshka_dim=64)
        normed = F.layer_norm(sentence_vectors(folder, normalize_embeddings=False), (256,))
        wanted = F.normalize(normed[:, :64], dim=1)
        error = difference(torch.from_numpy(short), wanted)
        note(record, (error, EMBEDDING), "matryoshka vectors", variant, "float32")


@pytest.mark.parametrize("bound", HALF, ids=lambda bound: str(bound.dtype)[6:])
@pytest.mark.parametrize("variant", ["nomic-v1.5", "conan-v1"])
def test_vectors_16_bits(
    variant: str, bound: HalfBound, case: Case, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One minus the cosine with sentence-transformers in fp32."""
    allow_bf16(monkeypatch)
    folder = case.build_native(variant, **WIDE)
    embedder = Embedder.from_pretrained(folder, backend="triton", device=DEVICE, dtype=bound.dtype)
    got = torch.from_numpy(embedder.encode(TEXTS, prompt="")).double()
    cosine = F.cosine_similarity(got, sentence_vectors(folder).double()).min().item()
    note(record, (1 - cosine, 1 - bound.cosine), "vectors, 1 - cosine", variant, bound.dtype)


def sentence_vectors(folder: Path, **keywords: Any) -> Tensor:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    keywords = {"normalize_embeddings": True} | keywords
    return torch.from_numpy(model.encode(TEXTS, **keywords))


def test_embedder_moves_between_devices(case: Case, record: Record) -> None:
    """Prepared weights are not reused on another device."""
    folder = case.build("nomic-v1.5")
    embedder = Embedder.from_pretrained(folder, backend="auto")
    before = embedder.encode(TEXTS, prompt="")
    after = embedder.to(DEVICE).encode(TEXTS, prompt="")
    back = embedder.to("cpu").encode(TEXTS, prompt="")
    assert np.array_equal(before, back)
    unit = [torch.from_numpy(v / np.linalg.norm(v, axis=1, keepdims=True)) for v in (before, after)]
    note(record, (difference(*unit), EMBEDDING), "vectors, moved", "nomic-v1.5", "float32")
