"""The sizes that tuning measures, and the launch settings that it tries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from nomicbert_kernels import launch, select_ops
from nomicbert_kernels.launch import Row, Settings
from nomicbert_kernels.tensors import GROUP
from nomicbert_kernels.tuning import candidates as grid
from nomicbert_kernels.tuning import occupancy, tables
from nomicbert_kernels.tuning import problems as measured
from nomicbert_kernels.tuning.candidates import candidates, template_of
from nomicbert_kernels.tuning.problems import (
    KERNELS,
    LEADING,
    NARROW_KERNELS,
    Draw,
    Model,
    Problem,
    problems,
)
from tests.ops.tuning_cases import ARCH, CPU, GATED, MIXED, PLAIN, only, small  # noqa: F401

pytest.importorskip("triton", minversion="3.6")

# One that uses a relative's table, and one that has none.
LIKE = {"sm_103": "sm_100"}
ARCHITECTURES = (*launch.SHARED_MEMORY, *LIKE, "sm_75")


def sizes_of(*models: Model, kernels: Sequence[str] = KERNELS) -> set[tuple[Any, ...]]:
    found = problems(models, kernels, [])
    return {(p.kernel, *p.exactly.values()) for p in found}


ATTENTION_16 = {(f"attention_{name}", 16) for name in ("short", "long", "rows")}


def test_the_sizes_of_a_model() -> None:
    products = {("linear", 32, 32), ("linear", 32, 48)}
    assert sizes_of(GATED) == {
        ("qkv_rotary", 96, 32, 16),
        ("swiglu", 48, 32),
        *products,
        *ATTENTION_16,
    }
    assert sizes_of(PLAIN) == {("linear", 96, 32), ("gelu", 48, 32), *products, *ATTENTION_16}
    # rotation after the vendor's GEMM has no settings
    apart = replace(GATED, fused_rotary=False)
    assert sizes_of(apart) == sizes_of(GATED) - {("qkv_rotary", 96, 32, 16)}
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


def memory_of(problem: Problem, s: Settings, size: int) -> int:
    """Bytes of shared memory that a candidate's pipeline and result need."""
    stages = s.options["num_stages"]
    if problem.kernel.startswith("attention"):
        head = problem.exactly["head_dim"]
        return int((s["BLOCK_M"] + 2 * stages * s["BLOCK_N"]) * head * size)
    weights = 2 if problem.kernel == "swiglu" else 1
    loads = stages * (s["BLOCK_M"] + weights * s["BLOCK_N"]) * s["BLOCK_K"] * size
    narrow = size == 1 and problem.kernel in ("swiglu", "gelu")
    result = s["BLOCK_M"] * s["BLOCK_N"] * (1 if narrow else max(2, size))
    return int(loads + result * s.constants.get("DESCRIPTORS", False))


def measurable(arch: str, size: int) -> tuple[list[Row], list[Problem]]:
    """The shipped rows of an architecture, and the problems of the leading models."""
    shipped = tables.shipped_rows(arch, size)
    kernels = NARROW_KERNELS if size == 1 else KERNELS
    return shipped, problems(LEADING, kernels, shipped) if shipped else []


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("quick", [False, True])
def test_candidates_fit(arch: str, size: int, quick: bool) -> None:
    limit = launch.SHARED_MEMORY.get(LIKE.get(arch, arch), occupancy.LEAST_SHARED)
    shipped, found_problems = measurable(arch, size)
    for problem in found_problems:
        template = template_of(problem, shipped)
        found = candidates(problem, shipped, arch, size, quick)
        assert template not in found
        assert all(s not in found[:place] for place, s in enumerate(found))
        assert found, problem
        assert len(found) <= (12 if quick else 64)
        library = [s for s in found if s.library]
        asked = problem.kernel in grid.WITH_LIBRARY and size > 1
        assert len(library) == (asked and not template.library)
        for s in found:
            if s.library:
                continue
            assert set(s.constants) == set(template.constants)
            same = set(s.constants) - {"BLOCK_M", "BLOCK_N", "BLOCK_K", "DESCRIPTORS", "FLATTEN"}
            assert all(s[name] == template[name] for name in same)
            assert not (s.constants.get("DESCRIPTORS") and arch in ("sm_80", "sm_86", "gfx942"))
            assert memory_of(problem, s, size) <= limit
            if problem.kernel == "qkv_rotary":
                assert s["BLOCK_N"] % problem.exactly["head_dim"] == 0
            if size == 1:
                assert GROUP % s["BLOCK_K"] == 0
                assert problem.kernel not in ("swiglu", "gelu") or s["BLOCK_N"] == GROUP


@pytest.mark.parametrize("size", [1, 2, 4])
def test_two_programs_fit_where_they_are_launched(arch: str, size: int) -> None:
    """By shared memory and registers; only persistent kernels have a number of programs."""
    limit = launch.SHARED_MEMORY.get(LIKE.get(arch, arch), occupancy.LEAST_SHARED)
    shipped, found_problems = measurable(arch, size)
    for problem in found_problems:
        for s in candidates(problem, shipped, arch, size):
            if s.programs == 1:
                continue
            assert s["FLATTEN"]
            assert 2 * (memory_of(problem, s, size) + 1024) <= limit + 1024
            weights = 2 if problem.kernel == "swiglu" else 1
            sums = s["BLOCK_M"] * s["BLOCK_N"] * weights // (32 * s.options["num_warps"])
            assert 2 * 32 * s.options["num_warps"] * (sums + 56) <= 65_536


def on_hopper(kernel: str, up_to: int | None = None, size: int = 2) -> list[Settings]:
    """Candidates for nomic-embed-text-v1.5 on sm_90, with the shipped settings."""
    shipped = tables.shipped_rows("sm_90", size)
    asked = kernel.partition("_")[0] if kernel.startswith("attention") else kernel
    found = problems(LEADING[2:3] if kernel == "gelu" else LEADING[:1], [asked], shipped)
    problem = next(p for p in found if p.kernel == kernel and p.up_to == up_to)
    return [template_of(problem, shipped), *candidates(problem, shipped, "sm_90", size)]


def forms(found: Sequence[Settings], *tile: int) -> Iterator[dict[str, Any]]:
    """The forms with descriptors of BLOCK_M, BLOCK_N, warps and stages; 128 bytes a step."""
    for s in found:
        named = s["BLOCK_M"], s["BLOCK_N"], s.options["num_warps"], s.options["num_stages"]
        deep = s.constants.get("BLOCK_K", 64) >= 64
        if not s.library and named == tile and s["DESCRIPTORS"] and deep:
            names = ("FLATTEN", "maxnreg", "programs")
            yield {name: value for name, value in s.fields.items() if name in names}


def test_forms_that_two_programs_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Hopper: shallow pipelines, caps on registers, and persistent pairs."""
    monkeypatch.setattr(measured, "LIMITS", (64, 512))
    assert list(forms(on_hopper("attention_long"), 128, 64, 8, 3)) == [{"maxnreg": 128}, {}]
    assert {"maxnreg": 128} in forms(on_hopper("attention_short"), 64, 64, 4, 2)
    # 128 columns of keys do not fit 128 registers
    assert all("maxnreg" not in form for form in forms(on_hopper("attention_long"), 128, 128, 8, 2))
    qkv = on_hopper("qkv_rotary")
    assert list(forms(qkv, 128, 128, 8, 2)) == [
        {"FLATTEN": False, "maxnreg": 128},
        {"FLATTEN": True, "maxnreg": 128, "programs": 2},
    ]
    # three stages and the result are more than half of the shared memory
    assert not list(forms(qkv, 128, 128, 8, 3))
    assert {"FLATTEN": True} in forms(qkv, 128, 256, 8, 3)
    assert {"FLATTEN": False, "maxnreg": 128} in forms(on_hopper("swiglu"), 128, 64, 8, 2)


def test_few_rows_get_narrow_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "LIMITS", (64,))
    for kernel in ("swiglu", "gelu", "linear"):
        shipped, *found = on_hopper(kernel, up_to=64)
        assert (64, 32, 64) in {tile_of(s) for s in found if not s.library}
        assert tile_of(shipped) == (64, 32, 64)
        assert not any(s.constants.get("FLATTEN") for s in found)


def test_candidates_of_one_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "LIMITS", (64,))
    found = on_hopper("linear", up_to=64, size=1)
    assert {"FLATTEN": False} in forms(found, 64, 32, 4, 6)
    assert {s["BLOCK_K"] for s in found} == {GROUP}
    assert {s["BLOCK_N"] for s in on_hopper("swiglu", size=1)} == {GROUP}


def test_amd_has_no_cap_on_registers() -> None:
    shipped, found = measurable("gfx942", 2)
    tried = [s for problem in found for s in candidates(problem, shipped, "gfx942", 2)]
    assert not any("maxnreg" in s.options for s in tried)


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
