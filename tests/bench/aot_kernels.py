"""Small kernels whose machine code is known, compiled for sm_90 and sm_80; writes their reports.

Run by `test_aot_machine.py` in a process of its own, where triton is the compiler and not the
interpreter.
"""

import json
import re
import sys
from typing import Any

import torch
import triton
import triton.language as tl

from bench.aot_machine import NOP, cuobjdump, examine, opcodes
from bench.aot_worker import Driver, target_of
from nomicbert_kernels.gemm_triton import after_previous

# An instruction of the disassembly: its opcode, and the first half of its code.
LINE = re.compile(
    r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)[^/]*/\* 0x([0-9a-f]+) \*/",
    re.MULTILINE,
)


@triton.jit
def products_kernel(x, y, steps, SERIAL: tl.constexpr, BLOCK: tl.constexpr):
    """Two sums of products; SERIAL: both are set to zero again while wgmma works on them."""
    r = tl.arange(0, BLOCK)
    tile = r[:, None] * BLOCK + r[None, :]
    one = tl.zeros((BLOCK, BLOCK), tl.float32)
    two = tl.zeros((BLOCK, BLOCK), tl.float32)
    for step in range(steps):
        a = tl.load(x + (3 * step) * BLOCK * BLOCK + tile)
        b = tl.load(x + (3 * step + 1) * BLOCK * BLOCK + tile)
        c = tl.load(x + (3 * step + 2) * BLOCK * BLOCK + tile)
        one = tl.dot(a, b, one)
        two = tl.dot(a, c, two)
        if SERIAL:
            last = step % 4 == 3
            if last:
                tl.store(y + step * BLOCK * BLOCK + tile, one * two)
            one = tl.where(last, 0.0, one)
            two = tl.where(last, 0.0, two)
    tl.store(y + tile, one * two)


@triton.jit
def total_kernel(x, y, BLOCK: tl.constexpr):
    """The sum of a block, which the warps of a program exchange in shared memory."""
    tl.store(y, tl.sum(tl.load(x + tl.arange(0, BLOCK)), 0))


@triton.jit
def waiting_kernel(x, y, LATE: tl.constexpr, launch_pdl: tl.constexpr):
    """A copy that waits for the previous kernel first, or between load and store."""
    if not LATE:
        after_previous(launch_pdl)
    value = tl.load(x)
    if LATE:
        after_previous(launch_pdl)
    tl.store(y, value)


def report(arch: str, function: Any, *args: Any, **keywords: Any) -> dict[str, Any]:
    """The report of a kernel, and its instructions by the disassembler."""
    triton.runtime.driver.set_active(Driver(target_of(arch)))
    kernel = function.warmup(*args, grid=(1,), **keywords)
    found = LINE.findall(cuobjdump(kernel.asm["cubin"], "-sass"))
    names = [name for name, _ in found]
    return {
        **examine(kernel),
        "again": examine(kernel),
        "listed": len(found) - names.count("NOP"),
        "listed_barriers": names.count("BAR"),
        "words": opcodes(kernel.asm["cubin"]).total() - len(found),
        "nop": opcodes(kernel.asm["cubin"])[NOP] - names.count("NOP"),
    }


def main() -> None:
    """Compile, and write the reports as JSON."""
    x = torch.zeros(1, dtype=torch.bfloat16)
    y = torch.zeros(1)
    products = {"BLOCK": 64, "num_warps": 4, "num_stages": 3}
    reports = {
        "serial": report("sm_90", products_kernel, x, y, 9, SERIAL=True, **products),
        "healthy": report("sm_90", products_kernel, x, y, 9, SERIAL=False, **products),
        "older": report("sm_80", products_kernel, x, y, 9, SERIAL=True, **products),
        "four warps": report("sm_90", total_kernel, y, y, BLOCK=512, num_warps=4),
        "first": report("sm_90", waiting_kernel, y, y, LATE=False, launch_pdl=True),
        "late": report("sm_90", waiting_kernel, y, y, LATE=True, launch_pdl=True),
        "never": report("sm_90", waiting_kernel, y, y, LATE=False, launch_pdl=False),
        "one warp": report("sm_90", total_kernel, y, y, BLOCK=512, num_warps=1),
    }
    sys.stdout.write(json.dumps(reports))


if __name__ == "__main__":
    main()
