"""Refuse a pickle that builds exponentially large values from few bytes, before torch reads it.

A tuple of twice the same tuple, thirty times, takes 150 bytes in a pickle and as little in memory.
But torch's unpickler, which runs no code, prints the values that it refuses: 2^30 of them. The
pickle of a state dict uses no container twice.
"""

import pickletools
from typing import IO, Any

# Containers that are used again, one inside of the other.
MOST = 12

_GET = {"GET", "BINGET", "LONG_BINGET"}
_PUT = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_CONTAINER = {
    "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "LIST", "EMPTY_DICT",
    "DICT", "EMPTY_SET", "REDUCE", "BUILD", "NEWOBJ",
}  # fmt: skip


def check_depth(pickle: IO[bytes]) -> None:
    """Check one pickle, up to its end.

    Raises: ValueError: containers are used again in containers that are, more than `MOST` levels
        deep; or it is no pickle.
    """
    depths: dict[Any, int] = {}
    deepest, container = 0, False
    for opcode, argument, _ in pickletools.genops(pickle):
        if opcode.name in _GET:
            deepest = max(deepest, depths.get(argument, 0))
        elif opcode.name in _PUT:
            place = len(depths) if opcode.name == "MEMOIZE" else argument
            depths[place] = deepest + 1 if container else 0
            if depths[place] > MOST:
                raise ValueError("values are nested too deeply")
            deepest = 0
        container = opcode.name in _CONTAINER
