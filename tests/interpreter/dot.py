"""`tl.dot` in Triton's interpreter, with a fixed order of sums.

The interpreter uses numpy's OpenBLAS, whose kernels, and so the order of sums, depend on the CPU
and the shape: bits and errors would differ between machines. `install` makes `tl.dot` compute the
products of a sum one by one, add them up in halves, and then add the accumulator d, all in the
accumulator's dtype:

    t_k = a_k b_k,  t_k <- t_k + t_(k + K/2),  t_k <- t_k + t_(k + K/4),  ...,  t_0 <- t_0 + t_1

A step is one call of numpy's `multiply` or `add` on whole arrays, which rounds every element by
itself whatever the instructions, so the order depends on K alone. A product of fp16, bf16 or e4m3
values is exact in fp32. This takes ten times as long as OpenBLAS, which is no more than other
operations cost in the interpreter.

Integers and sums in fp16 are unchanged: numpy has no BLAS for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from tests.interpreter import bf16, fp8

# Accumulator dtypes for which numpy uses BLAS.
SUMMED = (np.float32, np.float64)


def fold(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Matmul of (..., M, K) and (..., K, N), of one dtype, summed in halves."""
    columns, rows = np.moveaxis(a, -1, 0), np.moveaxis(b, -2, 0)
    terms = np.empty((*columns.shape, b.shape[-1]), a.dtype)  # (K, ..., M, N)
    terms[:] = columns[..., None]
    terms *= np.ascontiguousarray(rows)[..., None, :]
    while len(terms) > 1:  # of an odd count, the middle one is added in the next step
        half = len(terms) // 2
        terms[:half] += terms[-half:]
        terms = terms[: len(terms) - half]
    return terms[0]


def numbers(operand: TensorHandle, dtype: np.dtype[Any]) -> np.ndarray:
    """Convert an operand's bits to values."""
    wide = fp8.widened(operand)
    if wide.data.dtype.kind != "f":
        raise TypeError(f"a dot of {operand.dtype}: it is not known here how to widen it")
    return wide.data.astype(dtype)


def ordered_dot(dot: Callable[..., Any]) -> Callable[..., Any]:
    def create_dot(
        builder: Any, a: TensorHandle, b: TensorHandle, d: TensorHandle, *rest: Any
    ) -> Any:
        dtype = d.data.dtype
        if dtype not in SUMMED:
            return dot(builder, a, b, d, *rest)
        return TensorHandle(fold(numbers(a, dtype), numbers(b, dtype)) + d.data, d.dtype.scalar)

    return create_dot


def install() -> None:
    """Fix the order of sums in this process; idempotent, in any order with other patches."""
    if getattr(InterpreterBuilder, "ordered_dot", False):
        return
    bf16.replace(InterpreterBuilder, "create_dot", ordered_dot)
    InterpreterBuilder.ordered_dot = True
