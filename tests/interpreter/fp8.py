"""e4m3 in Triton's interpreter, to the bit.

The interpreter keeps e4m3 as the bytes of its bits. Where it rounds to them, one number in ten
comes out wrong, by up to a factor of two: what is carried into the exponent is lost, subnormals are
cut off, NaN becomes 384 and infinity 256. Back from them, NaN becomes 480. `install` has casts
round as a GPU does (to nearest even, beyond 448 to 448, NaN stays), and `tl.dot` multiply in fp32
(exact: a product of two e4m3 numbers fits). The fp32 that both need is torch's.
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
    """The fp32 numbers that e4m3 or bf16 bits stand for; others as they are."""
    if is_e4m3(handle):
        return TensorHandle(NUMBERS[np.asarray(handle.data, np.uint8)], tl.float32)
    return bf16.widened(handle)


def narrow(numbers: np.ndarray) -> np.ndarray:
    """The codes of fp32 numbers rounded to e4m3, to nearest even."""
    found = torch.from_numpy(np.ascontiguousarray(numbers, np.float32))
    # torch leaves what lies beyond the largest number to its version: NaN, or the largest
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
    """Make e4m3 exact from here on, and bf16 too; a second call changes nothing."""
    bf16.install()
    if getattr(InterpreterBuilder, "exact_e4m3", False):
        return
    bf16.replace(InterpreterBuilder, "create_fp_to_fp", exact_cast)
    bf16.replace(InterpreterBuilder, "create_dot", exact_dot)
    InterpreterBuilder.exact_e4m3 = True
