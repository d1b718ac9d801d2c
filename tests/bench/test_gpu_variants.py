"""Raced launch settings: the changes of a variant, the winners, and their table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu import forms
from bench.gpu.place import Place
from bench.gpu.proof import variants
from bench.gpu.proof import winners as table
from bench.gpu.proof.variants import Contest, contests
from bench.gpu.proof.winners import winners
from bench.harness import WrongValues
from nomicbert_kernels import launch
from tests.support.bench_lines import OURS, entry, measured

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("entries", "wanted"),
    [
        ([entry("swiglu", OURS, measured("a", 0.9), measured("b", 0.8))], "b"),
        # other libraries cannot win
        ([entry("swiglu", OURS, measured("torch", 0.5), measured("a", 0.9))], "a"),
        # the gain is too small
        ([entry("swiglu", OURS, measured("a", 0.985))], None),
        # slower at one size by more than the spread
        ([entry("swiglu", OURS, measured("a", 0.7), sizes=2),
          entry("swiglu", OURS, measured("a", 1.02), sizes=2, size=2)], None),
        ([entry("swiglu", OURS, measured("a", 0.7), sizes=2),
          entry("swiglu", OURS, measured("a", 1.01), sizes=2, size=2)], "a"),
        # wrong, failed or not yet measured at one size
        ([entry("swiglu", OURS, measured("a", 0.7), sizes=2),
          entry("swiglu", OURS, {**measured("a", 0.7), "status": "wrong"}, sizes=2, size=2)], None),
        ([entry("swiglu", OURS, measured("a", 0.7), sizes=2), {"status": "timeout"}], None),
        ([entry("swiglu", OURS, measured("a", 0.7), sizes=2)], None),
        # fp8 variants are compared with fp8
        ([entry("swiglu", measured("ours-fp8", 1.0), OURS, measured("a", 0.9), ours="ours-fp8")],
         "a"),
        ([entry("swiglu", OURS, measured("a", 0.9), ours="ours-fp8")], None),
        ([entry("swiglu", {**OURS, "status": "absent"}, measured("a", 0.9))], None),
        ([entry("swiglu", OURS, measured("a", 0.9), status="wrong")], None),
    ],
)  # fmt: skip
def test_winners(entries: list[dict[str, Any]], wanted: str | None) -> None:
    found = winners(entries)
    assert found.get("swiglu", (None,))[0] == wanted


def test_every_shipped_row_below_a_winner_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "architecture", lambda device: "sm_90")
    place = Place(CPU, torch.bfloat16, "torch", False, lambda work: 0.0)
    exactly = {"n": 2304, "k": 768, "head_dim": 64}
    won = {"kernel": "qkv_rotary", "bytes": 2, "exactly": exactly}
    found = [launch.read_row(row) for row in table.shipped_below(place, won, 5632)]
    assert [row.up_to["rows"] for row in found] == [64, 896, 5631]
    for row, tokens in zip(found, (5, 500, 5000), strict=True):
        shipped = launch.settings("qkv_rotary", CPU, torch.bfloat16, rows=tokens, **exactly)
        assert row.settings == shipped


def test_rows_for_many_tokens_leave_few_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row has no lower bound, so the shipped one for few rows comes first."""
    monkeypatch.setattr(launch, "architecture", lambda device: "sm_90")
    place = Place(CPU, torch.bfloat16, "torch", False, lambda work: 0.0)
    wide = next(one for one in contests() if one.name == "swiglu")
    problem, _ = variants.problem_of(
        dataclasses.replace(place, dry=True), wide, 16896, place.bench.draw()
    )
    rows = dict(variants.rows_of(place, wide, dataclasses.replace(problem, tokens=16896), 16896))
    flat = {name: table.plain(row) for name, row in rows.items()}
    asked = {"sizes": 1, "variants": [*flat], "rows": flat, "ours": "ours", "status": "ok"}
    lines = [OURS, measured("not flat", 0.8)]
    entries: list[dict[str, Any]] = [
        {**asked, "contest": "swiglu", "lines": lines, "size": 16896},
    ]
    path = tmp_path / "launch/sm_90.json"
    table.write_table(place, entries, tmp_path)
    few, some, many = launch.read_table(path)
    assert [row.up_to for row in (few, some, many)] == [{"rows": 64}, {"rows": 16895}, {}]
    assert few.exactly == some.exactly == many.exactly == {"n": 96, "k": 64}
    for row, tokens in ((few, 5), (some, 5000)):
        shipped = launch.settings("swiglu", CPU, torch.bfloat16, rows=tokens, n=96, k=64)
        assert row.settings == shipped
    assert many.settings["FLATTEN"] is False
    won = {**flat["not flat"], "up_to": {"rows": 64}, "BLOCK_M": 32}
    lines = [OURS, measured("32 rows", 0.8)]
    entries.append(
        {**asked, "contest": "few", "lines": lines, "size": 64, "rows": {"32 rows": won},
         "variants": ["32 rows"]}
    )  # fmt: skip
    table.write_table(place, entries, tmp_path)
    assert [row.settings["BLOCK_M"] for row in launch.read_table(path)] == [32, 64, 128, 128]
    # it has the format of the tables of nomicbert tune
    monkeypatch.setenv("NOMICBERT_LAUNCH", str(tmp_path / "launch"))
    launch.table.cache_clear()
    try:
        found = launch.settings("swiglu", CPU, torch.bfloat16, rows=20_000, n=96, k=64)
        assert found["FLATTEN"] is False
    finally:
        launch.table.cache_clear()
    # the table is removed if nothing wins
    entries = [
        {**asked, "contest": "swiglu", "lines": [OURS, measured("not flat", 1.0)], "size": 1}
    ]
    table.write_table(place, entries, tmp_path)
    assert not path.exists()


@pytest.mark.parametrize("one", contests(), ids=lambda one: one.name)
def test_variants_change_rows_of_hopper(one: Contest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "architecture", lambda device: "sm_90")
    place = Place(CPU, torch.bfloat16, "torch", True, lambda work: 0.0)
    for size in one.sizes:
        problem, peers = variants.problem_of(place, one, size, place.bench.draw())
        assert peers
        tokens = size if isinstance(size, int) else 16896
        problem = dataclasses.replace(problem, tokens=tokens)
        rows = dict(variants.rows_of(place, one, problem, size))
        assert {*rows} == ({*one.variants} if one.kernel else set())
        settings = [row.settings for row in rows.values()]
        shipped = launch.settings(
            one.kernel, CPU, torch.float8_e4m3fn if one.bytes == 1 else place.dtype,
            rows=tokens, **forms.widths(one.kernel, problem),
        ) if one.kernel else None  # fmt: skip
        assert all(one != shipped for one in settings)
        for row in rows.values():
            known = row.settings.constants.items()
            blocks = [value for name, value in known if name.startswith("BLOCK_")]
            assert all(block & (block - 1) == 0 for block in blocks)


def test_an_unknown_constant_is_refused() -> None:
    with pytest.raises(ValueError, match="the shipped row has no LUCK"):
        variants.changed(launch.Settings({"BLOCK_M": 64}), {"LUCK": 1})


def test_fp8_is_compared_with_its_specification(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of a tenth is wrong, although a single e4m3 value may be off by as much."""
    place = Place(CPU, torch.float32, "torch", True, lambda work: 0.0)
    (one,) = [one for one in contests() if one.name == "linear down, fp8"]
    problem, _ = variants.problem_of(place, one, 16896, place.bench.draw())

    def call(factor: float) -> Callable[[Any], Any]:
        specified = problem.bind(variants.FP8_REFERENCE, variants.inputs(one, problem.tensors))
        return lambda t: lambda: specified() * factor

    right_one = variants.by_specification(one, problem, call(1.0))
    assert right_one.call(problem.tensors)().shape == (70, 64)
    for factor in (0.91, float("nan")):
        with pytest.raises(WrongValues, match="of its size, allowed"):
            variants.by_specification(one, problem, call(factor)).call(problem.tensors)
