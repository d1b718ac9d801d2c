"""Device and sizes of the tests in this folder.

On a GPU the sizes are those of real models. NOMICBERT_GPU_TESTS=interpreter runs the same functions
on a CPU with tiny sizes, which checks the tests rather than the kernels.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable

import pytest
import torch

from bench.aot_cases import HEADS as ODD_HEADS
from bench.aot_cases import MODELS as REAL_MODELS
from bench.aot_cases import Model
from bench.problem import Draw
from nomicbert_kernels import Ops, launch
from nomicbert_kernels.backend import triton_ops
from nomicbert_kernels.launch import Settings

INTERPRETED = os.environ.get("NOMICBERT_GPU_TESTS") == "interpreter"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
HAS_DEVICE = INTERPRETED or torch.cuda.is_available()
ARCHITECTURE = launch.architecture(DEVICE if HAS_DEVICE else torch.device("cpu"))

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ALL_DTYPES = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
# Kernels whose rows may select a cuBLAS GEMM instead.
PRODUCTS = ("linear", "qkv_rotary", "swiglu", "gelu")

TINY_MODELS = (
    Model("nomic", 64, 2, 80, "swiglu", True),
    Model("bert-large", 64, 2, 80, "gelu", False),
    Model("nomic-moe", 32, 2, 48, "moe", True),
)
MODELS = TINY_MODELS if INTERPRETED else REAL_MODELS
HEADS = (Model("heads of 16", 32, 2, 48, "gelu", False),) if INTERPRETED else ODD_HEADS
NOMIC = MODELS[0]
# Below and above the sizes of tiles and vectors, and the tables' limit for few rows.
EDGES = (1, 17, 65) if INTERPRETED else (1, 15, 16, 17, 63, 64, 65, 512, 2048, 8192)
TOKENS = 17 if INTERPRETED else 512
# Columns between rows: with alignment for TMA descriptors, and without.
APART = (16, 3)
REPEATS = 2 if INTERPRETED else 50
BATCHES: dict[str, tuple[int, ...]] = (
    {"edges": (1, 15, 16, 17, 33), "long": (260,), "queries": (8,) * 5, "empty": (0, 3, 0, 40, 0)}
    if INTERPRETED
    else {
        "edges": (1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 256, 257),
        "long": (512, 3, 2048, 1, 511),
        "longest": (8192,),
        "queries": (8,) * 20_000,
        "empty": (0, 3, 0, 0, 700, 40, 0),
    }
)


def ops() -> Ops:
    return triton_ops(DEVICE)


def draw(dtype: torch.dtype, seed: int, apart: int = 0) -> Draw:
    return Draw(DEVICE, dtype, seed, apart)


def models(mlp: str) -> tuple[Model, ...]:
    return tuple(model for model in MODELS if model.mlp == mlp)


def force(monkeypatch: pytest.MonkeyPatch, change: Callable[[str, Settings], Settings]) -> None:
    """Make every launch use change(kernel, settings of the tables)."""
    shipped = launch.settings

    def settings(kernel: str, device: torch.device, dtype: torch.dtype, **sizes: int) -> Settings:
        return change(kernel, shipped(kernel, device, dtype, **sizes))

    monkeypatch.setattr(launch, "settings", settings)


def force_library(monkeypatch: pytest.MonkeyPatch, library: bool) -> None:
    """Force cuBLAS GEMMs, or our kernels, regardless of the tables."""
    force(
        monkeypatch,
        lambda kernel, row: (
            dataclasses.replace(row, library=library) if kernel in PRODUCTS else row
        ),
    )
