"""bfloat16 on CPUs with and without instructions for it."""

# An imported fixture is named again as an argument.
# ruff: noqa: F811

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from nomicbert import Embedder, NomicBert
from tests.modeling.dtypes_cases import (  # noqa: F401
    BACKENDS,
    BRAIN,
    FULL,
    IDS,
    MASK,
    VARIANTS,
    batch_of,
    capable,
    equal,
    folders,
    full_copy,
    logged,
    packed,
)
from tests.support.cpus import pretend
from tests.support.vocabularies import SENTENCES

BRAIN_WIDENED = "bfloat16 on this CPU is stored as bfloat16 and computed in float32"


def without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a CPU without instructions for bf16."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})


@pytest.fixture(params=[(v, b) for v in VARIANTS for b in BACKENDS], ids="-".join)
def brain(request: pytest.FixtureRequest, folders: dict[str, Path]) -> NomicBert:
    variant, name = request.param
    return NomicBert.from_pretrained(folders[variant], dtype=BRAIN, backend=name)


def test_bfloat16_without_instructions_equals_full(
    brain: NomicBert, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch)
    full = full_copy(brain)
    assert equal(brain, full)
    assert {p.dtype for p in brain.parameters()} == {BRAIN}
    with torch.no_grad():
        mine, wanted = (m(IDS, MASK, output_hidden_states=True) for m in (brain, full))
    assert mine.last_hidden_state.dtype == BRAIN
    for x, y in zip(mine.hidden_states, wanted.hidden_states, strict=True):
        assert torch.equal(x, y.to(BRAIN))
    for model in (brain, full):
        model.encode_packed(batch_of(3, 12, 1)).square().sum().backward()
    for layers in zip(brain.layers, full.layers, strict=True):
        (x, y) = (layer.attention.out.weight.grad for layer in layers)
        assert y.abs().max() > 0
        assert torch.equal(x, y.to(BRAIN))


def test_bfloat16_follows_the_instructions(
    brain: NomicBert, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The current CPU decides: no weights or plans of the other kind are reused."""
    without(monkeypatch)
    full = full_copy(brain)
    assert equal(brain, full)
    pretend(monkeypatch, True)
    mine = packed(brain)
    assert mine.dtype == BRAIN
    assert not torch.equal(mine, packed(full).to(BRAIN))
    assert {e.weight.dtype for e in brain._prepared._entries.values()} == {BRAIN}
    pretend(monkeypatch, False)
    assert equal(brain, full)
    assert {e.weight.dtype for e in brain._prepared._entries.values()} == {FULL}


def test_vectors_in_bfloat16(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense layers follow the instructions too."""
    without(monkeypatch)
    mine, full = (Embedder(folders["conan-v1"], dtype=dtype) for dtype in (BRAIN, FULL))
    for module in (full.model, full.pooling):
        module.bfloat16().float()
    wanted = full.encode(SENTENCES, prompt="")
    assert (mine.encode(SENTENCES, prompt="") == wanted).all()
    pretend(monkeypatch, True)
    assert (mine.encode(SENTENCES, prompt="") != wanted).any()


def test_the_core_in_bfloat16_is_one_graph(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiled graph cannot query the CPU's instructions."""
    without(monkeypatch)
    model = NomicBert.from_pretrained(folders["nomic-v2-moe"], dtype=BRAIN, backend="torch")
    torch.compiler.reset()
    compiled = torch.compile(model.core, fullgraph=True, backend="eager")
    ctx = model.context(batch_of(3, 9))
    with torch.no_grad():
        found = compiled(ctx)
        assert found.dtype == FULL
        assert (found - model.core(ctx)).abs().max() <= 1e-5
    torch.compiler.reset()


@pytest.mark.parametrize("stored", [FULL, BRAIN])
def test_autocast_is_unchanged(
    stored: torch.dtype, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Autocast to bf16 runs matmuls in bf16, whatever the dtype of the parameters."""
    model = NomicBert.from_pretrained(folders["nomic-v1.5"], dtype=stored, backend="torch")
    without(monkeypatch)
    products: list[torch.dtype] = []
    linear = torch.nn.functional.linear
    monkeypatch.setattr(
        torch.nn.functional,
        "linear",
        lambda *args: (y := linear(*args), products.append(y.dtype))[0],
    )
    with torch.no_grad(), torch.autocast("cpu", BRAIN):
        mine = packed(model)
        wanted = packed(full_copy(model))
        assert model.plan([3]) == full_copy(model).plan([3])
    assert set(products) == {BRAIN}
    assert torch.equal(mine, wanted)
    if stored == FULL:
        pretend(monkeypatch, True)
        with torch.no_grad(), torch.autocast("cpu", BRAIN):
            assert torch.equal(packed(model), mine)


@pytest.mark.parametrize(
    ("names", "wanted"), [((), [(logging.INFO, BRAIN_WIDENED)]), (("avx512_bf16",), [])]
)
def test_log_of_widened_bfloat16(
    names: tuple[str, ...],
    wanted: list[Any],
    folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    capable(monkeypatch, *names)
    model = NomicBert.from_pretrained(folders["gte"], dtype=torch.bfloat16, backend="reference")
    for _ in range(2):
        packed(model.train().eval())
    assert [line[1:] for line in logged(caplog)] == wanted
