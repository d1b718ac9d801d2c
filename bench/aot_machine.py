"""What the compilers made of a kernel, read from its machine code and from the log of ptxas.

The code of a cubin is read directly, because NVIDIA's disassembler takes as long as compiling does.
An instruction has 16 bytes since sm_70, and its opcode is in the lowest 9 bits. The opcodes below
are those that cuobjdump prints; a test compares the two.
"""

import contextlib
import hashlib
import io
import json
import re
import struct
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import triton
from triton.compiler.compiler import make_backend
from triton.runtime.cache import get_cache_manager

OPCODE = 0x1FF
# BAR waits for the other warps of a program.
BAR, NOP = 0x11D, 0x118
# A load or store of local memory. In the disassembly the opcode follows the address and an optional
# predicate.
SPILL = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(?:STL|LDL)\b", re.MULTILINE)
# Remarks on wgmma that ptxas makes serial, such as C7515.
REMARK = re.compile(r"\bC75\d\d\b")
# In PTX: the wait for the previous kernel, and accesses of global memory.
WAIT = "griddepcontrol.wait"
GLOBAL = re.compile(r"\b(?:ld|st|red|atom|prefetch)\S*\.global|\bcp\.(?:async|reduce)")
# In the file's name, so that reports of earlier versions of this module are not read.
REPORT = f"nomicbert-aot-{hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]}.json"


def opcodes(cubin: bytes) -> Counter[int]:
    """Count the instructions of a cubin by opcode; source of the layout: ELF-64."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + i * size) for i in range(count)]
    found: Counter[int] = Counter()
    for name, _, _, _, start, length in sections:
        if cubin.startswith(b".text.", sections[names][4] + name):
            words = struct.unpack_from(f"<{length // 8}Q", cubin, start)
            found.update(word & OPCODE for word in words[::2])
    return found


def cuobjdump(cubin: bytes, option: str) -> str:
    """The output of Triton's cuobjdump."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def remarks(kernel: Any) -> list[str]:
    """The remarks C75xx of ptxas on a kernel.

    Triton drops the log and does not compile again what is in its cache. So its own last step runs
    once more, with Triton's options, whatever they are in its version.
    """
    target = kernel.metadata.target
    log = io.StringIO()
    with triton.knobs.nvidia.scope(), contextlib.redirect_stdout(log):
        triton.knobs.nvidia.dump_ptxas_log = True
        # the metadata of a kernel has all options of its compilation
        make_backend(target).make_cubin(kernel.asm["ptx"], {}, kernel.metadata, target.arch)
    if "Compiling entry function" not in log.getvalue():
        raise RuntimeError(f"no log of ptxas in the form known here: {log.getvalue()[:200]!r}")
    return sorted({*REMARK.findall(log.getvalue())})


def waits(ptx: str) -> str:
    """When a kernel waits for the previous one: "never", "first", or "late" (after an access)."""
    if WAIT not in ptx:
        return "never"
    access = GLOBAL.search(ptx)
    return "late" if access and access.start() < ptx.index(WAIT) else "first"


def cuda_report(kernel: Any) -> dict[str, Any]:
    """Registers, spills and instructions of a cubin."""
    cubin, ptx = kernel.asm["cubin"], kernel.asm["ptx"]
    usage = re.search(r"REG:(\d+) STACK:(\d+)", cuobjdump(cubin, "-res-usage"))
    if usage is None:
        raise RuntimeError("cuobjdump's output is not in the form known here")
    # without a stack nothing can spill: skip the disassembly, which is as slow as compiling
    spills = SPILL.findall(cuobjdump(cubin, "-sass")) if int(usage[2]) else []
    code = opcodes(cubin)
    wgmma = "wgmma.mma_async" in ptx
    return {
        "registers": int(usage[1]),
        "spills": len(spills),
        "instructions": code.total() - code[NOP],
        "barriers": code[BAR],
        "remarks": remarks(kernel) if wgmma else [],
        "wgmma": wgmma,
        "tensor_cores": bool(re.search(r"wgmma\.mma_async|\bmma\.sync|tcgen05\.mma", ptx)),
        "tma": "cp.async.bulk.tensor" in ptx,
        "cp_async": bool(re.search(r"cp\.async\.c[ag]\.", ptx)),
        "tf32": "tf32" in ptx,
        "waits": waits(ptx),
    }


def hip_report(kernel: Any) -> dict[str, Any]:
    """The same report for AMD's assembly, without what is only known of NVIDIA's."""
    text = kernel.asm["amdgcn"]

    def most(name: str) -> int:
        return max(map(int, re.findall(rf"\.{name}:\s+(\d+)", text)), default=0)

    return {
        "registers": most("vgpr_count"),
        "spills": most("vgpr_spill_count") + most("sgpr_spill_count"),
        "instructions": 0,
        "barriers": 0,
        "remarks": [],
        "wgmma": False,
        "tensor_cores": "v_mfma" in text,
        "tma": False,
        "cp_async": False,
        "tf32": "xf32" in text,
        "waits": "never",
    }


def examine(kernel: Any) -> dict[str, Any]:
    """The report of a compiled kernel, kept in Triton's cache next to the kernel."""
    cache = get_cache_manager(kernel.hash)
    known = cache.get_file(REPORT)
    if known:
        return dict(json.loads(Path(known).read_text(encoding="utf-8")))
    metadata = kernel.metadata
    report = hip_report(kernel) if "amdgcn" in kernel.asm else cuda_report(kernel)
    report["shared"] = metadata.shared
    report["tensor_memory"] = getattr(metadata, "tmem_size", None) or 0
    rows = re.findall(r"tt\.dot\b.*-> tensor<(\d+)x", kernel.asm["ttir"])
    # rows of the largest matmul, 0 if there is none
    report["dot_rows"] = max(map(int, rows), default=0)
    report["warps"] = metadata.num_warps
    report["launch_pdl"] = getattr(metadata, "launch_pdl", False)
    cache.put(json.dumps(report), REPORT, binary=False)
    return report
