"""Shared by the tests of tuning: tiny models, small problems, varied launch settings."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nomicbert_kernels import launch, tiling
from nomicbert_kernels.launch import Settings
from nomicbert_kernels.tuning import problems as measured
from nomicbert_kernels.tuning import tables
from nomicbert_kernels.tuning.candidates import template_of
from nomicbert_kernels.tuning.problems import Model, Problem, problems

ARCH = launch.INTERPRETER
CPU = torch.device("cpu")
GATED = Model("gated", 32, 2, 48, "swiglu", True, True, False)
PLAIN = Model("plain", 32, 2, 48, "gelu", False, False, True)
MIXED = Model("mixed", 16, 1, 24, "gelu", True, True, True, 3, 2)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Problems of a few rows, and a folder of tables for each test."""
    monkeypatch.setattr(measured, "LIMITS", (8,))
    monkeypatch.setattr(measured, "LARGE", 20)
    monkeypatch.setattr(measured, "LONG_TEXTS", (40,))
    monkeypatch.setattr(measured, "SHORT_TEXTS", (6, 8))
    monkeypatch.setattr(tiling, "SHORT", 8)
    monkeypatch.setenv("NOMICBERT_LAUNCH", str(tmp_path / "launch"))
    launch.table.cache_clear()
    yield
    launch.table.cache_clear()


def only(kernel: str, *models: Model, rows: int | None = 20) -> Problem:
    """The problem of a kernel, the last one of a number of rows."""
    shipped = tables.shipped_rows(ARCH, 4)
    name = kernel.partition("_")[0] if kernel.startswith("attention") else kernel
    found = problems(models or (GATED,), [name], shipped)
    return next(p for p in reversed(found) if p.kernel == kernel and p.rows == rows)


def varied(problem: Problem, **choices: Sequence[Any]) -> list[Settings]:
    """The shipped settings with every combination of these constants."""
    shipped = template_of(problem, tables.shipped_rows(ARCH, 4))
    found = [
        replace(shipped, constants={**shipped.constants, **dict(zip(choices, values, strict=True))})
        for values in itertools.product(*choices.values())
    ]
    return [settings for settings in found if settings != shipped]
