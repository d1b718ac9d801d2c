"""Make MKL run its AMD code path on any processor, for tests of bit reproducibility.

MKL detects the processor in three internal functions. Each caches its result in a variable, which
is -1 before the first call. `pretend` writes the results of an AMD Zen there. It finds the
variables' addresses in the functions' code, and refuses code that differs from torch 2.13's.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import torch


class OtherMKL(RuntimeError):
    """This torch has no MKL, or one that detects the processor differently."""


# function -> its result on Zen
ANSWERS = {b"mkl_serv_intel_cpu_true": 0, b"mkl_serv_intel_cpu": 0, b"mkl_serv_cpuiszen": 1}
# mov eax, [rip + offset]; then test eax, eax or cmp eax, -1
LOAD = re.compile(rb"\x8b\x05(....)(?=\x85\xc0|\x83\xf8\xff)", re.DOTALL)


def pretend() -> None:
    """Switch MKL to AMD Zen for the rest of this process.

    Raises:
        OtherMKL: torch has no such MKL.
        RuntimeError: MKL has already detected the processor.
    """
    library = Path(torch.__file__).parent / "lib/libtorch_cpu.so"
    places = []
    for name, answer in ANSWERS.items():
        try:
            function = getattr(ctypes.CDLL(str(library)), name.decode())
        except (OSError, AttributeError) as error:
            raise OtherMKL(f"this torch has no MKL with {name.decode()}") from error
        address = ctypes.cast(function, ctypes.c_void_p).value
        assert address is not None
        found = LOAD.search(ctypes.string_at(address, 64))
        if found is None:
            raise OtherMKL(f"{name.decode()} looks otherwise in this torch")
        offset = int.from_bytes(found[1], "little", signed=True)
        place = ctypes.c_int.from_address(address + found.end() + offset)
        if place.value != -1:
            raise RuntimeError(f"{name.decode()} has been asked already: {place.value}")
        places.append((place, answer))
    for place, answer in places:
        place.value = answer
