"""Dynamic NTK around and beyond the trained length, on one layer: theta depends on length alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nomicbert.modeling.packing import pack
from tests.parity.bounds import BACKENDS, HIDDEN
from tests.parity.report import difference, held, seen
from tests.parity.support import (
    Batch,
    Case,
    hidden_states,
    masked,
    oracle_states,
    ours,
    packed_states,
    theirs,
)
from tests.support.checkpoints import edit_config, read_config

TRAINED = 2048
LENGTHS = (2047, 2048, 2049, 4096)
# one head as large as the real ones, or two small ones
SIZES = {64: {"n_head": 1}, 16: {"n_embd": 32, "n_head": 2}}


def build(case: Case, variant: str = "nomic-v1.5", head_dim: int = 64, **changes: Any) -> Path:
    sizes: dict[str, Any] = {"n_layer": 1, "n_inner": 32} | SIZES[head_dim]
    return case.build(variant, **sizes, **changes)


def native(case: Case, head_dim: int = 64) -> Path:
    """The same weights for transformers, with the scaling in its own keys."""
    sizes: dict[str, Any] = {"n_layer": 1, "n_inner": 32} | SIZES[head_dim]
    folder = case.build_native("nomic-v1.5", **sizes)
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1000.0}
    edit_config(folder, rope_parameters=rope)
    assert read_config(folder)["max_position_embeddings"] == TRAINED
    return folder


def batch_of(case: Case, folder: Path, length: int, shorter: int = 9) -> Batch:
    """A row of this length, and a shorter one that is padded to it on the left."""
    return case.batch(folder, lengths=(length, shorter), side="left")


@pytest.mark.parametrize("head_dim", SIZES)
@pytest.mark.parametrize("length", LENGTHS)
def test_scaled_lengths_equal_both_references(length: int, head_dim: int, case: Case) -> None:
    folder = build(case, head_dim=head_dim)
    batch = batch_of(case, folder, length)
    oracle = oracle_states(folder, batch, rotary_scaling_factor=2)
    # a fresh model: transformers keeps the theta of the longest batch so far
    fresh = masked(hidden_states(theirs(native(case, head_dim)), batch), batch)
    for backend in BACKENDS:
        mine = hidden_states(ours(folder, backend, rotary_scaling_factor=2), batch)
        held("hidden states", mine, oracle, HIDDEN, backend)
        held("hidden states", mine, fresh, HIDDEN, backend)
        plain = hidden_states(ours(folder, backend), batch)
        if length <= TRAINED:
            assert difference(mine, plain) == 0
        else:
            seen(mine, plain, HIDDEN)


def test_8192_tokens_equal_transformers(case: Case) -> None:
    folder = build(case)
    batch = batch_of(case, folder, 8192, 5000)
    fresh = masked(hidden_states(theirs(native(case)), batch), batch)
    mine = hidden_states(ours(folder, "torch", rotary_scaling_factor=2), batch)
    held("hidden states", mine, fresh, HIDDEN)


@pytest.mark.parametrize("backend", BACKENDS)
def test_v1_config_scales_from_the_trained_length(backend: str, case: Case) -> None:
    """v1 has factor 2, and 8192 in the key that has the trained length elsewhere."""
    folder = build(case, "nomic-v1")
    config = read_config(folder)
    assert config["rotary_scaling_factor"] == 2
    assert config["max_position_embeddings"] == 8192
    assert "max_trained_positions" not in config
    batch = batch_of(case, folder, 2500)
    mine = hidden_states(ours(folder, backend), batch)
    held("hidden states", mine, oracle_states(folder, batch), HIDDEN)
    off = hidden_states(ours(folder, backend, rotary_scaling_factor=0), batch)
    edit_config(folder, rotary_scaling_factor=None, rope_parameters=...)
    held("hidden states", off, oracle_states(folder, batch), HIDDEN)
    seen(off, mine, HIDDEN)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_state_between_batches(backend: str, case: Case) -> None:
    """After a longer batch, every length gives exactly the values of a fresh model."""
    folder = build(case, head_dim=16)
    used = ours(folder, backend, rotary_scaling_factor=2)
    longest = hidden_states(used, batch_of(case, folder, 3000))
    for length in (2400, 2049, 2048, 40):
        batch = batch_of(case, folder, length)
        fresh = hidden_states(ours(folder, backend, rotary_scaling_factor=2), batch)
        assert difference(hidden_states(used, batch), fresh) == 0
    assert difference(hidden_states(used, batch_of(case, folder, 3000)), longest) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_texts_each_have_their_own_theta(backend: str, case: Case) -> None:
    """As in `encode`: a text's own length decides, whatever else is in the batch."""
    folder = build(case, head_dim=16)
    model = ours(folder, backend, rotary_scaling_factor=2)
    ids = case.batch(folder, lengths=(2600,))["input_ids"][0].tolist()
    texts = [ids[:10], ids[:2600], ids[:2100], ids[:2048], ids[:2600]]
    together = packed_states(model, pack(texts)).split([len(text) for text in texts], dim=1)
    for text, states in zip(texts, together, strict=True):
        alone: Batch = {"input_ids": torch.tensor([text])}
        truth = oracle_states(folder, alone, rotary_scaling_factor=2)[:, 0]
        held("hidden states", states, truth, HIDDEN)


@pytest.mark.parametrize("backend", BACKENDS)
def test_given_positions_decide_the_scaling(backend: str, case: Case) -> None:
    """A short row whose positions reach beyond the trained length is scaled by the largest.

    transformers computes theta in float32 from a tensor of the length, the oracle and the remote
    code in float64. At some lengths this alone changes hidden states by 4e-4. 3072 is 1.5 times
    the trained length, a factor that float32 represents exactly.
    """
    folder = build(case)
    batch = case.batch(folder, lengths=(30, 30))
    batch["position_ids"] = torch.randint(3000, (2, 30))
    batch["position_ids"][0, 7] = 3071
    mine = hidden_states(ours(folder, backend, rotary_scaling_factor=2), batch)
    truth = oracle_states(folder, batch, rotary_scaling_factor=2)
    held("hidden states", mine, truth, HIDDEN)
    fresh = hidden_states(theirs(native(case)), batch)
    held("hidden states", mine, fresh, HIDDEN)
