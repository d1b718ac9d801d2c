"""float16 on a CPU: parameters stored in 16 bits and computed in float32."""

# An imported fixture is named again as an argument.
# ruff: noqa: F811

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nomicbert import Embedder, NomicBert
from nomicbert.modeling.packing import pack
from tests.modeling.dtypes_cases import (  # noqa: F401
    BACKENDS,
    FULL,
    HALF,
    IDS,
    MASK,
    VARIANTS,
    batch_of,
    equal,
    folders,
    full_copy,
    logged,
    packed,
)
from tests.ops.cases import NEEDS_PACKING
from tests.support.vocabularies import SENTENCES

WIDENED = "float16 on a CPU is stored as float16 and computed in float32"


@pytest.fixture(params=[(v, b) for v in VARIANTS for b in BACKENDS], ids="-".join)
def pair(request: pytest.FixtureRequest, folders: dict[str, Path]) -> tuple[NomicBert, NomicBert]:
    """Two models with the same values, stored in float16 and in float32."""
    variant, name = request.param
    keywords = {"backend": name, "add_pooling_layer": variant == "gte"}
    half = NomicBert.from_pretrained(folders[variant], dtype=HALF, **keywords)
    assert {p.dtype for p in half.parameters()} == {HALF}
    return half, NomicBert.from_pretrained(folders[variant], **keywords)


def test_half_on_a_cpu_equals_full(pair: tuple[NomicBert, NomicBert]) -> None:
    half, full = pair
    assert equal(half, full)
    batch = batch_of(9, 2, 2)
    states: dict[NomicBert, list[Tensor]] = {half: [], full: []}
    for rows in (batch.first_tokens(), batch.last_tokens()):
        with torch.inference_mode():
            mine, wanted = (m.encode_packed(batch, rows=rows, states=states[m]) for m in pair)
        assert torch.equal(mine, wanted)
    assert all(map(torch.equal, states[half], states[full]))
    assert half.dtype == HALF


def test_forward_returns_the_dtype_of_the_model(pair: tuple[NomicBert, NomicBert]) -> None:
    for arguments in ({"input_ids": IDS}, {"inputs_embeds": torch.randn(3, 10, 64).half()}):
        with torch.no_grad():
            mine, wanted = (
                model(**arguments, attention_mask=MASK, output_hidden_states=True) for model in pair
            )
        assert len(mine.hidden_states) == 3
        assert mine.keys() == wanted.keys()
        assert ("pooler_output" in mine) == (pair[0].pooler is not None)
        for name in mine:
            for x, y in zip(*(o[name] if name == "hidden_states" else [o[name]] for o in
                              (mine, wanted)), strict=True):  # fmt: skip
                assert x.dtype == HALF
                assert y.dtype == FULL
                assert torch.equal(x, y.half())  # one cast, at the very end


def test_gradients(pair: tuple[NomicBert, NomicBert]) -> None:
    """Gradients of float32, cast once; those of a table's row are summed in float16."""
    for model in pair:
        model.encode_packed(batch_of(3, 3, 12, 1)).square().sum().backward()
    half, full = (dict(model.named_parameters()) for model in pair)
    for name, parameter in half.items():
        mine, wanted = parameter.grad, full[name].grad
        if "pooler" in name:
            assert mine is wanted is None
            continue
        assert mine.dtype == HALF
        assert wanted.abs().max() > 0
        if "embeddings" in name and "norm" not in name:
            assert (mine.float() - wanted).abs().max() <= 1e-2 * wanted.abs().max()
        else:
            assert torch.equal(mine, wanted.half()), name


@pytest.mark.parametrize("trained", ["embeddings", "bias", "attention_norm", "out.weight"])
def test_gradients_of_a_model_frozen_in_part(
    trained: str, pair: tuple[NomicBert, NomicBert]
) -> None:
    """Weights prepared under inference_mode neither block gradients nor raise in training."""
    for model in pair:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained in name)
        with torch.inference_mode():
            model.encode_packed(batch_of(4, 2))
        model.encode_packed(batch_of(3, 3, 12, 1)).square().sum().backward()
    full = dict(pair[1].named_parameters())
    for name, parameter in pair[0].named_parameters():
        if full[name].grad is None:
            assert parameter.grad is None
            continue
        assert full[name].grad.abs().max() > 0
        difference = (parameter.grad.float() - full[name].grad).abs().max()
        assert difference <= 1e-2 * full[name].grad.abs().max(), name


def test_half_of_a_model_on_a_cpu(pair: tuple[NomicBert, NomicBert]) -> None:
    half, full = pair
    wanted = packed(full)
    assert full.half() is full
    assert full.dtype == HALF
    assert equal(full, full_copy(half))
    assert torch.equal(packed(full), wanted)
    assert torch.equal(packed(full.float()), wanted)


def test_a_copy_is_a_model_of_its_own(pair: tuple[NomicBert, NomicBert]) -> None:
    half, full = pair
    packed(half)
    other = copy.deepcopy(half)
    assert equal(other, full)
    with torch.no_grad():
        other.layers[0].attention.out.weight.zero_()
    assert not equal(other, full)
    assert equal(other, full_copy(other))
    assert equal(half, full)


CHANGES: dict[str, Callable[[Tensor], Any]] = {
    "in place": lambda p: p.mul_(1.5).add_(0.1),
    "behind the back of versions": lambda p: p.data.mul_(1.5).add_(0.1),
    "another storage": lambda p: setattr(p, "data", p.data * 1.5 + 0.1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_a_parameter_is_seen(
    change: str, pair: tuple[NomicBert, NomicBert]
) -> None:
    half = pair[0]
    for name, parameter in half.layers[1].named_parameters():
        before = packed(half)
        with torch.no_grad():
            CHANGES[change](parameter)
        assert equal(half, full_copy(half)), name
        if "qkv.bias" not in name:  # a value added to all keys changes no attention weight
            assert not torch.equal(packed(half), before), name


@pytest.mark.parametrize("foreach", [False, True])
def test_made_again_after_an_optimizer_step(
    foreach: bool, pair: tuple[NomicBert, NomicBert]
) -> None:
    """In eval mode throughout, so that only the parameters reveal the change."""
    half = pair[0]
    optimizer = torch.optim.SGD(half.parameters(), lr=0.05, foreach=foreach)
    for _ in range(2):
        before = packed(half)
        half.encode_packed(batch_of(5, 2)).square().mean().backward()
        optimizer.step()
        assert equal(half, full_copy(half))
        assert (packed(half) - before).abs().max() > 1e-4


def test_one_wide_copy_of_a_weight_at_most(pair: tuple[NomicBert, NomicBert]) -> None:
    half = pair[0]
    packed(half)
    parameters = {id(p) for p in half.parameters()}
    weights = [entry.weight for entry in half._prepared._entries.values()]
    assert len(weights) >= 8
    for weight in weights:
        assert weight.dtype == FULL
        assert (id(weight.source) in parameters) == (weight.packed is not None)
        assert weight.packed is None or weight.source.dtype == HALF


@NEEDS_PACKING
@pytest.mark.all_threads
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_text_keeps_its_bits(variant: str, folders: dict[str, Path], seed: int) -> None:
    model = NomicBert.from_pretrained(folders[variant], dtype=HALF, backend="torch")
    rng = random.Random(seed)
    texts = [[rng.randrange(5, 250) for _ in range(n)] for n in (2, 3, 17, 33, 65, 200, 17)]

    def encode(indices: list[int]) -> list[Tensor]:
        with torch.inference_mode():
            states = model.encode_packed(pack([texts[i] for i in indices]))
        return list(states.split([len(texts[i]) for i in indices]))

    alone = [encode([i])[0] for i in range(len(texts))]
    for _ in range(10):
        indices = rng.sample(range(len(texts)), rng.randint(2, len(texts)))
        for i, states in zip(indices, encode(indices), strict=True):
            assert torch.equal(states, alone[i])


@pytest.mark.parametrize("variant", [*VARIANTS, "conan-v1"])
def test_vectors(variant: str, folders: dict[str, Path]) -> None:
    """Vectors of the whole pipeline, with pooling and Dense layers."""
    half, full = (Embedder(folders[variant], dtype=dtype) for dtype in (HALF, FULL))
    assert {p.dtype for p in half.pooling.parameters()} == ({HALF} if half.pooling.steps else set())
    full.pooling.half().float()  # the Dense file holds float32
    assert (half.encode(SENTENCES, prompt="") == full.encode(SENTENCES, prompt="")).all()


def test_the_core_is_one_graph(folders: dict[str, Path]) -> None:
    model = NomicBert.from_pretrained(folders["nomic-v2-moe"], dtype=HALF, backend="torch")
    torch.compiler.reset()
    compiled = torch.compile(model.core, fullgraph=True, backend="aot_eager")
    ctx = model.context(batch_of(3, 9))
    with torch.no_grad():
        assert (compiled(ctx) - model.core(ctx)).abs().max() <= 1e-5
    torch.compiler.reset()


def test_under_autocast(pair: tuple[NomicBert, NomicBert]) -> None:
    """Packed weights ignore autocast; unpacked float32 weights replace them."""
    packed(pair[0])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        mine, wanted = (model(IDS, MASK)[0] for model in pair)
    assert mine.dtype == HALF
    assert torch.equal(mine, wanted.half())


def test_logged_once_per_model(folders: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    line = ("nomicbert.modeling.backend_module", logging.WARNING, WIDENED)
    model = NomicBert.from_pretrained(folders["gte"], dtype=HALF)
    assert logged(caplog) == []  # it may be moved to a GPU before it computes anything
    for _ in range(2):
        packed(model)
        packed(model.train().eval())
        packed(model.float().half())
    assert logged(caplog) == [line]
    packed(copy.deepcopy(model))
    assert logged(caplog) == [line]
    other = NomicBert.from_pretrained(folders["gte"])
    packed(other)
    assert logged(caplog) == [line]
    packed(other.half())
    assert logged(caplog) == [line, line]
