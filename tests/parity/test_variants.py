"""Every variant: all hidden states against transformers or the oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.parity.bounds import BACKENDS, HIDDEN
from tests.parity.report import difference, held
from tests.parity.support import (
    NATIVE,
    ORACLE_ONLY,
    Case,
    clear_tokens,
    hidden_states,
    masked,
    oracle_states,
    ours,
    theirs,
)
from tests.support.checkpoints import VARIANTS, read_config, read_tensors

# Variants that transformers cannot load or misreads: (variant, changes of its config)
SPECIAL: dict[str, tuple[str, dict[str, Any]]] = {
    "partial-rotary": ("nomic-v1.5", {"rotary_emb_fraction": 0.5}),
    "interleaved": ("nomic-v1.5", {"rotary_emb_interleaved": True}),
    "interleaved-partial": (
        "nomic-v1.5",
        {"rotary_emb_interleaved": True, "rotary_emb_fraction": 0.25},
    ),
    "legacy-only": ("nomic-v1.5", {"dialect": "legacy"}),
    "all-biases": (
        "nomic-v1.5",
        {"qkv_proj_bias": True, "mlp_fc1_bias": True, "mlp_fc2_bias": True},
    ),
    "other-sizes": (
        "nomic-v1.5",
        {"n_embd": 96, "n_head": 3, "n_inner": 40, "n_layer": 2, "layer_norm_epsilon": 1e-3},
    ),
    "plain-gelu": ("nomic-v2-moe", {"moe_every_n_layers": 0}),
    "theta": ("nomic-v1.5", {"rotary_emb_base": 77.0}),
    "scaled": (
        "nomic-v1",
        {"rotary_scaling_factor": 3.0, "max_trained_positions": 16, "dialect": "legacy"},
    ),
}


def test_all_variants_are_covered() -> None:
    assert {*NATIVE, *ORACLE_ONLY} == {*VARIANTS}
    assert len(VARIANTS) == 17


@pytest.mark.parametrize("variant", NATIVE)
def test_rows_equal_transformers(variant: str, case: Case) -> None:
    folder, native = case.build(variant), case.build_native(variant)
    batch = case.batch(folder)
    mine = {backend: hidden_states(ours(folder, backend), batch) for backend in BACKENDS}
    for attention in ("sdpa", "eager"):
        truth = masked(hidden_states(theirs(native, attention), batch), batch)
        assert len(truth) == read_config(native)["num_hidden_layers"] + 1
        for backend in BACKENDS:
            held("hidden states", mine[backend], truth, HIDDEN, (attention, backend))


@pytest.mark.parametrize("variant", ["nomic-v1.5", "bge-en", "arctic-m-long"])
def test_triton_equals_transformers(variant: str, case: Case) -> None:
    """A few short texts, because without a GPU it runs in the interpreter."""
    folder = case.build(variant)
    batch = case.batch(folder, lengths=(5, 17, 1))
    truth = masked(hidden_states(theirs(case.build_native(variant)), batch), batch)
    held("hidden states", hidden_states(ours(folder, "triton"), batch), truth, HIDDEN, variant)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dialect", ["native", "both"])
def test_key_families_equal_transformers(dialect: str, backend: str, case: Case) -> None:
    """transformers' own key family alone, and both families in one file."""
    folder = case.build("nomic-v1.5", dialect=dialect, layer_norm_epsilon=1e-6)
    assert ("n_embd" in read_config(folder)) == (dialect == "both")
    batch = case.batch(folder)
    truth = masked(hidden_states(theirs(folder), batch), batch)
    held("hidden states", hidden_states(ours(folder, backend), batch), truth, HIDDEN)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SPECIAL)
def test_variants_without_transformers_equal_the_oracle(
    name: str, backend: str, case: Case
) -> None:
    variant, changes = SPECIAL[name]
    folder = case.build(variant, **changes)
    batch = case.batch(folder)
    mine = hidden_states(ours(folder, backend), batch)
    held("hidden states", mine, oracle_states(folder, batch), HIDDEN)
    # the change has an effect: with the variant's own settings the results differ
    if "rotary_emb_fraction" in changes or "rotary_emb_interleaved" in changes:
        plain = hidden_states(ours(case.build(variant), backend), batch)
        assert difference(mine, plain) > 10 * HIDDEN


@pytest.mark.parametrize("backend", BACKENDS)
def test_prefixed_row_equals_the_oracle(backend: str, case: Case) -> None:
    folder = case.build("nomic-bert-2048")
    assert sum(name.startswith("bert.") for name in read_tensors(folder)) > 20
    assert "rope_parameters" not in read_config(folder)
    batch = case.batch(folder)
    mine = hidden_states(ours(folder, backend), batch)
    held("hidden states", mine, oracle_states(folder, batch), HIDDEN)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("top_k", [1, 2, 8])
def test_experts_equal_the_oracle(top_k: int, backend: str, case: Case) -> None:
    """Only tokens with stable routing; all tokens if all experts are selected."""
    folder = case.build("nomic-v2-moe", moe_top_k=top_k)
    batch = case.batch(folder)
    truth, mine = oracle_states(folder, batch), hidden_states(ours(folder, backend), batch)
    if top_k == read_config(folder)["num_experts"]:
        held("hidden states", mine, truth, HIDDEN)
        return
    clear = clear_tokens(folder, batch)
    held("hidden states", mine[:, clear], truth[:, clear], HIDDEN)
    assert not mine[:, ~batch["attention_mask"].bool()].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_stored_half_precision_equals_transformers(dtype: torch.dtype, case: Case) -> None:
    """16-bit files computed in float32, with the same rounded weights on both sides."""
    for variant in ("nomic-v1.5", "gte"):
        folder = case.build_native(variant, on_disk_dtype=dtype)
        batch = case.batch(folder)
        truth = masked(hidden_states(theirs(folder), batch), batch)
        held("hidden states", hidden_states(ours(folder, "torch"), batch), truth, HIDDEN)
