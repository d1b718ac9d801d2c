"""Which dtype computes on a device, and the choice of dtype="fastest"."""

# An imported fixture is named again as an argument.
# ruff: noqa: F811

from __future__ import annotations

import itertools
import logging
from pathlib import Path

import pytest
import torch

from nomicbert import Embedder, NomicBert
from nomicbert_kernels.dtypes import bf16_share, compute_dtype, fastest_dtype
from tests.modeling.dtypes_cases import BRAIN, FULL, HALF, capable, folders, logged  # noqa: F401
from tests.support.vocabularies import SENTENCES


def test_which_dtype_computes() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda:1")
    for dtype in (FULL, HALF, torch.bfloat16, torch.float64):
        assert compute_dtype(gpu, dtype) == dtype
        if dtype != BRAIN:  # which depends on the CPU, below
            assert compute_dtype(cpu, dtype) == (FULL if dtype == HALF else dtype)


NO_BF16 = "dtype='fastest' is torch.float32 on this CPU: it has no bfloat16 instructions"
BF16 = "dtype='fastest' is torch.bfloat16 on this CPU: it has bfloat16 instructions"
CPUS = [
    ((), True, FULL, NO_BF16),
    (("amx_bf16",), True, torch.bfloat16, BF16),
    (("avx512_bf16",), True, torch.bfloat16, BF16),
    (("amx_bf16", "avx512_bf16"), False, FULL, NO_BF16),
    (("bf16",), True, torch.bfloat16, BF16),
    (("amx_fp16", "avx512_fp16"), True, FULL, NO_BF16),
]


@pytest.mark.parametrize(("names", "onednn", "dtype"), [case[:3] for case in CPUS])
def test_which_cpu_computes_in_bfloat16(
    names: tuple[str, ...], onednn: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    capable(monkeypatch, *names, onednn=onednn)
    assert compute_dtype(torch.device("cpu"), BRAIN) == dtype
    assert compute_dtype(torch.device("cuda:1"), BRAIN) == BRAIN


@pytest.mark.parametrize(("names", "onednn", "dtype", "note"), CPUS)
@pytest.mark.parametrize("keyword", ["dtype", "torch_dtype"])
def test_fastest_on_a_cpu(
    keyword: str,
    names: tuple[str, ...],
    onednn: bool,
    dtype: torch.dtype,
    note: str,
    folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    capable(monkeypatch, *names, onednn=onednn)
    monkeypatch.setattr("nomicbert_kernels.dtypes.bf16_share", lambda: 0.5)
    model = NomicBert.from_pretrained(folders["gte"], **{keyword: "fastest"})
    assert {p.dtype for p in model.parameters()} == {dtype}
    ((logger, level, message),) = logged(caplog)
    assert (logger, level) == ("nomicbert.loading.target", logging.WARNING)
    assert message.startswith(note)


@pytest.mark.parametrize(
    ("share", "dtype"), [(0.1, BRAIN), (0.89, BRAIN), (0.9, FULL), (1.3, FULL)]
)
def test_instructions_that_are_no_faster(
    share: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    capable(monkeypatch, "avx512_bf16")
    monkeypatch.setattr("nomicbert_kernels.dtypes.bf16_share", lambda: share)
    found, why = fastest_dtype(torch.device("cpu"))
    assert found == dtype
    assert why.endswith(f"a matmul takes {share:.2f} of its float32 time")


def test_the_ratio_is_one_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 matmuls take 3 s, float32 matmuls 2 s."""
    bf16_share.cache_clear()
    clock = itertools.cycle([0.0, 3.0, 10.0, 12.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    assert bf16_share() == 1.5
    bf16_share.cache_clear()


@pytest.mark.parametrize(
    ("capability", "dtype", "why"),
    [
        ((6, 1), HALF, "compute capability 6.1 has no bfloat16"),
        ((7, 5), HALF, "compute capability 7.5 has no bfloat16"),
        ((8, 0), torch.bfloat16, "compute capability 8.0 supports bfloat16"),
        ((12, 0), torch.bfloat16, "compute capability 12.0 supports bfloat16"),
    ],
)
def test_fastest_on_a_gpu(
    capability: tuple[int, int], dtype: torch.dtype, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: asked.append(device) or capability
    )
    device = torch.device("cuda:3")
    assert fastest_dtype(device) == (dtype, why)
    assert asked == [device]


def test_fastest_elsewhere() -> None:
    for name in ("mps", "xpu"):
        assert fastest_dtype(torch.device(name))[0] == FULL


def test_fastest_is_logged_once(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    capable(monkeypatch)
    embedder = Embedder(folders["conan-v1"], dtype="fastest")
    embedder.encode(SENTENCES)
    assert embedder.model.dtype == FULL
    assert {p.dtype for p in embedder.pooling.parameters()} == {FULL}
    assert len(logged(caplog)) == 1
    NomicBert.from_pretrained(folders["gte"], dtype="fastest", torch_dtype=HALF)
    NomicBert.from_pretrained(folders["gte"], dtype="auto")
    assert len(logged(caplog)) == 1
