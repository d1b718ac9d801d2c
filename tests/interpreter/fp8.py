"""Bit-exact e4m3 in Triton's interpreter.

The interpreter stores e4m3 as bytes. One value in ten is rounded wrongly, by up to a factor of two:
the carry into the exponent is lost, subnormals are truncated, NaN becomes 384 and infinity 256.
Converted back, NaN becomes 480. `install` makes casts round as a GPU does (to nearest even, above
448 to 448, NaN stays) and `tl.dot` multiply in fp32 (exact: a product of two e4m3 values fits).
Both use torch's conversions to and from fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from tests.interpreter import bf16

LARGEST = 448.0
CODES = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(torch.float8_e4m3fn)
NUMBERS = CODES.float().numpy()


def is_e4m3(value: TensorHandle) -> bool:
    return value.dtype.scalar == tl.float8e4nv


def widened(handle: TensorHandle) -> TensorHandle:
    """Convert e4m3 or bf16 bits to fp32; leave others unchanged."""
    if is_e4m3(handle):
        return TensorHandle(NUMBERS[np.asarray(handle.data, np.uint8)], tl.float32)
    return bf16.widened(handle)


def narrow(numbers: np.ndarray) -> np.ndarray:
    """Round fp32 to e4m3 codes, to nearest even."""
    found = torch.from_numpy(np.ascontiguousarray(numbers, np.float32))
    # above the maximum, torch gives NaN or the maximum, depending on its version
    rounded = found.clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return rounded.view(torch.uint8).numpy()


def exact_cast(cast: Callable[..., Any]) -> Callable[..., Any]:
    def create_fp_to_fp(
        builder: Any, source: TensorHandle, to: Any, rounding_mode: Any
    ) -> TensorHandle:
        if is_e4m3(source) == (to.scalar == tl.float8e4nv):
            return cast(builder, source, to, rounding_mode)
        wide = widened(source)
        if is_e4m3(source):
            return builder.cast_impl(wide, to)
        return TensorHandle(narrow(wide.data), tl.float8e4nv)

    return create_fp_to_fp


def exact_dot(dot: Callable[..., Any]) -> Callable[..., Any]:
    def create_dot(builder: Any, a: TensorHandle, b: TensorHandle, *rest: Any) -> Any:
        return dot(builder, widened(a), widened(b), *rest)

    return create_dot


def install() -> None:
    """Make e4m3 and bf16 exact in this process; idempotent."""
    bf16.install()
    if getattr(InterpreterBuilder, "exact_e4m3", False):
        return
    bf16.replace(InterpreterBuilder, "create_fp_to_fp", exact_cast)
    bf16.replace(InterpreterBuilder, "create_dot", exact_dot)
    InterpreterBuilder.exact_e4m3 = True
