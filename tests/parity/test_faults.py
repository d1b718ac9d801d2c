"""Planted faults: the parity comparison detects each of them, at ten times the bound.

A fault is planted in the package's own model after loading; batch, truth and comparison are those
of the parity tests.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from nomicbert import NomicBert
from nomicbert.modeling.rope import RotaryTables
from tests.parity.bounds import BACKENDS, HIDDEN
from tests.parity.report import held, seen
from tests.parity.support import (
    ORACLE_ONLY,
    Case,
    clear_tokens,
    hidden_states,
    masked,
    oracle_states,
    ours,
    theirs,
)


def bias_dropped(model: NomicBert) -> None:
    """Drop the biases of all linear layers, or of all norms if there are none."""
    biases = [(n, p) for n, p in model.named_parameters() if n.endswith("bias")]
    linear = [parameter for name, parameter in biases if "norm" not in name]
    for bias in linear or [parameter for _, parameter in biases]:
        bias.zero_()


def one_bias_dropped(model: NomicBert) -> None:
    """Drop a single bias, the last one."""
    [p for n, p in model.named_parameters() if n.endswith("bias")][-1].zero_()


def norms_swapped(model: NomicBert) -> None:
    for layer in model.layers:
        layer.attention_norm, layer.mlp_norm = layer.mlp_norm, layer.attention_norm


def gate_swapped(model: NomicBert) -> None:
    for layer in model.layers:
        weight = layer.mlp.up_gate.weight
        weight.copy_(torch.cat(weight.chunk(2)[::-1]))


def theta_1pct(model: NomicBert) -> None:
    theta = 1.01 * model.config.rope_theta
    model.rotary = RotaryTables(dataclasses.replace(model.config, rope_theta=theta))


def scale_2pct(model: NomicBert) -> None:
    for layer in model.layers:
        layer.attention.scale *= 1.02


def other_eps(model: NomicBert) -> None:
    """Use eps 1e-5 instead of 1e-12, or the reverse."""
    eps = 1e-12 if model.config.layer_norm_eps == 1e-5 else 1e-5
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = eps


def types_ignored(model: NomicBert) -> None:
    model.embeddings.token_type.weight.zero_()


def types_all_zero(model: NomicBert) -> None:
    table = model.embeddings.token_type.weight
    table.copy_(table[:1].expand_as(table).clone())


def key_and_value_swapped(model: NomicBert) -> None:
    for layer in model.layers:
        query, key, value = layer.attention.qkv.weight.chunk(3)
        layer.attention.qkv.weight.copy_(torch.cat([query, value, key]))


def experts_swapped(model: NomicBert) -> None:
    experts = model.layers[1].mlp.experts_up
    experts.copy_(experts.roll(1, 0))


def layer_skipped(model: NomicBert) -> None:
    model.layers[-1] = model.layers[-2]


def positions_shifted(model: NomicBert) -> None:
    table = model.embeddings.position.weight
    table.copy_(table.roll(1, 0))


FAULTS: tuple[Callable[[NomicBert], None], ...] = (
    bias_dropped,
    one_bias_dropped,
    norms_swapped,
    gate_swapped,
    theta_1pct,
    scale_2pct,
    other_eps,
    types_ignored,
    types_all_zero,
    key_and_value_swapped,
    experts_swapped,
    layer_skipped,
    positions_shifted,
)


def applicable(model: NomicBert) -> list[Callable[[NomicBert], None]]:
    """The faults that apply to this model."""
    config = model.config
    lacking = {
        gate_swapped: config.hidden_act != "swiglu",
        theta_1pct: not config.rotary_dim,
        positions_shifted: bool(config.rotary_dim),
        types_all_zero: config.type_vocab_size == 1,
        experts_swapped: not config.num_experts,
    }
    return [fault for fault in FAULTS if not lacking.get(fault)]


# one variant of each kind: the others differ in names and files, not in the computation
ROWS = ("nomic-v1.5", "nomic-bert-2048", "nomic-v2-moe", "conan-v1", "bge-en", "gte")


@torch.no_grad()
@pytest.mark.parametrize("variant", ROWS)
def test_each_fault_exceeds_the_bound_tenfold(variant: str, case: Case) -> None:
    folder = case.build(variant)
    batch = case.batch(folder)
    rows: tuple[slice | Tensor, ...] = (slice(-1, None),)
    if variant in ORACLE_ONLY:
        truth = oracle_states(folder, batch)
    else:
        truth = masked(hidden_states(theirs(case.build_native(variant)), batch), batch)
    if variant == "nomic-v2-moe":
        rows = (slice(-1, None), clear_tokens(folder, batch))
    backends = BACKENDS if variant in ("nomic-v1.5", "conan-v1", "nomic-v2-moe") else ("torch",)
    for backend in backends:
        sound = ours(folder, backend)
        held("hidden states", hidden_states(sound, batch)[rows], truth[rows], HIDDEN)
        faults = applicable(sound)
        assert len(faults) >= 9
        for fault in faults:
            faulty = ours(folder, backend)
            # before the fault, so that weights prepared for a model are not kept past a change
            hidden_states(faulty, batch)
            fault(faulty)
            seen(hidden_states(faulty, batch)[rows], truth[rows], HIDDEN, fault.__name__)
