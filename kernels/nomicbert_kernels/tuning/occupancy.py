"""How many programs of a kernel fit a multiprocessor, by its shared memory and registers.

Candidates that cannot fit are left out before anything is compiled.

Source: CUDA C++ Programming Guide, "Technical specifications per compute capability": registers,
and shared memory that is reserved per program; its limits are `launch.SHARED_MEMORY`'s.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from nomicbert_kernels import launch
from nomicbert_kernels.launch import Settings
from nomicbert_kernels.launch.limits import REGISTERS, RESERVED, WARP

# Bytes of shared memory per program, where an architecture's limit is unknown.
LEAST_SHARED = 49_152
# Bytes of a barrier per pipeline stage.
BARRIER = 8
# Registers that a thread needs besides its accumulators: a kernel without a cap takes up to
# MOST_OTHERS of them, and spills with fewer than LEAST_OTHERS.
LEAST_OTHERS, MOST_OTHERS = 56, 88


class Shape(NamedTuple):
    """A tile and its warps; `k` is 0 for attention."""

    m: int
    n: int
    k: int
    warps: int

    @property
    def threads(self) -> int:
        """Threads of a program."""
        return self.warps * WARP


class Device(NamedTuple):
    """An architecture, by the name of its launch table."""

    arch: str

    @property
    def shared(self) -> int:
        """Bytes of shared memory per program; a relative's if its own are unknown."""
        known = launch.SHARED_MEMORY
        return known.get(launch.RELATIVES.get(self.arch, self.arch), LEAST_SHARED)

    @property
    def has_descriptors(self) -> bool:
        """Whether to try tensor descriptors: below sm_90 they are a slow form of pointers."""
        return self.arch == launch.INTERPRETER or (self.is_cuda and int(self.arch[3:]) >= 90)

    @property
    def is_cuda(self) -> bool:
        """Whether the compiler takes a cap on registers."""
        return self.arch.startswith("sm_")

    def descriptors(self, template: Settings) -> Sequence[bool]:
        """Whether to load by descriptors; both ways are tried if the kernel has them."""
        both = self.has_descriptors and "DESCRIPTORS" in template.constants
        return (True, False) if both else (False,)

    def holds(self, memory: int, programs: int = 1) -> bool:
        """Whether programs with this much shared memory each fit one multiprocessor."""
        return programs * (memory + RESERVED) <= self.shared + RESERVED


def depths_of(
    memory: Mapping[int, int], device: Device, pairs: bool, shipped: int | None = None
) -> list[int]:
    """The pipeline depths to try: the deepest, the deepest for two programs, two, and `shipped`.

    Args:
        memory: bytes of shared memory by depth, ascending.
        device: where it runs.
        pairs: whether two programs fit its registers.
        shipped: depth of the shipped row.
    """
    fitting = [depth for depth, used in memory.items() if device.holds(used)]
    twice = [depth for depth in fitting if pairs and device.holds(memory[depth], 2)]
    chosen = (*fitting[-1:], *twice[-1:], 2, shipped)
    return [depth for depth in reversed(fitting) if depth in chosen]


def cap_of(shape: Shape, sums: int, memory: int, device: Device, size: int) -> int | None:
    """A cap on registers that may let one more program fit a multiprocessor, or None.

    Args:
        shape: of a program.
        sums: accumulators of a thread.
        memory: bytes of shared memory of a program.
        device: where it runs.
        size: bytes per element. Only 16-bit kernels get a cap: in fp32, and with scales that change
            every group, a thread holds more than its accumulators.
    """
    if not device.is_cuda or size != 2:
        return None
    for programs in (4, 3, 2):
        # ptxas rounds registers to a multiple of 8
        cap = REGISTERS // (programs * shape.threads) // 8 * 8
        if device.holds(memory, programs) and LEAST_OTHERS <= cap - sums < MOST_OTHERS:
            return cap
    return None
