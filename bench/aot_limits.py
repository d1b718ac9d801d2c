"""How many programs of a kernel a multiprocessor holds at once, from what the kernel needs.

Sources: CUDA C++ Programming Guide, table "Technical specifications per compute capability";
NVIDIA's occupancy calculator for the units of allocation; PTX ISA, "Tensor Memory".
"""

from dataclasses import dataclass

from nomicbert_kernels.launch.limits import REGISTERS, RESERVED, WARP

# Registers are allotted to warps in units of 256, in each of four parts of a multiprocessor.
REGISTER_UNIT, PARTS = 256, 4
# Shared memory is allotted in units of 128 bytes.
SHARED_UNIT = 128
# Columns of the accumulator memory of sm_100's tensor cores.
TENSOR_MEMORY = 512


@dataclass(frozen=True)
class Multiprocessor:
    """What the programs on a multiprocessor share: warps, programs, and KiB of shared memory."""

    warps: int
    programs: int
    shared: int


# Of sm_120 the tuning guide for Blackwell states more programs; these are the guide's named above.
MULTIPROCESSORS = {
    "sm_80": Multiprocessor(64, 32, 164),
    "sm_86": Multiprocessor(48, 16, 100),
    "sm_89": Multiprocessor(48, 24, 100),
    "sm_90": Multiprocessor(64, 32, 228),
    "sm_100": Multiprocessor(64, 32, 228),
    "sm_120": Multiprocessor(48, 24, 100),
}


def up(value: int, unit: int) -> int:
    """The next multiple of a unit."""
    return -(-value // unit) * unit


def ctas(arch: str, registers: int, shared: int, warps: int, tensor_memory: int = 0) -> int:
    """Programs (CTAs) that fit on a multiprocessor; 0 for AMD's architectures, which are not known.

    Args:
        arch: architecture.
        registers: per thread.
        shared: bytes per program.
        warps: per program.
        tensor_memory: columns per program.
    """
    has = MULTIPROCESSORS.get(arch)
    if has is None:
        return 0
    of_warp = up(max(registers, 1) * WARP, REGISTER_UNIT)
    by_registers = REGISTERS // PARTS // of_warp * PARTS // warps
    by_shared = has.shared * 1024 // (up(shared, SHARED_UNIT) + RESERVED)
    found = min(has.programs, has.warps // warps, by_registers, by_shared)
    return min(found, TENSOR_MEMORY // tensor_memory) if tensor_memory else found
