"""The sizes that tuning measures, and the launch settings that it tries."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from nomicbert_kernels import launch, select_ops
from nomicbert_kernels.launch import Row, Settings
from nomicbert_kernels.tuning import candidates as grid
from nomicbert_kernels.tuning import problems as measured
from nomicbert_kernels.tuning import tables
from nomicbert_kernels.tuning.candidates import candidates, template_of
from nomicbert_kernels.tuning.problems import KERNELS, LEADING, Draw, Model, problems
from tests.ops.tuning_cases import ARCH, CPU, GATED, MIXED, PLAIN, only, small  # noqa: F401

pytest.importorskip("triton", minversion="3.6")

ARCHITECTURES = (*launch.SHARED_MEMORY, "sm_103")


def sizes_of(*models: Model, kernels: Sequence[str] = KERNELS) -> set[tuple[Any, ...]]:
    found = problems(models, kernels, [])
    return {(p.kernel, *p.exactly.values()) for p in found}


ATTENTION_16 = {(f"attention_{name}", 16) for name in ("short", "long", "rows")}


def test_the_sizes_of_a_model() -> None:
    products = {("linear", 32, 32), ("linear", 32, 48)}
    assert sizes_of(GATED) == {
        ("qkv_rotary", 96, 32),
        ("swiglu", 48, 32),
        *products,
        *ATTENTION_16,
    }
    assert sizes_of(PLAIN) == {("linear", 96, 32), ("gelu", 48, 32), *products, *ATTENTION_16}
    # rotation after the vendor's GEMM has no settings
    apart = replace(GATED, fused_rotary=False)
    assert sizes_of(apart) == sizes_of(GATED) - {("qkv_rotary", 96, 32)}
    assert sizes_of(MIXED, kernels=["experts"]) == {("experts", 24, 16), ("experts", 16, 24)}


def test_each_size_is_measured_once() -> None:
    once = problems([GATED], KERNELS, [])
    assert problems([GATED, GATED], KERNELS, []) == once
    keys = [(p.kernel, *p.exactly.items(), p.up_to) for p in problems(LEADING, KERNELS, [])]
    assert len(keys) == len(set(keys))


def test_limits_of_the_shipped_rows_count() -> None:
    """Within one problem the shipped table gives one row."""
    rows = [
        Row("swiglu", 4, {"rows": 5}, {}, Settings()),
        Row("gelu", 4, {"rows": 6}, {}, Settings()),
        Row("swiglu", 4, {}, {}, Settings()),
    ]
    found = [(p.up_to, p.rows) for p in problems([GATED], ["swiglu"], rows)]
    assert found == [(5, 5), (8, 8), (None, 20)]


def test_draws_repeat() -> None:
    first, again = Draw(torch.float16, CPU), Draw(torch.float16, CPU)
    assert torch.equal(first(3, 4), again(3, 4))
    assert first(2).dtype == torch.float16


def test_routes_of_a_mixture_are_unambiguous(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens have the same experts in the dtype and in fp64."""
    monkeypatch.setattr(measured, "CLEAR", 0.05)
    call = measured.experts(MIXED, 40, Draw(torch.float16, CPU))(
        select_ops("cpu", torch.float16, "reference"), torch.float64
    )
    x, router = call.args[0], call.args[1].source  # type: ignore[attr-defined]
    shares = torch.softmax(x @ router.T, dim=1).sort(descending=True).values
    assert x.shape == (20, 16)
    assert (shares[:, 1] - shares[:, 2]).min() > measured.CLEAR / 2


@pytest.fixture(params=ARCHITECTURES)
def arch(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("quick", [False, True])
def test_candidates_fit(arch: str, size: int, quick: bool) -> None:
    shipped = tables.shipped_rows(arch, size)
    limit = launch.SHARED_MEMORY.get(arch, grid.LEAST_SHARED)
    for problem in problems(LEADING, KERNELS, shipped):
        template = template_of(problem, shipped)
        found = candidates(problem, shipped, arch, size, quick)
        assert template not in found
        assert len({json.dumps([dict(s.keywords), s.library]) for s in found}) == len(found)
        assert found, problem
        assert len(found) <= (10 if quick else 80)
        library = [s for s in found if s.library]
        assert len(library) == (problem.kernel in grid.WITH_LIBRARY and not template.library)
        for s in found:
            if s.library:
                continue
            assert set(s.constants) == set(template.constants)
            same = set(s.constants) - {"BLOCK_M", "BLOCK_N", "BLOCK_K", "DESCRIPTORS", "FLATTEN"}
            assert all(s[name] == template[name] for name in same)
            assert not (s.constants.get("DESCRIPTORS") and arch in ("sm_80", "sm_86", "gfx942"))
            stages = s.options["num_stages"]
            if problem.kernel.startswith("attention"):
                head = problem.exactly["head_dim"]
                used = (s["BLOCK_M"] + 2 * stages * s["BLOCK_N"]) * head * size
            else:
                weights = 2 if problem.kernel == "swiglu" else 1
                used = stages * (s["BLOCK_M"] + weights * s["BLOCK_N"]) * s["BLOCK_K"] * size
            assert used <= limit
            if problem.kernel == "qkv_rotary":
                assert s["BLOCK_N"] % problem.whole == 0


def tile_of(s: Settings) -> tuple[int, ...]:
    return s["BLOCK_M"], s["BLOCK_N"], s.constants.get("BLOCK_K", 0)


def test_quick_tries_fewer_candidates(arch: str) -> None:
    shipped = tables.shipped_rows(arch, 2)
    for problem in problems(LEADING, KERNELS, shipped):
        some = candidates(problem, shipped, arch, 2, quick=True)
        whole = candidates(problem, shipped, arch, 2)
        assert len(some) <= len(whole)
        assert {tile_of(s) for s in some} == {tile_of(s) for s in whole}


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("head_dim", [16, 32, 64, 128, 256])
def test_tiles_of_short_and_long_texts_stay_apart(arch: str, head_dim: int, size: int) -> None:
    """Whichever row is replaced, tiles of long texts use their own settings."""
    shipped = tables.shipped_rows(arch, size)
    one = Model("one", head_dim, 1, 64, "gelu", False, False, False)
    found = {p.kernel: p for p in problems([one], ["attention"], shipped)}
    tiles = {}
    for kind in ("short", "long"):
        problem = found[f"attention_{kind}"]
        tried = candidates(problem, shipped, arch, size)
        tiles[kind] = {s["BLOCK_M"] for s in tried}, template_of(problem, shipped)["BLOCK_M"]
    (short, shipped_short), (long, shipped_long) = tiles["short"], tiles["long"]
    assert all(m > n for m in long for n in {*short, shipped_short})
    if shipped_short < shipped_long:
        assert all(n < shipped_long for n in short)


def test_a_kernel_without_a_shipped_row() -> None:
    with pytest.raises(LookupError, match="swiglu"):
        candidates(only("swiglu"), [], ARCH, 4)
