"""Backend "fp8" on the device against its specification, on the same rounded inputs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bench.aot_cases import Model
from bench.problem import error_and_bound
from nomicbert_kernels import Activation, Ops, Rope, fp8, values
from nomicbert_kernels.backend import FP8_REFERENCE, fp8_ops
from nomicbert_kernels.capabilities import why_not_fp8
from tests.gpu.conftest import Record
from tests.gpu.support import DEVICE, EDGES, INTERPRETED, MODELS

WHY_NOT: str | None = None
if not INTERPRETED and torch.cuda.is_available():
    WHY_NOT = why_not_fp8(DEVICE, torch.bfloat16)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)),
]
if INTERPRETED:
    from tests.interpreter import fp8 as exact

    exact.install()

HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
EVERY_MODEL = pytest.mark.parametrize(
    "model", [m for m in MODELS if m.mlp != "moe"], ids=lambda m: m.name
)


def draw(*shape: int, seed: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * scale).to(dtype).to(DEVICE)


def calls(
    model: Model, rows: int, dtype: torch.dtype, seed: int
) -> dict[str, Callable[[Ops], Tensor | Activation]]:
    """Each GEMM of a layer, on inputs that both forms can read."""
    width, inner = model.hidden, model.inner
    x = fp8.round_rows(draw(rows, width, seed=seed, dtype=dtype))
    residual = draw(rows, width, seed=seed + 1, dtype=dtype)
    h = fp8.round_groups(draw(rows, inner, seed=seed + 2, dtype=dtype).float())
    factor = 2 if model.mlp == "swiglu" else 1

    def weight(n: int, k: int, kind: str = "linear") -> object:
        bias = None if model.rotary else draw(n, seed=seed + 4, dtype=dtype)
        source = draw(n, k, seed=seed + n + k, dtype=dtype, scale=k**-0.5)
        return fp8.prepare(source, bias, kind)  # type: ignore[arg-type]

    out, down = weight(width, width), weight(width, inner)
    qkv = weight(3 * width, width)
    first = weight(factor * inner, width, "gated" if factor == 2 else "linear")
    rope = None
    if model.rotary:
        angle = draw(50, model.head_dim // 2, seed=seed, dtype=torch.float32) * 3
        row = (torch.arange(rows, device=DEVICE) % 50).int()
        rope = Rope(angle.cos(), angle.sin(), row, model.head_dim)
    return {
        "out": lambda ops: ops.linear(x, out, residual),
        "down": lambda ops: ops.linear(h, down, residual),
        "qkv_rotary": lambda ops: ops.qkv_rotary(x, qkv, rope, model.heads),
        model.mlp: lambda ops: getattr(ops, model.mlp)(x, first),
        "layer_norm": lambda ops: ops.layer_norm(residual, None, None, 1e-5, residual),
    }


@EVERY_MODEL
@HALVES
def test_ops(model: Model, dtype: torch.dtype, seed: int, record: Record) -> None:
    """Unrounded results within the bound of a kernel, rounded ones within one step of e4m3."""
    ours = fp8_ops(DEVICE)
    for rows in EDGES:
        for name, call in calls(model, rows, dtype, seed).items():
            with torch.no_grad():
                got, wanted = call(ours), call(FP8_REFERENCE)
            what = {"op": name, "dtype": dtype, "size": rows, "check": "fp8"}
            if isinstance(got, Tensor):
                assert isinstance(wanted, Tensor)
                assert got.dtype == dtype
                record(*error_and_bound(got, wanted.double(), wanted), **what)
                continue
            assert isinstance(wanted, Activation)
            a, b = (values(Activation(y.data, y.scale)) for y in (got, wanted))
            # e4m3 values are an eighth apart, and a sum between two may round to either one. Hopper
            # accumulates with 13 bits, so that some small values are off by more
            off = (a - b).abs() / (b.abs() + b.abs().amax(1, keepdim=True) / 16)
            record(off.max().item(), 0.14, **what)
            record((off > 1e-2).float().mean().item(), 0.2, **{**what, "check": "fp8, how many"})


def test_rounding(seed: int, record: Record) -> None:
    """The kernel rounds like torch, bit for bit."""
    from nomicbert_kernels import fp8_triton

    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for width in (16, 384, 768, 1024):
            x = draw(70, width, seed=seed + width, dtype=dtype, scale=3.0)
            got, wanted = fp8_triton.round_rows(x), fp8.round_rows(x)
            assert got.scale is not None
            assert wanted.scale is not None
            codes = (got.data.view(torch.uint8) != wanted.data.view(torch.uint8)).sum().item()
            scales = (got.scale != wanted.scale).sum().item()
            record(codes + scales, 0, op="round_rows", dtype=dtype, size=width, check="bits")


@HALVES
def test_rows_keep_their_bits(dtype: torch.dtype, seed: int, record: Record) -> None:
    ours, model = fp8_ops(DEVICE), MODELS[0]
    table = fp8.prepare(
        draw(2 * model.inner, model.hidden, seed=seed, dtype=dtype, scale=0.05), None, "gated"
    )
    down = fp8.prepare(
        draw(model.hidden, model.inner, seed=seed, dtype=dtype, scale=0.05), None, "linear"
    )
    x = draw(300 if not INTERPRETED else 70, model.hidden, seed=seed + 1, dtype=dtype)
    with torch.no_grad():
        whole = ours.linear(ours.swiglu(x, table), down)
        for start, count in ((0, len(x) - 3), (7, len(x) - 7)) if not INTERPRETED else ((0, 33),):
            part = ours.linear(ours.swiglu(x[start : start + count], table), down)
            differing = (part != whole[start : start + count]).sum().item()
            record(differing, 0, op="swiglu + down", dtype=dtype, size=count, check="bits")
