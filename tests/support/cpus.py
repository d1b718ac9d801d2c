"""CPUs with and without bf16 instructions, whichever this one is."""

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
    """Have the package believe that this CPU multiplies in bf16, or that it does not.

    Without instructions bf16 gives the same kind of numbers, more slowly.
    """
    monkeypatch.setattr("nomicbert_kernels.dtypes.has_bf16_instructions", lambda: found)
