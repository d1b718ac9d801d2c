"""Shared by the tests of the benchmark of whole models: tiny checkpoints and cases."""

from __future__ import annotations

import pytest
import torch

from nomicbert.benchmark.plan import Checkpoint
from nomicbert.benchmark.workloads import Case
from tests.support.checkpoints import build_checkpoint

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    found = {}
    for name in ("nomic-v1.5", "conan-v1"):
        more = {"dialect": "both"} if name == "nomic-v1.5" else {}
        folder = build_checkpoint(tmp_path_factory.mktemp(name), name, num_hidden_layers=1, **more)
        found[name] = Checkpoint.of(name, folder)
    return found


def case_of(lengths: list[int], name: str = "mixture") -> Case:
    return Case(name, [[1] * length for length in lengths], ["x"] * len(lengths))
