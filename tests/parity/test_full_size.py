"""The two main checkpoints at full size: sizes of the hub's configs, with random weights.

Each stage frees its model before the next one loads, and the test removes its folder.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from nomicbert import Embedder
from tests.parity.bounds import BACKENDS, EMBEDDING, HIDDEN
from tests.parity.report import held, seen
from tests.parity.support import (
    Batch,
    Case,
    hidden_states,
    masked,
)
from tests.support.vocabularies import SENTENCES

TEXTS = [*SENTENCES, "search_document: " + "the quick brown fox and a long red river " * 3]


@dataclasses.dataclass(frozen=True)
class Full:
    """One of the two checkpoints."""

    variant: str
    parameters: int  # of the encoder, without the pooler in Conan's file
    width: int
    dimension: int


ROWS = (
    Full("nomic-v1.5", 136_731_648, 768, 768),
    Full("conan-v1", 324_472_832, 1024, 1792),
)


@pytest.fixture(params=ROWS, ids=lambda row: row.variant)
def full(request: pytest.FixtureRequest, case: Case) -> Iterator[tuple[Full, Path]]:
    folder = case.build_native(request.param.variant, size="full")
    yield request.param, folder
    shutil.rmtree(folder)


def reference(folder: Path) -> tuple[Batch, Tensor, Tensor]:
    """Tokens, hidden states and unit vectors of sentence-transformers and its encoder."""
    model = SentenceTransformer(str(folder), device="cpu")
    tokens = model.tokenize(TEXTS)
    batch = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    states = masked(hidden_states(model[0].auto_model, batch), batch)
    vectors = torch.from_numpy(model.encode(TEXTS, normalize_embeddings=True))
    return batch, states, vectors


@pytest.mark.slow
@pytest.mark.all_threads
def test_full_size_equals_transformers(full: tuple[Full, Path]) -> None:
    row, folder = full
    batch, states, vectors = reference(folder)
    assert vectors.shape == (len(TEXTS), row.dimension)
    for backend in BACKENDS:
        embedder = Embedder.from_pretrained(folder, backend=backend)
        encoder = embedder.model
        assert sum(p.numel() for p in encoder.parameters()) == row.parameters
        assert encoder.config.hidden_size == row.width
        mine = hidden_states(encoder, batch)
        held("hidden states", mine, states, HIDDEN, backend)
        encoded = embedder.encode(TEXTS, prompt="", normalize_embeddings=True)
        held("embedding", torch.from_numpy(encoded), vectors, EMBEDDING, backend)
        with torch.no_grad():  # a fault in one tensor of hundreds, in a middle layer
            encoder.layers[len(encoder.layers) // 2].mlp_norm.bias.zero_()
        seen(hidden_states(encoder, batch), states, HIDDEN)
