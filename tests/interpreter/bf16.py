"""Bit-exact bf16 in Triton's interpreter.

The interpreter stores bf16 as 16-bit integers and computes on those: arithmetic and `tl.dot`
silently return garbage, and fp32 is truncated instead of rounded. `install` makes casts round to
nearest even and `tl.dot` multiply in fp32 (exact: a product of two bf16 values fits). It refuses
all other arithmetic, so that kernels must cast what they load. fp16 and fp32 are unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, ReduceOps, ScanOps, TensorHandle

# Operations that would compute on the bits as integers.
ARITHMETIC = ("binary_op", "unary_op", "create_clampf", "create_fma")


def is_bf16(value: Any) -> bool:
    return isinstance(value, TensorHandle) and value.dtype.scalar == tl.bfloat16


def widen(bits: np.ndarray) -> np.ndarray:
    """Convert bf16 bits to fp32."""
    return (np.asarray(bits, np.uint16).astype(np.uint32) << 16).view(np.float32)


def narrow(numbers: np.ndarray) -> np.ndarray:
    """Round fp32 to bf16 bits, to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    odd = bits >> 16 & np.uint32(1)
    rounded = bits + np.uint32(0x7FFF) + odd >> 16
    return np.where(np.isnan(numbers), bits >> 16 | 0x40, rounded).astype(np.uint16)


def widened(handle: TensorHandle) -> TensorHandle:
    return TensorHandle(widen(handle.data), tl.float32) if is_bf16(handle) else handle


def replace(owner: type, name: str, make: Callable[[Callable[..., Any]], Any]) -> None:
    """Replace a method by make(method)."""
    setattr(owner, name, make(getattr(owner, name)))


def constant(_: Any, number: float) -> TensorHandle:
    """bf16 constants in a kernel, which Triton 3.6 lacks."""
    return TensorHandle(narrow(np.array([number], np.float32)), tl.bfloat16)


def exact_cast(cast: Callable[..., Any]) -> Callable[..., Any]:
    def cast_impl(builder: Any, source: TensorHandle, to: Any) -> TensorHandle:
        if is_bf16(source) == (to.scalar == tl.bfloat16):
            return cast(builder, source, to)
        if is_bf16(source):
            return cast(builder, widened(source), to)
        return TensorHandle(narrow(source.data.astype(np.float32)), tl.bfloat16)

    return cast_impl


def exact_dot(dot: Callable[..., Any]) -> Callable[..., Any]:
    def create_dot(builder: Any, a: TensorHandle, b: TensorHandle, *rest: Any) -> Any:
        return dot(builder, widened(a), widened(b), *rest)

    return create_dot


def refuse_operands(name: str) -> Callable[[Callable[..., Any]], Any]:
    def make(work: Callable[..., Any]) -> Callable[..., Any]:
        def refused(builder: Any, *operands: Any) -> Any:
            if any(is_bf16(operand) for operand in operands):
                raise TypeError(f"bf16 in {name}: the interpreter cannot; cast to float32 first")
            return work(builder, *operands)

        return refused

    return make


def refuse_inputs(name: str) -> Callable[[Callable[..., Any]], Any]:
    def make(work: Callable[..., Any]) -> Callable[..., Any]:
        def refused(self: Any, inputs: tuple[Any, ...]) -> Any:
            if any(is_bf16(value.handle) for value in inputs):
                raise TypeError(f"bf16 in {name}: the interpreter cannot; cast to float32 first")
            return work(self, inputs)

        return refused

    return make


def install() -> None:
    """Make bf16 exact in this process; idempotent."""
    if getattr(InterpreterBuilder, "exact_bf16", False):
        return
    replace(InterpreterBuilder, "cast_impl", exact_cast)
    replace(InterpreterBuilder, "create_dot", exact_dot)
    for name in ARITHMETIC:
        replace(InterpreterBuilder, name, refuse_operands(name))
    replace(ReduceOps, "apply_impl", refuse_inputs("a reduction"))
    replace(ScanOps, "apply_impl", refuse_inputs("a scan"))
    InterpreterBuilder.get_bf16 = constant
    InterpreterBuilder.exact_bf16 = True
