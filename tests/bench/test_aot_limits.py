"""How many programs a multiprocessor holds, against figures worked out by hand."""

import pytest

from bench.aot_limits import MULTIPROCESSORS, ctas
from nomicbert_kernels import launch


@pytest.mark.parametrize(
    ("arch", "registers", "shared", "warps", "expected"),
    [
        # registers: 128 x 256 threads x 2 = 65,536; allotted in units of eight per thread
        ("sm_90", 128, 0, 8, 2),
        ("sm_90", 129, 0, 8, 1),
        ("sm_90", 255, 0, 8, 1),
        # 152 x 32 = 4,864: three warps in each part of 16,384, so three programs of four warps
        ("sm_90", 152, 0, 4, 3),
        # a part holds two warps of 200 registers, so four programs of two warps fit, and not five
        ("sm_90", 200, 0, 2, 4),
        # shared memory: 228 KiB, and 1 KiB of each program
        ("sm_90", 99, 114_712, 8, 2),
        ("sm_90", 99, 115_712, 8, 2),
        ("sm_90", 99, 115_713, 8, 1),
        ("sm_90", 32, 232_448, 4, 1),
        ("sm_80", 32, 166_912, 4, 1),
        ("sm_86", 32, 50_176, 4, 2),
        ("sm_86", 32, 50_177, 4, 1),
        # programs, and warps
        ("sm_90", 16, 0, 1, 32),
        ("sm_86", 16, 0, 1, 16),
        ("sm_89", 16, 0, 1, 24),
        ("sm_120", 16, 0, 4, 12),
        ("sm_100", 16, 0, 4, 16),
        ("gfx942", 128, 0, 4, 0),
    ],
)
def test_programs_of_a_multiprocessor(
    arch: str, registers: int, shared: int, warps: int, expected: int
) -> None:
    assert ctas(arch, registers, shared, warps) == expected


@pytest.mark.parametrize(("columns", "expected"), [(0, 4), (128, 4), (256, 2), (512, 1), (640, 0)])
def test_tensor_memory_is_shared(columns: int, expected: int) -> None:
    assert ctas("sm_100", 128, 0, 4, columns) == expected


def test_every_architecture_of_nvidia_is_known() -> None:
    assert {name for name in launch.SHARED_MEMORY if name.startswith("sm_")} == {*MULTIPROCESSORS}
    # one program may take all shared memory but the 1 KiB that is taken from it
    for name, has in MULTIPROCESSORS.items():
        assert launch.SHARED_MEMORY[name] == (has.shared - 1) * 1024
