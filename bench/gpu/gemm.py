"""Rates of cuBLAS GEMMs at the shapes of the models, in bf16 and in fp8.

Our GEMM kernels have to beat these rates, and any code that calls cuBLAS is limited by them. fp8
operands are made before timing; results have 16 bits.
"""

import functools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.aot_cases import Model
from bench.gpu.place import Place
from bench.gpu.race import Task, run
from bench.harness import Timed, WrongValues
from bench.problem import Draw, Tensors, moved, size_of
from nomicbert.benchmark.lines import Line

ROWS = (256, 1024, 4096, 5632, 8192, 16896, 65536)
DRY_ROWS = (32,)
FP8 = torch.float8_e4m3fn
# Bounds of the error's norm over the result's norm. FACTOR multiplies the error of rounding the
# exact result and of summing in fp32, since cuBLAS may sum parts in bf16. fp8 has a constant bound,
# since a GPU accumulates fp8 products in fewer bits.
FACTOR, FP8_ERROR = 4.0, 0.02
LIBRARY, WHOLE, BY_ROW = "library", "fp8, a scale for a matrix", "fp8, a scale for a row"


def shapes(model: Model) -> dict[str, tuple[int, int]]:
    """Columns of the result and of the input, for each GEMM of a layer."""
    up = 2 * model.inner if model.mlp == "swiglu" else model.inner
    return {
        "qkv": (3 * model.hidden, model.hidden),
        "out": (model.hidden, model.hidden),
        "up": (up, model.hidden),
        "down": (model.hidden, model.inner),
    }


def tasks(place: Place) -> Iterator[Task]:
    """Each GEMM of nomic and BERT-large, at row counts of typical batches."""
    item = place.dtype.itemsize
    for rows in DRY_ROWS if place.dry else ROWS:
        for model in place.models("nomic", "bert-large"):
            for name, (n, k) in shapes(model).items():
                flops, size = 2.0 * rows * n * k, float(item * (rows * k + n * k + rows * n))
                more = {"shape": [rows, n, k]}
                yield Task("gemm", model.name, f"{name} {rows}", "gemm", rows, flops, size, more)


def measure(place: Place, task: Task) -> list[Line]:
    """One shape: F.linear in the place's dtype, and torch._scaled_mm in fp8."""
    assert task.more is not None
    rows, n, k = task.more["shape"]
    draw = Draw(place.device, place.dtype)
    t = {"x": draw(rows, k), "weight": draw.weight(n, k)}
    count = place.copies(size_of(*t.values()))
    with torch.inference_mode():
        return run(
            place,
            task,
            {
                LIBRARY: functools.partial(in_dtype, t, count),
                WHOLE: functools.partial(scaled, t, count, False),
                BY_ROW: functools.partial(scaled, t, count, True),
            },
            {"copies": count},
            dtypes={WHOLE: "float8_e4m3fn", BY_ROW: "float8_e4m3fn"},
        )


def in_dtype(t: Tensors, count: int) -> Timed:
    """F.linear in the dtype of its operands."""

    def call(t: Tensors) -> Callable[[], Tensor]:
        return lambda: F.linear(t["x"], t["weight"])

    truth = t["x"].double() @ t["weight"].double().T
    rounded = off_by(truth.to(t["x"].dtype), truth)
    summed = torch.finfo(torch.float32).eps * t["x"].shape[1] ** 0.5
    return proven(call, t, count, truth, FACTOR * (rounded + summed))


def scaled(t: Tensors, count: int, by_row: bool) -> Timed:
    """torch._scaled_mm of the same values in fp8, with one scale per tensor or per row."""
    (x, a), (weight, b) = (narrow(t[name], by_row) for name in ("x", "weight"))
    numbers = {"x": x, "a": a, "weight": weight, "b": b}
    wide = torch.float32 if t["x"].dtype == torch.float32 else torch.bfloat16

    def call(t: Tensors) -> Callable[[], Tensor]:
        return lambda: torch._scaled_mm(
            t["x"],
            t["weight"].T,
            scale_a=t["a"],
            scale_b=t["b"].T if by_row else t["b"],
            out_dtype=wide,
            use_fast_accum=True,
        )

    truth = (x.double() * a) @ (weight.double() * b).T
    return proven(call, numbers, count, truth, FP8_ERROR)


def narrow(x: Tensor, by_row: bool) -> tuple[Tensor, Tensor]:
    """The values in fp8, and their fp32 scales: (rows, 1), or a scalar."""
    largest = x.float().abs()
    largest = largest.amax(1, keepdim=True) if by_row else largest.amax()
    scale = largest.clamp(min=1e-12) / torch.finfo(FP8).max
    return (x.float() / scale).to(FP8), scale


def proven(
    call: Callable[[Tensors], Callable[[], Tensor]],
    t: Tensors,
    count: int,
    truth: Tensor,
    allowed: float,
) -> Timed:
    """Calls on `count` copies, after the first result has been compared with the truth.

    Raises: WrongValues: its error is larger than allowed.
    """
    copies = [t, *({name: moved(x) for name, x in t.items()} for _ in range(count - 1))]
    calls = [call(copy) for copy in copies]
    error = off_by(calls[0](), truth)
    if not error <= allowed:  # also true for NaN
        raise WrongValues(f"off by {error:.3g} of the result's size, allowed {allowed:.3g}")
    return Timed(calls, error)


def off_by(got: Tensor, truth: Tensor) -> float:
    """Norm of the error over the norm of the truth."""
    return ((got.double() - truth).norm() / truth.norm()).item()
