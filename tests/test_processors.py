"""A text keeps its bits on processors that this one can simulate.

Each test runs in a new process whose environment disables some instructions: oneDNN, torch, MKL and
numpy's OpenBLAS then use their code for older or other processors. MKL in SSE4.2, or on a simulated
AMD processor (`tests/support/amd.py`), uses kernels whose order of sums depends on alignment.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from tests.test_house import ROOT

LIMITS = [
    {},
    {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
    {"ATEN_CPU_CAPABILITY": "avx2"},
    {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    {"NOMICBERT_TEST_MKL": "AMD"},
    {"MKL_CBWR": "AVX2"},
]
# For `tests.support.finishing`: the vector units that torch, oneDNN and MKL use.
FINISHING = [
    {},
    {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    {"ATEN_CPU_CAPABILITY": "avx2"},
    {"ATEN_CPU_CAPABILITY": "default"},
    {"MKL_CBWR": "COMPATIBLE"},
]
# OpenBLAS kernels that numpy uses for matmuls in Triton's interpreter.
BLAS = ["Haswell", "Zen", "SkylakeX"]
KERNELS = [
    "tests/ops/test_products_triton.py",
    "tests/ops/test_attention_triton.py",
    "tests/ops/test_fp8.py",
]
NEEDS_AVX512 = ("SkylakeX",)


def run(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=kept | {"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"} | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: "-".join(limit.values()) or "none")
def test_bits(limit: dict[str, str]) -> None:
    done = run(["tests.support.invariance"], **limit)
    if "OtherMKL: " in done.stderr:  # no emulation of AMD: nothing was compared
        pytest.skip(done.stderr.rpartition("OtherMKL: ")[2].strip())
    assert done.returncode == 0, done.stdout + done.stderr
    *_, last = done.stdout.splitlines()
    differ, _, compared, *_ = last.split()
    assert int(differ) == 0
    assert int(compared) > 4000


@pytest.mark.parametrize("limit", FINISHING, ids=lambda limit: "-".join(limit.values()) or "none")
def test_bits_of_finished_vectors(limit: dict[str, str]) -> None:
    """Of a width that is no multiple of a vector register's."""
    done = run(["tests.support.finishing", "100"], **limit)
    assert done.returncode == 0, done.stdout + done.stderr
    *_, last = done.stdout.splitlines()
    differ, _, compared, *_ = last.split()
    assert int(differ) == 0
    assert int(compared) > 5000


@pytest.mark.parametrize("core", BLAS)
def test_kernels_do_not_depend_on_numpy(core: str) -> None:
    if core in NEEDS_AVX512 and not torch.cpu.get_capabilities().get("avx512_f"):
        pytest.skip("this processor has no AVX-512")
    names = "keeps_its_bits or large_logits"
    done = run(
        ["pytest", "-q", "-p", "no:benchmark", "-p", "no:cacheprovider", *KERNELS, "-k", names],
        OPENBLAS_CORETYPE=core,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
