"""Simulate CPUs with and without bf16 instructions."""

from __future__ import annotations

import pytest
import torch

# For a test's argument `dtype`, with indirect=True: bf16 computed in bf16, and in fp32.
CPU_DTYPES = [
    pytest.param((torch.float32, None), id="float32"),
    pytest.param((torch.bfloat16, True), id="bfloat16"),
    pytest.param((torch.bfloat16, False), id="bfloat16-in-float32"),
]


def pretend(monkeypatch: pytest.MonkeyPatch, found: bool) -> None:
    """Make the package assume that this CPU has bf16 instructions, or that it has none.

    Without instructions, bf16 matmuls give equivalent results, more slowly.
    """
    monkeypatch.setattr("nomicbert_kernels.dtypes.has_bf16_instructions", lambda: found)
