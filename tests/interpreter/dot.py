"""`tl.dot` in Triton's interpreter, with one order of sums.

The interpreter multiplies through numpy's OpenBLAS. That takes another kernel on each CPU and for
each shape, and so another order of sums: bits of a row, and errors, would be those of the machine.
`install` has `tl.dot` compute the products of a sum one by one, add them up in halves, and then add
the accumulator d, all in the accumulator's dtype:

    t_k = a_k b_k,  t_k <- t_k + t_(k + K/2),  t_k <- t_k + t_(k + K/4),  ...,  t_0 <- t_0 + t_1

A step is one call of numpy's `multiply` or `add` on whole arrays, which rounds every element by
itself whatever the instructions, so the order depends on K alone. A product of fp16, bf16 or e4m3
numbers is exact in fp32.
It takes ten times as long as OpenBLAS, which is still no more than what an operation costs in the
interpreter anyway.

Integers and sums in fp16 are left as they are: numpy has no BLAS for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from tests.interpreter import bf16, fp8

# Those of an accumulator that BLAS would have summed.
SUMMED = (np.float32, np.float64)


def fold(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The product of (..., M, K) and (..., K, N), of one dtype, summed in halves."""
    columns, rows = np.moveaxis(a, -1, 0), np.moveaxis(b, -2, 0)
    terms = np.empty((*columns.shape, b.shape[-1]), a.dtype)  # (K, ..., M, N)
    terms[:] = columns[..., None]
    terms *= np.ascontiguousarray(rows)[..., None, :]
    while len(terms) > 1:  # of an odd number, that in the middle waits
        half = len(terms) // 2
        terms[:half] += terms[-half:]
        terms = terms[: len(terms) - half]
    return terms[0]


def numbers(operand: TensorHandle, dtype: np.dtype[Any]) -> np.ndarray:
    """What an operand's bits stand for."""
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
    """Sum in that order from here on, before or after the others; a second call changes nothing."""
    if getattr(InterpreterBuilder, "ordered_dot", False):
        return
    bf16.replace(InterpreterBuilder, "create_dot", ordered_dot)
    InterpreterBuilder.ordered_dot = True
