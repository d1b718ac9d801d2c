"""Text in, unit vectors out: Embedder against sentence-transformers on the same folder.

The models are tiny except for their width, 256. A unit vector of width 64 has larger elements, so
rounding is larger too: measured against float64, sentence-transformers itself breaks the bound.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from nomicbert import Embedder
from tests.parity.bounds import BACKENDS, EMBEDDING
from tests.parity.report import difference, held, seen
from tests.parity.support import NATIVE, Case, clear_tokens
from tests.support.checkpoints import read_config, read_tensors
from tests.support.oracle import oracle_forward, oracle_pool
from tests.support.variants import VARIANT_TABLE
from tests.support.vocabularies import SENTENCES

MODES = ("mean", "cls", "max", "mean_sqrt_len", "lasttoken", "weightedmean")
TEXTS = [*SENTENCES, "deep " * 40, "", SENTENCES[0]]
WIDE: dict[str, Any] = {"hidden_size": 256}
SERVED = tuple(name for name in NATIVE if VARIANT_TABLE[name].pooling)


def mine(folder: Path, backend: str, **keywords: Any) -> Tensor:
    """Unit vectors of the package; the empty prompt disables default prompts."""
    embedder = Embedder.from_pretrained(folder, backend=backend)
    keywords = {"prompt": "", "normalize_embeddings": True} | keywords
    vectors = embedder.encode(TEXTS, **keywords)
    assert isinstance(vectors, np.ndarray)
    return torch.from_numpy(vectors)


def theirs(folder: Path, **keywords: Any) -> Tensor:
    model = SentenceTransformer(str(folder), device="cpu")
    keywords = {"normalize_embeddings": True} | keywords
    return torch.from_numpy(model.encode(TEXTS, **keywords))


@pytest.mark.parametrize("variant", SERVED)
def test_rows_equal_sentence_transformers(variant: str, case: Case) -> None:
    truth = theirs(case.build_native(variant, **WIDE))
    folder = case.build(variant, **WIDE)
    for backend in BACKENDS:
        vectors = mine(folder, backend)
        held("embedding", vectors, truth, EMBEDDING, backend)
        held("embedding", vectors.norm(dim=1), torch.ones(len(TEXTS)), EMBEDDING)
    assert difference(truth[0], truth[1]) > 0.01


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("variant", ["nomic-v1.5", "conan-v1"])
def test_pooling_modes_equal_sentence_transformers(variant: str, mode: str, case: Case) -> None:
    """Without L2, which would hide differences of norm; errors are relative to each norm."""
    folder = case.build_native(variant, **WIDE)
    width = read_config(folder)["hidden_size"]
    name = mode + "_tokens" * (mode == "mean_sqrt_len")
    pooling = {"embedding_dimension": width, "pooling_mode": name, "include_prompt": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    truth = theirs(folder, normalize_embeddings=False)
    length = truth.norm(dim=1, keepdim=True)
    assert length.max() > 2
    for backend in BACKENDS:
        vectors = mine(folder, backend, normalize_embeddings=False)
        held("embedding", vectors / length, truth / length, EMBEDDING, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_prompts_and_slices_equal_sentence_transformers(backend: str, case: Case) -> None:
    folder = case.build_native("e5", **WIDE)
    asked = {"prompt_name": "query", "truncate_dim": 24}
    truth = theirs(folder, **asked)
    assert truth.shape[1] == 24
    held("embedding", mine(folder, backend, prompt=None, **asked), truth, EMBEDDING)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", ["nomic-v1.5", "nomic-v1"])
def test_matryoshka_sizes_equal_the_cards_recipe(variant: str, backend: str, case: Case) -> None:
    """The recipe applied to sentence-transformers' full vectors; v1's has no layer_norm."""
    folder = case.build_native(variant, **WIDE)
    texts = TEXTS[:3]
    model = SentenceTransformer(str(folder), device="cpu")
    full = torch.from_numpy(model.encode(texts)).double()
    if variant == "nomic-v1.5":
        full = nn.functional.layer_norm(full, full.shape[1:])
    embedder = Embedder.from_pretrained(folder, backend=backend)
    for dim in (256, 192, 128, 64, 7):
        truth = nn.functional.normalize(full[:, :dim])
        vectors = torch.from_numpy(embedder.encode(texts, prompt="", matryoshka_dim=dim))
        held("embedding", vectors, truth, EMBEDDING, dim)


@pytest.mark.parametrize("backend", BACKENDS)
def test_experts_equal_the_oracle(backend: str, case: Case) -> None:
    """Only texts whose tokens all have stable routing."""
    folder = case.build("nomic-v2-moe", **WIDE)
    embedder = Embedder.from_pretrained(folder, backend=backend)
    ids, cut = embedder.tokenizer.encode(TEXTS, 100)
    assert not cut
    vectors = torch.from_numpy(embedder.encode(TEXTS, prompt=""))
    config, tensors = read_config(folder), read_tensors(folder)
    compared = 0
    for text, vector in zip(ids, vectors, strict=True):
        batch = {"input_ids": torch.tensor([list(text)])}
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        if not clear_tokens(folder, batch, least=0.0).all():
            continue
        hidden = oracle_forward(config, tensors, **batch)[-1]
        wanted = oracle_pool(hidden, batch["attention_mask"], "mean", normalize=True)[0]
        held("embedding", vector, wanted, EMBEDDING)
        compared += 1
    assert compared >= 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_dense_faults_exceed_the_bound_tenfold(backend: str, case: Case) -> None:
    """Faults: the layer skipped, its bias dropped, its activation changed."""
    folder = case.build_native("conan-v1", **WIDE)
    truth = theirs(folder)

    def encode(embedder: Embedder) -> Tensor:
        vectors = embedder.encode(TEXTS, normalize_embeddings=True)
        return torch.from_numpy(vectors)

    embedder = Embedder.from_pretrained(folder, backend=backend)
    held("embedding", encode(embedder), truth, EMBEDDING)
    (step,) = embedder.pooling.steps
    layer = step.linear
    bias = layer.bias.detach().clone()
    with torch.no_grad():
        layer.bias.zero_()
    seen(encode(embedder), truth, EMBEDDING)
    with torch.no_grad():
        layer.bias.copy_(bias)
    held("embedding", encode(embedder), truth, EMBEDDING)
    step.activation = "Tanh"
    seen(encode(embedder), truth, EMBEDDING)
    embedder.pooling.steps = nn.ModuleList()
    embedder.pooling.embedding_dimension = layer.in_features
    skipped = nn.functional.pad(encode(embedder), (0, layer.out_features - layer.in_features))
    seen(skipped, truth, EMBEDDING)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pooling_faults_exceed_the_bound_tenfold(backend: str, case: Case) -> None:
    folder = case.build_native("nomic-v1.5", **WIDE)
    truth = theirs(folder)
    embedder = Embedder.from_pretrained(folder, backend=backend)
    for mode in MODES[1:]:
        if mode == "mean_sqrt_len":  # the same direction as the mean
            continue
        embedder.pooling.modes = (mode,)
        wrong = embedder.encode(TEXTS, prompt="", normalize_embeddings=True)
        seen(torch.from_numpy(wrong), truth, EMBEDDING, mode)
