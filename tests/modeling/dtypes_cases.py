"""Shared by the tests of dtypes: checkpoints, packed batches, simulated CPUs."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nomicbert import NomicBert
from nomicbert.modeling.packing import PackedBatch, pack
from nomicbert_kernels import linear_torch
from tests.support.checkpoints import build_checkpoint

HALF, BRAIN, FULL = torch.float16, torch.bfloat16, torch.float32
BACKENDS = ("reference", "torch")
# gated, experts in the second layer, plain with learned positions
VARIANTS = ("nomic-v1.5", "nomic-v2-moe", "gte")
IDS = torch.arange(30).view(3, 10)
MASK = (torch.arange(10) < torch.tensor([10, 4, 7])[:, None]).long()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of two layers, stored in float16."""
    where = tmp_path_factory.mktemp("half")
    return {
        name: build_checkpoint(where / name, name, num_hidden_layers=2, on_disk_dtype=HALF)
        for name in (*VARIANTS, "conan-v1")
    }


def batch_of(*lengths: int) -> PackedBatch:
    return pack([[(7 * i + n) % 90 + 5 for i in range(n)] for n in lengths])


def packed(model: NomicBert) -> Tensor:
    with torch.no_grad():
        return model.encode_packed(batch_of(3, 3, 12, 1))


def equal(half: NomicBert, full: NomicBert) -> bool:
    """Whether hidden states are bit-identical before they are cast back."""
    mine, wanted = packed(half), packed(full)
    assert mine.dtype == wanted.dtype == FULL
    return torch.equal(mine, wanted)


def full_copy(half: NomicBert) -> NomicBert:
    """A float32 model with the same values."""
    return copy.deepcopy(half).float()


def logged(caplog: pytest.LogCaptureFixture) -> list[tuple[str, int, str]]:
    loggers = ("nomicbert.modeling.backend_module", "nomicbert.loading.target")
    return [record for record in caplog.record_tuples if record[0] in loggers]


def capable(monkeypatch: pytest.MonkeyPatch, *names: str, onednn: bool = True) -> None:
    """Simulate a CPU for which torch reports these instructions."""
    found = {"amx_bf16": False, "avx512_bf16": False, "avx2": True} | dict.fromkeys(names, True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    monkeypatch.setattr(linear_torch, "onednn_packs", lambda dtype: onednn)
